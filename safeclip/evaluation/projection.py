"""Where encoders put safe and unsafe items: embeddings in the plane of the first encoder's principal components."""

from dataclasses import dataclass, fields

import numpy as np

from safeclip.evaluation.retrieval import Embeddings

SIDES = tuple(f.name for f in fields(Embeddings))


@dataclass(frozen=True)
class EmbeddingMap:
    """Some quadruplets as each encoder sees them."""

    points: dict[str, dict[str, np.ndarray]]
    """By the encoder's label, (n, 2) for each side of the quadruplets."""
    likeness: dict[str, dict[str, float]]
    """By the encoder's label, the mean cosine of unsafe texts with their unsafe and their safe picture (`unsafe`,
    `safe`)."""
    own_axes: list[str]
    """Labels of the encoders whose embeddings are not as wide as the first's, and which have axes of their own."""

    def bounds(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and the highest coordinates (2,) of an encoder and those that share its axes."""
        shared = [k for k in self.points if k not in self.own_axes]
        group = [label] if label in self.own_axes else shared
        together = np.concatenate([p for k in group for p in self.points[k].values()])
        return together.min(0), together.max(0)


def project(embeddings: dict[str, Embeddings], seed: int, limit: int = 300) -> EmbeddingMap:
    """Projects the same quadruplets with each encoder.

    Args:
        embeddings: by the encoder's label, of the same quadruplets; the first one's give the axes.
        seed: of the draw of quadruplets to show.
        limit: quadruplets to show at most.
    """
    first = next(iter(embeddings.values()))
    n = len(first.safe_text)
    rows = np.sort(np.random.default_rng([seed, 11]).permutation(n)[:limit])
    shown = {label: {side: getattr(e, side)[rows] for side in SIDES} for label, e in embeddings.items()}
    width = first.safe_text.shape[1]
    own_axes = [label for label, e in embeddings.items() if e.safe_text.shape[1] != width]
    common = principal_axes(np.concatenate(list(next(iter(shown.values())).values())))
    points = {}
    for label, sides in shown.items():
        mean, axes = principal_axes(np.concatenate(list(sides.values()))) if label in own_axes else common
        points[label] = {side: (values - mean) @ axes for side, values in sides.items()}
    return EmbeddingMap(points, {label: _likeness(e) for label, e in embeddings.items()}, own_axes)


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (d,) of vectors (n, d) and the two directions (d, 2) in which they vary most.

    A direction's largest part is positive, so that its sign is settled.
    """
    mean = vectors.mean(0)
    axes = np.linalg.svd(vectors - mean, full_matrices=False)[2][:2].T
    largest = np.abs(axes).argmax(0)
    return mean, axes * np.sign(axes[largest, np.arange(axes.shape[1])])


def _likeness(e: Embeddings) -> dict[str, float]:
    pictures = {"unsafe": e.unsafe_image, "safe": e.safe_image}
    return {name: float((e.unsafe_text * images).sum(1).mean()) for name, images in pictures.items()}
