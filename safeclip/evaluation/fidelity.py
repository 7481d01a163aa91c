"""How well drawn pictures fit their prompts, and how near they come to given pictures, by features of any encoder."""

from typing import Any

import numpy as np


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Returns the CLIP score of each picture and its text, from 0 to 100: 100 · max(0, cosine).

    Hessel et al., 2021, "CLIPScore", section 3, as it is usual since: with the weight 100 in the place of their 2.5,
    and without "A photo depicts" before the text.

    Args:
        images: embeddings of pictures (n, d), of unit length.
        texts: embeddings of their texts (n, d), of unit length.

    Returns:
        float64 array of shape (n,).
    """
    return 100 * np.clip((images.astype(np.float64) * texts).sum(1), 0, 1)


def frechet_distance(real: np.ndarray, drawn: np.ndarray) -> float:
    """Returns the squared Fréchet distance between the normal distributions that fit two sets of features.

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), after Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule".
    Inception's features, which they use, lie close to ImageNet's classes, and the figure may follow these where
    people see no difference; those of a CLIP do so less (Kynkäänniemi et al., 2023, "The Role of ImageNet Classes in
    Fréchet Inception Distance"). The statistic is biased, and the bias depends on the number of pictures: figures
    compare only at the same number.

    Args:
        real: features of given pictures (n, d).
        drawn: features of drawn ones (m, d).

    Returns:
        The distance; 0 where both have the same mean and covariance.

    Raises:
        ValueError: a set has no more rows than columns, so that its covariance has not full rank.
    """
    # These take seconds to import, and no process but the one that writes figures needs them.
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    width = real.shape[1]
    if min(len(real), len(drawn)) <= width:
        raise ValueError(f"{len(real)} and {len(drawn)} pictures are too few for {width} dimensions")
    features: Any = torch.nn.Identity()  # in the place of Inception: what is given are features
    features.num_features = width
    metric = FrechetInceptionDistance(features)
    for rows, is_real in ((real, True), (drawn, False)):
        metric.update(torch.from_numpy(rows.astype(np.float64)), real=is_real)
    return max(0.0, float(metric.compute()))  # rounding may leave a little less than nothing


def frechet_figures(real: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Returns `frechet_distance` without an interval, or `notes` with a sentence on why it is missing.

    Args:
        real: features of given pictures (n, d).
        drawn: features of drawn ones (n, d).
    """
    count, width = drawn.shape
    if count <= width:
        return {
            "notes": [
                "frechet_distance is missing: it needs more pictures of safe prompts than their features have "
                f"dimensions, and there are {count} pictures and {width} dimensions"
            ]
        }
    return {"frechet_distance": round(frechet_distance(real, drawn), 6)}
