"""The teacher's embeddings of all rows: computed once by Ray Data, before training, and kept as Parquet.

The teacher is the base encoder in evaluation mode. Nothing of it is left when training starts but these numbers.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safeclip.actors import map_rows
from safeclip.artifacts import Folder, Stage, hash_of
from safeclip.config import Resources
from safeclip.device import reserved_device
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder, decode_image
from safeclip.errors import UserError

SPLITS = ("train", "validation")  # of the quadruplets; the test split is for the report alone
PRESERVED, DRAWN = "preserve", "drawn"  # the safe pairs, as if they were a third split, and those with drawn pictures


@dataclass(frozen=True)
class Unit:
    """A file of quadruplets, and the file of its teacher's embeddings, row by row in the same order."""

    split: str
    source: str
    target: str


def plan_units(folders: dict[str, Folder], *inputs: Any) -> list[Unit]:
    """Returns the units, in a fixed order.

    Args:
        folders: where the rows of each split lie.
        inputs: plain data that the embeddings depend on.
    """
    units = []
    for split, folder in folders.items():
        for name, size in folder.sizes(".parquet").items():
            key = hash_of(split, name, size, *inputs)
            units.append(Unit(split, name, f"{split}-{name.removesuffix('.parquet')}-{key}.parquet"))
    return units


def usable(table: pa.Table) -> pa.Table:
    """Returns the rows that were not rejected; those of quadruplets are all usable."""
    return table.filter(pc.is_null(table["reject"])) if "reject" in table.column_names else table


def embed_rows(encoder: Encoder, table: pa.Table, name: str) -> pa.Table:
    """Returns the rows' `id` and, for each of their sides, `<side>_text_ref` and `<side>_image_ref`.

    Args:
        encoder: the teacher.
        table: rows of QUADRUPLET, whose sides are `safe` and `unsafe`, or of CAPTION, which have the safe one only.
        name: of the file, for messages.

    Returns:
        A table of lists of float32 of unit length.

    Raises:
        UserError: a picture does not decode, or the teacher's embedding of a row is not a number.
    """
    ids = table["id"].to_pylist()
    columns = {"id": table["id"]}
    for side in sides_of(table):
        pixels = [
            encoder.resize_image(decode_image(data.as_py(), f"{name}, row {key}: {side}_image"))
            for key, data in zip(ids, table[f"{side}_image"], strict=True)
        ]
        for kind, found in (
            ("text", encoder.encode_texts(table[f"{side}_caption"].to_pylist())),
            ("image", encoder.encode_pixels(np.stack(pixels) if pixels else np.zeros((0, 3, 1, 1), np.uint8))),
        ):
            if broken := np.flatnonzero(~np.isfinite(found).all(1)).tolist():
                raise UserError(
                    f"{name}, row {ids[broken[0]]}: the base encoder's embedding of its {side} {kind} is no number"
                )
            columns[f"{side}_{kind}_ref"] = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
    return pa.table(columns)


def sides_of(table: pa.Table) -> list[str]:
    """Returns `safe`, and `unsafe` where the rows have that side."""
    return [side for side in ("safe", "unsafe") if f"{side}_caption" in table.column_names]


class TeacherWorker:
    """A Ray Data actor that embeds units with a teacher of its own."""

    def __init__(self, source: str, folders: dict[str, Folder], target: Folder) -> None:
        self.encoder = load_encoder(source, reserved_device())
        self.folders, self.target = folders, target

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Embeds one unit and writes it."""
        table = usable(self.folders[row["split"]].read_table(row["source"]))
        self.target.write_table(row["target"], embed_rows(self.encoder, table, f"{row['split']}/{row['source']}"))
        return {"target": row["target"]}


def embed_teacher(
    base: str, base_hash: str, folders: dict[str, Folder], content_hash: str, folder: Folder, resources: Resources
) -> list[Unit]:
    """Runs the stage, as far as it is not done.

    Args:
        base: the teacher, as `load_encoder` takes it.
        base_hash: of its weights.
        folders: where the rows of each split lie.
        content_hash: of the rows.
        folder: where the embeddings go.
        resources: how many actors, and what each reserves.

    Returns:
        The units, all of them done.

    Raises:
        UserError: a picture does not decode.
    """
    units = plan_units(folders, base_hash, content_hash)
    stage = Stage(folder, hash_of(base_hash, content_hash, [unit.target for unit in units]))
    if stage.manifest():
        print("encoder/teacher: complete, skipped")
        return units
    began = stage.begin()
    there = set(folder.files(".parquet"))
    pending = [unit for unit in units if unit.target not in there]
    if pending:
        _embed_pending(pending, base, folders, folder, resources)
    for name in there - {unit.target for unit in units}:  # of another teacher or other rows
        folder.drop(name)
    stage.finish(began, {"base": {"source": base, "hash": base_hash}, "rows_hash": content_hash, "units": len(units)})
    print(f"encoder/teacher: {len(units)} units embedded, {len(pending)} of them now, {time.time() - began:.1f} s")
    return units


def _embed_pending(
    pending: list[Unit], base: str, folders: dict[str, Folder], folder: Folder, resources: Resources
) -> None:
    rows = [{"split": u.split, "source": u.source, "target": u.target} for u in pending]
    for _ in map_rows(rows, TeacherWorker, (base, folders, folder), resources).iter_rows():
        pass
