"""The sets of quadruplets that encoders are measured on: folders of Parquet files with rows of QUADRUPLET."""

from dataclasses import dataclass

import pyarrow as pa

from safeclip.artifacts import Folder
from safeclip.errors import UserError

MAIN_SET = "retrieval"  # the name of the one that a report tells of first
_FILE_ROWS = 256
HELD_OUT_LIMIT = 300


@dataclass(frozen=True)
class EvaluationSet:
    """Quadruplets to search in."""

    name: str
    """Under which metrics.json holds the figures, within each encoder's."""
    title: str
    description: str
    """What the quadruplets are, in a sentence for the report."""
    folder: Folder

    @property
    def files(self) -> list[str]:
        """The names of the Parquet files, in their order."""
        return self.folder.files(".parquet")


def evaluation_sets(run: Folder, rendered: int, seed: int, place: Folder) -> list[EvaluationSet]:
    """Returns the sets of a run, the main one first; renders those of the embedded world.

    Args:
        run: whose quadruplets are complete.
        rendered: quadruplets to render for the main set; 0 leaves out the world's sets, and the run's own test split
            is the main one.
        seed: of the scenes.
        place: where the rendered sets go.

    Raises:
        UserError: the run has no test split, or there are not so many scenes.
    """
    test = run / "quadruplets" / "test"
    if not test.files(".parquet"):
        raise UserError(f"{test.url}: there is no test split; run jobs.generate first")
    generated = EvaluationSet(
        "retrieval_generated" if rendered else MAIN_SET,
        "Generated test split",
        "quadruplets that the run generated and kept out of training",
        test,
    )
    return [*_rendered_sets(run, rendered, seed, place), generated] if rendered else [generated]


def _rendered_sets(run: Folder, rendered: int, seed: int, place: Folder) -> list[EvaluationSet]:
    from safeclip.world.quadruplets import (
        held_out_quadruplets,
        rendered_quadruplets,
        scene_keys,
        trained_unsafe_objects,
    )

    exclude = scene_keys(training_captions(run))
    main = rendered_quadruplets(rendered, seed, trained_unsafe_objects(), exclude)
    held_out = held_out_quadruplets(min(HELD_OUT_LIMIT, rendered), seed, exclude)
    return [
        EvaluationSet(
            MAIN_SET,
            "Unseen scenes",
            "quadruplets rendered from scenes that occur in no training",
            _write(place / "rendered", main),
        ),
        EvaluationSet(
            "retrieval_held_out",
            "Unsafe objects never trained on",
            "rendered quadruplets of unsafe objects that no toxified caption and no fine-tuning row names",
            _write(place / "held_out", held_out),
        ),
    ]


def training_captions(run: Folder) -> list[str]:
    """Returns the captions, safe and unsafe, that fine-tuning sees: those of the train and validation splits."""
    captions = []
    for split in ("train", "validation"):
        folder = run / "quadruplets" / split
        for name in folder.files(".parquet"):
            table = folder.read_table(name)
            captions += table["safe_caption"].to_pylist() + table["unsafe_caption"].to_pylist()
    return captions


def _write(folder: Folder, table: pa.Table) -> Folder:
    folder.remove()
    folder.make()
    for index, start in enumerate(range(0, len(table), _FILE_ROWS)):
        folder.write_table(f"{index:05d}.parquet", table.slice(start, _FILE_ROWS))
    return folder
