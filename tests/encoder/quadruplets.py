"""Quadruplets of the world drawn by its renderer, as a run folder holds them, for tests of what comes after."""

import io
import time

import numpy as np
import pyarrow as pa
from PIL import Image

from safeclip.artifacts import Folder, Stage, hash_of, table_hash
from safeclip.records import QUADRUPLET, SPLITS
from safeclip.world.quadruplets import rendered_quadruplets, trained_unsafe_objects


def encoded(pixels: np.ndarray) -> bytes:
    """A picture as WebP."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90)
    return out.getvalue()


def render_quadruplets(n: int, seed: int) -> pa.Table:
    """Rows of safeclip.records.QUADRUPLET, of which the judges are sure, in no split."""
    rows = rendered_quadruplets(n, seed, trained_unsafe_objects())
    known = {"text_score": [1.0] * n, "image_score": [1.0] * n, "split": [""] * n}
    for name, values in known.items():
        field = QUADRUPLET.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))
    return rows


def write_quadruplets(run: Folder, counts: dict[str, int], seed: int = 0) -> dict:
    """Writes a complete `quadruplets` stage of so many rows a split, and returns its manifest."""
    folder = run / "quadruplets"
    table = render_quadruplets(sum(counts.values()), seed)
    start, tables = 0, []
    for split in SPLITS:
        part = table.slice(start, counts.get(split, 0))
        start += part.num_rows
        part = part.set_column(part.column_names.index("split"), "split", pa.array([split] * part.num_rows))
        part = part.sort_by("id").cast(QUADRUPLET)
        (folder / split).make()
        if part.num_rows:
            (folder / split).write_table("part-0000.parquet", part)
        tables.append(part)
    content = {"rows": start, "content_hash": table_hash(pa.concat_tables(tables)), "data": {"quadruplets": counts}}
    return Stage(folder, hash_of(counts, seed)).finish(time.time(), content)
