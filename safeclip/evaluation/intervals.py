"""Bootstrap intervals of means (Efron, 1979: the percentile method)."""

import numpy as np


def bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Resamples rows with replacement and takes their means.

    The rows drawn depend on the number of rows and the seed only, so that means of two encoders on the same queries
    are paired.

    Args:
        values: shape (n, m), one row a query, one column a measure.
        resamples: how many times.
        seed: of the draw.

    Returns:
        float64 array of shape (resamples, m).

    Raises:
        ValueError: there are no rows.
    """
    if len(values) == 0:
        raise ValueError("there is nothing to resample")
    random = np.random.default_rng(seed)
    n = len(values)
    weights = (np.bincount(random.integers(n, size=n), minlength=n) for _ in range(resamples))
    return np.stack([w @ values.astype(np.float64) / n for w in weights])


def interval(means: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Returns the central interval of resampled means, shape (m, 2): lower and upper bounds."""
    tail = (1 - level) / 2
    return np.quantile(means, [tail, 1 - tail], axis=0).T


def with_intervals(
    measures: dict[str, np.ndarray], resamples: int, seed: int
) -> dict[str, float | int | list[float]]:
    """Returns the mean of each measure, its 95% interval as `<name>_ci`, and the number of queries as `n`.

    Args:
        measures: one value a query for each name, shape (n,).
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    values = np.stack(list(measures.values()), axis=1).astype(np.float64)
    bounds = interval(bootstrap_means(values, resamples, seed))
    found: dict[str, float | int | list[float]] = {}
    for name, mean, (lower, upper) in zip(measures, values.mean(0), bounds, strict=True):
        found[name] = round(float(mean), 6)
        found[f"{name}_ci"] = [round(float(lower), 6), round(float(upper), 6)]
    return {**found, "n": len(values)}
