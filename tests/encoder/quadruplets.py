"""Quadruplets of the world drawn by its renderer, as a run folder holds them, for tests of what comes after."""

import io
import time

import numpy as np
import pyarrow as pa
from PIL import Image

from safeclip.artifacts import Folder, Stage, hash_of, table_hash
from safeclip.records import QUADRUPLET, SPLITS, row_id
from safeclip.world.scenes import (
    HELD_OUT_OBJECTS,
    Scene,
    caption,
    concept_of,
    object_names,
    render,
    sample_scenes,
    template_of,
)


def encoded(pixels: np.ndarray) -> bytes:
    """A picture as WebP."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90)
    return out.getvalue()


def scene_pairs(n: int, seed: int, reserved: bool, unsafe: list[str] | None = None) -> list[tuple[Scene, Scene]]:
    """Safe scenes, and each again with one object replaced by an unsafe one; no scene is there twice."""
    unsafe = unsafe or [name for name in object_names(safe=False) if name not in HELD_OUT_OBJECTS]
    random = np.random.default_rng(seed)
    pairs: list[tuple[Scene, Scene]] = []
    seen: set[str] = set()
    for safe in sample_scenes(40 * n + 100, seed, object_names(safe=True), reserved=reserved):
        place, name = int(random.integers(2)), unsafe[random.integers(len(unsafe))]
        objects = tuple(name if i == place else o for i, o in enumerate(safe.objects))
        other = Scene(objects, safe.background, safe.seed)
        if other.reserved == reserved and not seen & {safe.key, other.key}:
            pairs.append((safe, other))
            seen |= {safe.key, other.key}
        if len(pairs) == n:
            return pairs
    raise ValueError(f"only {len(pairs)} of {n} pairs found")


def render_quadruplets(n: int, seed: int, reserved: bool = False, unsafe: list[str] | None = None) -> pa.Table:
    """Rows of safeclip.records.QUADRUPLET, without a split."""
    rows = []
    for safe, other in scene_pairs(n, seed, reserved, unsafe):
        new = next(b for a, b in zip(safe.objects, other.objects, strict=True) if a != b)
        text, concept = caption(safe), concept_of(new)
        rows.append({
            "id": row_id(text, concept),
            "concept": concept,
            "safe_caption": text,
            "safe_image": encoded(render(safe)),
            "unsafe_caption": caption(other, template_of(safe)),
            "unsafe_image": encoded(render(other)),
            "text_score": 1.0,
            "image_score": 1.0,
            "split": "",
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=QUADRUPLET)


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
