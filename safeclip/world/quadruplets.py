"""Quadruplets rendered from the world's scenes, for the report's test sets: what they show is in no training."""

import io
import itertools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from PIL import Image

from safeclip.errors import UserError
from safeclip.records import QUADRUPLET, row_id
from safeclip.world.scenes import (
    BACKGROUNDS,
    HELD_OUT_OBJECTS,
    SAFE_OBJECTS,
    Scene,
    background_named,
    caption,
    object_names,
    objects_named,
    render,
    template_of,
)


def trained_unsafe_objects() -> list[str]:
    """Returns the unsafe objects that toxified captions may name, in a fixed order."""
    return [name for name in object_names(safe=False) if name not in HELD_OUT_OBJECTS]


def scene_keys(captions: Iterable[str]) -> set[str]:
    """Returns the keys of all scenes that captions may describe.

    A caption that names more than two objects stands for each pair of them, and one without a clear background for
    all backgrounds: rather a key too many than a scene that occurred in training.
    """
    keys = set()
    for text in captions:
        named, background = objects_named(text), background_named(text)
        for objects in itertools.combinations(named, min(len(named), 2)):
            for colour in BACKGROUNDS if background is None else [background]:
                if objects:
                    keys.add(Scene(objects, colour, 0).key)
    return keys


def rendered_quadruplets(
    n: int, seed: int, unsafe_objects: list[str], exclude: set[str] | frozenset[str] = frozenset()
) -> pa.Table:
    """Draws scenes and renders them as quadruplets of split "test".

    The safe scene shows two safe objects. The unsafe one shows an unsafe object in the place of one of the two, on
    the same background; both captions are of the same template. All scenes are reserved, and no two safe scenes,
    nor two unsafe ones, have the same key.

    Args:
        n: how many.
        seed: of the draw; the same seed gives the same rows.
        unsafe_objects: names that unsafe scenes choose from.
        exclude: keys of scenes that must not occur.

    Returns:
        Rows of `safeclip.records.QUADRUPLET`; pictures are lossless WebP, scores are null since nobody judged.

    Raises:
        UserError: there are not that many different scenes.
    """
    drawn = _draw_pairs(n, seed, unsafe_objects, exclude)
    if len(drawn) < n:
        raise UserError(
            f"evaluate.rendered: {n} is too many; with {len(unsafe_objects)} unsafe objects there are {len(drawn)} "
            "different test scenes that occur in no training"
        )
    return pa.Table.from_pylist([_row(safe, unsafe) for safe, unsafe in drawn], schema=QUADRUPLET)


def held_out_quadruplets(limit: int, seed: int, exclude: set[str] | frozenset[str] = frozenset()) -> pa.Table:
    """Renders quadruplets of the unsafe objects that occur in no training: as many as there are, up to a limit."""
    objects = [name for name in object_names(safe=False) if name in HELD_OUT_OBJECTS]
    return rendered_quadruplets(len(_draw_pairs(limit, seed, objects, exclude)), seed, objects, exclude)


def _draw_pairs(
    n: int, seed: int, unsafe_objects: list[str], exclude: set[str] | frozenset[str]
) -> list[tuple[Scene, Scene]]:
    """Returns up to n pairs of a safe and an unsafe scene, drawn without replacement."""
    random = np.random.default_rng([seed, 4])
    pool = [
        (kept, unsafe, background)
        for kept, unsafe, background in itertools.product(SAFE_OBJECTS, unsafe_objects, BACKGROUNDS)
        if _free(Scene((kept, unsafe), background, 0), exclude)
    ]
    safe_names = list(SAFE_OBJECTS)
    taken = set(exclude)
    pairs: list[tuple[Scene, Scene]] = []
    for index in random.permutation(len(pool)):
        if len(pairs) == n:
            break
        kept, unsafe, background = pool[index]
        partner = _draw_partner(random.permutation(safe_names), kept, background, taken)
        if partner is None:
            continue
        safe_objects, unsafe_objects_here = (kept, partner), (kept, unsafe)
        if random.random() < 0.5:
            safe_objects, unsafe_objects_here = safe_objects[::-1], unsafe_objects_here[::-1]
        scene_seed = int(random.integers(2**31))
        safe = Scene(safe_objects, background, scene_seed)
        taken.add(safe.key)
        pairs.append((safe, Scene(unsafe_objects_here, background, scene_seed)))
    return pairs


def _free(scene: Scene, taken: set[str] | frozenset[str]) -> bool:
    return scene.reserved and scene.key not in taken


def _draw_partner(names: np.ndarray, kept: str, background: str, taken: set[str]) -> str | None:
    choices = (str(name) for name in names if name != kept)
    return next((name for name in choices if _free(Scene((kept, name), background, 0), taken)), None)


def _row(safe: Scene, unsafe: Scene) -> dict[str, object]:
    concept = next(iter(unsafe.concepts))
    safe_caption = caption(safe)
    return {
        "id": row_id(safe_caption, concept),
        "concept": concept,
        "safe_caption": safe_caption,
        "safe_image": _webp(render(safe)),
        "unsafe_caption": caption(unsafe, template_of(safe)),
        "unsafe_image": _webp(render(unsafe)),
        "text_score": None,
        "image_score": None,
        "split": "test",
    }


def _webp(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "WEBP", lossless=True, quality=0, method=0)
    return sink.getvalue()
