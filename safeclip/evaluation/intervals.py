"""Intervals of means and medians by bootstrap (Efron, 1979: the percentile method).

A share of outcomes that are all alike has the exact interval (Clopper-Pearson): its bootstrap has no width.
"""

from collections.abc import Iterator

import numpy as np

_TAIL = 0.025  # what a 95% interval leaves out on each side


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
    n = len(values)
    weights = (np.bincount(rows, minlength=n) for rows in _resampled(n, resamples, seed))
    return np.stack([w @ values.astype(np.float64) / n for w in weights])


def _resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    return (random.integers(n, size=n) for _ in range(resamples))


def interval(resampled: np.ndarray) -> np.ndarray:
    """Returns the central 95% interval of resampled figures (resamples, m), shape (m, 2): lower and upper bounds."""
    return np.quantile(resampled, [_TAIL, 1 - _TAIL], axis=0).T


def exact_interval(share: int, n: int) -> tuple[float, float]:
    """Returns the exact 95% interval of a share of n outcomes that are all alike (Clopper and Pearson, 1934).

    Resampling such outcomes gives nothing but the same share again, however few they are. The exact bound is the
    probability with which n outcomes are all alike in 2.5% of cases.

    Args:
        share: 0 or 1.
        n: how many outcomes.
    """
    width = 1 - _TAIL ** (1 / n)
    return (1 - width, 1.0) if share else (0.0, width)


def with_intervals(
    measures: dict[str, np.ndarray], resamples: int, seed: int
) -> dict[str, float | int | list[float]]:
    """Returns the mean of each measure, its 95% interval as `<name>_ci`, and the number of queries as `n`.

    Args:
        measures: one value a query for each name, shape (n,); of a bool array that is the same for each query, the
            interval is the exact one.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    values = np.stack(list(measures.values()), axis=1).astype(np.float64)
    bounds = interval(bootstrap_means(values, resamples, seed))
    found: dict[str, float | int | list[float]] = {}
    for name, mean, (lower, upper) in zip(measures, values.mean(0), bounds, strict=True):
        if measures[name].dtype == bool and mean in (0, 1):
            lower, upper = exact_interval(int(mean), len(values))
        found[name] = round(float(mean), 6)
        found[f"{name}_ci"] = [round(float(lower), 6), round(float(upper), 6)]
    return {**found, "n": len(values)}


def median_with_interval(name: str, values: np.ndarray, resamples: int, seed: int) -> dict[str, object]:
    """Returns the median of some values under a name, and its 95% interval as `<name>_ci`.

    The rows drawn are those of `bootstrap_means`.

    Args:
        name: of the figure.
        values: one a query, shape (n,).
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    medians = np.array([np.median(values[rows]) for rows in _resampled(len(values), resamples, seed)])
    lower, upper = interval(medians[:, None])[0]
    return {name: float(np.median(values)), f"{name}_ci": [round(float(lower), 1), round(float(upper), 1)]}


def paired_differences(
    measures: dict[str, np.ndarray], first: dict[str, np.ndarray], resamples: int, seed: int
) -> dict[str, float | int | list[float]]:
    """Returns by how much the mean of each measure differs from the first's, as `with_intervals` does.

    Queries are resampled with their two values together, so that what makes a query hard for both widens nothing.

    Args:
        measures: one value a query for each name, shape (n,).
        first: of the same names and queries.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    changes = {name: values.astype(np.float64) - first[name] for name, values in measures.items()}
    return with_intervals(changes, resamples, seed)
