"""Embeddings of evaluation sets by any number of encoders, computed by Ray Data actors."""

from dataclasses import dataclass

import numpy as np

from safeclip.artifacts import Folder
from safeclip.config import Evaluate
from safeclip.errors import UserError
from safeclip.evaluation.encoders import Source, load_from
from safeclip.evaluation.retrieval import Embeddings
from safeclip.evaluation.sets import EvaluationSet

_SIDES = {
    "safe_text": "safe_caption",
    "safe_image": "safe_image",
    "unsafe_text": "unsafe_caption",
    "unsafe_image": "unsafe_image",
}


@dataclass(frozen=True)
class EmbeddedSet:
    """A set's rows, sorted by id, and their embeddings."""

    ids: list[str]
    files: list[str]
    """The file that each row lies in."""
    concepts: list[str]
    embeddings: dict[str, Embeddings]
    """For each encoder, by its label."""


def embed_sets(sets: list[EvaluationSet], encoders: dict[str, Source], settings: Evaluate) -> dict[str, EmbeddedSet]:
    """Embeds all sets with all encoders in one pass over the rows.

    Needs a Ray that is connected. Every row is read and decoded by one actor that holds all encoders.

    Args:
        sets: what to embed.
        encoders: by label, what `load_encoder` takes, or the folder of an encoder on any file system.
        settings: rows at once, and what the actors reserve.

    Returns:
        For each set, by its name, its rows.

    Raises:
        UserError: an encoder cannot be loaded, or a set is empty.
    """
    import ray
    from ray.data import ActorPoolStrategy

    files = [{"set": s.name, "folder": _absolute(s.folder).url, "file": name} for s in sets for name in s.files]
    resources = settings.resources
    sources = {k: _absolute(v) if isinstance(v, Folder) else v for k, v in encoders.items()}
    # The actors read for themselves: reading tasks would each start a process that takes half a GiB.
    embedded = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        Embedder,
        fn_constructor_args=(sources, settings.batch),
        compute=ActorPoolStrategy(size=min(resources.actors, len(files))),
        batch_size=1,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    batches = list(embedded.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    return {s.name: _one_set(columns, s, list(encoders)) for s in sets}


class Embedder:
    """A Ray Data actor that embeds the four sides of quadruplets, a file at a time."""

    def __init__(self, encoders: dict[str, Source], batch: int) -> None:
        import ray

        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.encoders = {label: load_from(source, device) for label, source in encoders.items()}
        self.batch = batch

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what identifies a file's rows, and `<encoder>/<side>` of shape (n, d) for each encoder and side."""
        place = {name: str(row[name][0]) for name in ("set", "folder", "file")}
        table = Folder(place["folder"]).read_table(place["file"])
        found = {name: np.array(table[name].to_pylist()) for name in ("id", "concept")}
        found |= {name: np.array([place[name]] * len(table)) for name in ("set", "file")}
        for side, column in _SIDES.items():
            values = table[column].to_pylist()
            parts = [values[start : start + self.batch] for start in range(0, len(values), self.batch)]
            for label, encoder in self.encoders.items():
                encode = encoder.encode_texts if side.endswith("text") else encoder.encode_images
                found[f"{label}/{side}"] = np.concatenate([encode(part) for part in parts])
        return found


def _absolute(folder: Folder) -> Folder:
    """Returns the folder by a path that means the same in every process of this machine."""
    return Folder(folder.path()) if folder.is_local else folder


def _one_set(columns: dict[str, np.ndarray], wanted: EvaluationSet, encoders: list[str]) -> EmbeddedSet:
    (rows,) = np.nonzero(columns["set"] == wanted.name)
    if not len(rows):
        raise UserError(f"{wanted.folder.url}: holds no quadruplets")
    rows = rows[np.argsort(columns["id"][rows], kind="stable")]
    ids, files, concepts = ([str(v) for v in columns[name][rows]] for name in ("id", "file", "concept"))
    embeddings = {k: Embeddings(*(columns[f"{k}/{side}"][rows] for side in _SIDES)) for k in encoders}
    return EmbeddedSet(ids, files, concepts, embeddings)
