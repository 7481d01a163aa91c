"""Pictures of one object each, and what a classifier may call them."""

import numpy as np
from PIL import Image

from safeclip.evaluation.zero_shot import Template
from safeclip.world.scenes import (
    BACKGROUNDS,
    IMAGE_SIZE,
    ONE_OBJECT_TEMPLATES,
    Scene,
    caption,
    object_names,
    render,
)

VARIANTS = ("upright", "rotated", "recoloured", "new_backgrounds")


def pictures_of_one(count: int, seed: int, variant: str = "upright") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draws pictures of one safe object each; fine-tuning sees two in every picture.

    Args:
        count: how many, the objects in turn, on backgrounds at random.
        seed: of backgrounds, sizes and places.
        variant: `upright`, as everywhere in the world; `rotated` by 30 to 330 degrees; `recoloured`, red, green and
            blue exchanged; or on `new_backgrounds`, which run from one colour to another as no other picture's do.

    Returns:
        Pictures uint8 (count, 64, 64, 3), the numbers of their classes (count,), and the classes' names.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
    names, random = object_names(safe=True), np.random.default_rng([seed, 9])
    backgrounds = list(BACKGROUNDS)
    labels = np.arange(count) % len(names)
    scenes = [
        Scene((names[label],), backgrounds[random.integers(len(backgrounds))], int(random.integers(2**31)))
        for label in labels
    ]
    return np.stack([_draw(scene, variant) for scene in scenes]), labels, names


def _draw(scene: Scene, variant: str) -> np.ndarray:
    random = scene.random(variant)
    if variant == "rotated":
        angle = random.uniform(30, 330)
        return render(scene, change=lambda drawing: drawing.rotate(angle, Image.Resampling.BICUBIC))
    if variant == "recoloured":
        order = ((1, 2, 0), (2, 0, 1))[random.integers(2)]
        return render(scene, change=lambda drawing: _exchange(drawing, order))
    if variant == "new_backgrounds":
        above, below = random.integers(60, 256, (2, 3))
        share = np.linspace(0, 1, IMAGE_SIZE)[:, None]
        rows = np.rint(above * (1 - share) + below * share).astype(np.uint8)
        return render(scene, background=np.repeat(rows[:, None], IMAGE_SIZE, axis=1))
    return render(scene)


def _exchange(drawing: Image.Image, order: tuple[int, int, int]) -> Image.Image:
    *colours, opacity = drawing.split()
    return Image.merge("RGBA", [*(colours[k] for k in order), opacity])


def descriptions() -> list[Template]:
    """Returns the templates that describe an object by itself, on each background."""
    return [
        lambda name, t=template, b=background: caption(Scene((name,), b, 0), t)  # type: ignore[misc]
        for template in ONE_OBJECT_TEMPLATES
        for background in BACKGROUNDS
    ]
