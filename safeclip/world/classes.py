"""Pictures of one object each, and what a classifier may call them."""

import numpy as np

from safeclip.evaluation.zero_shot import Template
from safeclip.world.scenes import (
    BACKGROUNDS,
    ONE_OBJECT_TEMPLATES,
    Scene,
    caption,
    object_names,
    render,
)


def pictures_of_one(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draws pictures of one safe object each; fine-tuning sees two in every picture.

    Args:
        count: how many, the objects in turn, on backgrounds at random.
        seed: of backgrounds, sizes and places.

    Returns:
        Pictures uint8 (count, 64, 64, 3), the numbers of their classes (count,), and the classes' names.
    """
    names, random = object_names(safe=True), np.random.default_rng([seed, 9])
    backgrounds = list(BACKGROUNDS)
    labels = np.arange(count) % len(names)
    scenes = [
        Scene((names[label],), backgrounds[random.integers(len(backgrounds))], int(random.integers(2**31)))
        for label in labels
    ]
    return np.stack([render(scene) for scene in scenes]), labels, names


def descriptions() -> list[Template]:
    """Returns the templates that describe an object by itself, on each background."""
    return [
        lambda name, t=template, b=background: caption(Scene((name,), b, 0), t)  # type: ignore[misc]
        for template in ONE_OBJECT_TEMPLATES
        for background in BACKGROUNDS
    ]
