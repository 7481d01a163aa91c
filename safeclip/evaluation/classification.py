"""How well encoders classify whole data sets without having been trained for their classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from safeclip.evaluation.intervals import paired_differences, with_intervals
from safeclip.evaluation.metrics import Measured
from safeclip.evaluation.zero_shot import classify, mean_of_descriptions
from safeclip.evaluation.zero_shot_sets import ZeroShotSet

# For each encoder, by its label, the embeddings of all pictures and of all descriptions of a set.
SetEmbeddings = dict[str, tuple[np.ndarray, np.ndarray]]


def measure_zero_shot(
    sets: Sequence[ZeroShotSet],
    embedded: Sequence[SetEmbeddings],
    labels: Sequence[str],
    missing: dict[str, str],
    resamples: int,
    seed: int,
) -> Measured:
    """Classifies the pictures of each set that decode, the same with each encoder.

    Args:
        sets: the data sets.
        embedded: of each set.
        labels: of the encoders, the first of which the others are compared with.
        missing: the sets that could not be opened, and why.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `top1` and `top5` of each set that has a picture, under `zero_shot`.
    """
    first, *others = labels
    figures: dict[str, dict[str, Any]] = {label: {} for label in labels}
    differences: dict[str, dict[str, Any]] = {label: {} for label in others}
    notes: list[str] = []
    for source, found in zip(sets, embedded, strict=True):
        whole = np.all([np.isfinite(images).all(1) for images, _ in found.values()], axis=0)
        notes += [*source.notes, *_left_out(source, whole)]
        if not whole.any():
            continue
        right = {
            label: classify(images[whole], mean_of_descriptions(texts, len(source.classes)), source.labels[whole])
            for label, (images, texts) in found.items()
        }
        for label in labels:
            figures[label][source.name] = with_intervals(right[label], resamples, seed)
        for label in others:
            differences[label][source.name] = paired_differences(right[label], right[first], resamples, seed)
    return Measured(_under_name(figures), _under_name(differences), missing=missing, notes=notes)


def _under_name(tree: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {label: {"zero_shot": found} for label, found in tree.items()}


def _left_out(source: ZeroShotSet, whole: np.ndarray) -> list[str]:
    broken = [place for place, good in zip(source.places, whole, strict=True) if not good]
    if not broken:
        return []
    some = ", ".join(broken[:3]) + (", …" if len(broken) > 3 else "")
    return [f"zero-shot {source.name}: {len(broken)} pictures do not decode and are left out ({some})"]
