"""The teacher's embeddings of the safe side: computed once by Ray Data, before training, and kept as Parquet.

The teacher is the base encoder in evaluation mode. Nothing of it is left when training starts but these numbers.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from safeclip.artifacts import Folder, Stage, hash_of
from safeclip.config import Resources
from safeclip.encoder.model import Encoder, decode_image, load_encoder

SPLITS = ("train", "validation")  # the test split is for the report alone


@dataclass(frozen=True)
class Unit:
    """A file of quadruplets, and the file of its teacher's embeddings, row by row in the same order."""

    split: str
    source: str
    target: str


def plan_units(quadruplets: Folder, *inputs: Any) -> list[Unit]:
    """Returns the units, in a fixed order.

    Args:
        quadruplets: the stage's folder.
        inputs: plain data that the embeddings depend on.
    """
    units = []
    for split in SPLITS:
        folder = quadruplets / split
        for name in folder.files(".parquet"):
            key = hash_of(split, name, folder.fs.size(folder.path(name)), *inputs)
            units.append(Unit(split, name, f"{split}-{name.removesuffix('.parquet')}-{key}.parquet"))
    return units


def embed_rows(encoder: Encoder, table: pa.Table, name: str) -> pa.Table:
    """Returns the rows' `id`, `safe_text_ref` and `safe_image_ref`, lists of float32 of unit length.

    Args:
        encoder: the teacher.
        table: rows of QUADRUPLET.
        name: of the file, for messages.

    Raises:
        UserError: a picture of a row, safe or unsafe, does not decode.
    """
    ids = table["id"].to_pylist()
    decoded = {
        column: [
            decode_image(b, f"{name}, row {i}: {column}") for i, b in zip(ids, table[column].to_pylist(), strict=True)
        ]
        for column in ("safe_image", "unsafe_image")  # the unsafe ones only to find a broken one before training does
    }
    pixels = np.stack([encoder.resize_image(image) for image in decoded["safe_image"]])
    refs = {
        "safe_text_ref": encoder.encode_texts(table["safe_caption"].to_pylist()),
        "safe_image_ref": encoder.encode_pixels(pixels),
    }
    columns = {k: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for k, v in refs.items()}
    return pa.table({"id": table["id"], **columns})


class TeacherWorker:
    """A Ray Data actor that embeds units with a teacher of its own."""

    def __init__(self, source: str, device: str, quadruplets: Folder, target: Folder) -> None:
        self.encoder = load_encoder(source, device)
        self.quadruplets, self.target = quadruplets, target

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Embeds one unit and writes it."""
        table = (self.quadruplets / row["split"]).read_table(row["source"])
        embedded = embed_rows(self.encoder, table, f"quadruplets/{row['split']}/{row['source']}")
        self.target.write_table(row["target"], embedded)
        return {"target": row["target"]}


def embed_teacher(
    base: str, base_hash: str, quadruplets: Folder, content_hash: str, folder: Folder, resources: Resources
) -> list[Unit]:
    """Runs the stage, as far as it is not done.

    Args:
        base: the teacher, as `load_encoder` takes it.
        base_hash: of its weights.
        quadruplets: the folder of the quadruplets.
        content_hash: theirs.
        folder: where the embeddings go.
        resources: how many actors, and what each reserves.

    Returns:
        The units, all of them done.

    Raises:
        UserError: a picture does not decode.
    """
    units = plan_units(quadruplets, base_hash, content_hash)
    stage = Stage(folder, hash_of(base_hash, content_hash, [unit.target for unit in units]))
    if stage.manifest():
        print("encoder/teacher: complete, skipped")
        return units
    began = time.time()
    folder.make()
    there = set(folder.files(".parquet"))
    pending = [unit for unit in units if unit.target not in there]
    if pending:
        _embed_pending(pending, base, quadruplets, folder, resources)
    for name in there - {unit.target for unit in units}:  # of another teacher or other quadruplets
        folder.fs.rm(folder.path(name))
    stage.finish(began, {"base": {"source": base, "hash": base_hash}, "units": len(units)})
    print(f"encoder/teacher: {len(units)} units embedded, {len(pending)} of them now, {time.time() - began:.1f} s")
    return units


def _embed_pending(pending: list[Unit], base: str, quadruplets: Folder, folder: Folder, resources: Resources) -> None:
    import ray
    from ray.data import ActorPoolStrategy

    rows = [{"split": u.split, "source": u.source, "target": u.target} for u in pending]
    work = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        TeacherWorker,
        fn_constructor_args=(base, "cuda" if resources.gpus else "cpu", quadruplets, folder),
        compute=ActorPoolStrategy(size=min(resources.actors, len(rows))),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    for _ in work.iter_rows():
        pass
