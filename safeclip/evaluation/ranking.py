"""Ranking of a gallery for many queries, in blocks: as fast as the matrix products allow, and exact.

Similarities are exact: unit vectors are rounded to multiples of 2⁻²⁶, whose dot products float64 holds without
rounding in any order of summation. So equal items tie exactly, and neither the size of blocks nor the machine changes
a rank. The rounding (1.5·10⁻⁸) is finer than that of float32 embeddings.

Products in float32 decide wherever the distance to what they are compared with exceeds the most that they can err by
(`error_bound`). The few pairs within it are decided by exact products.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

BLOCK = 2048  # queries, and gallery items, compared at once
_GRID = 2.0**26
_PAIRS = 256  # pairs multiplied exactly at once; what they need fits a core's cache
_FEW = 64  # one in so many pairs of a block: with more, the whole block's exact product is cheaper


@dataclass(frozen=True)
class Ranking:
    """What n queries find in a gallery."""

    rank: np.ndarray
    """int64 (n,): how many items come before the target; 0 is the first place."""
    first: np.ndarray
    """int64 (n, k): the first k items of the gallery, best first."""


def exact_similarities(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Returns the dot products of unit vectors, shape (n, m), float64; see the module's text."""
    return _on_grid(queries) @ _on_grid(gallery).T


def error_bound(width: int) -> float:
    """Returns by how much a float32 product of unit vectors may differ from their exact similarity.

    The sum of d products errs by at most d·u/(1 − d·u) times the product of the lengths, u = 2⁻²⁴, in any order and
    with or without fused steps (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). The rounding of
    both vectors to float32 and of a threshold adds 4 u at most, that to the grid √d·2⁻²⁶. A hundredth more covers
    lengths of up to 1.001 and widths of up to 100,000.

    Args:
        width: of the vectors, d.
    """
    return 1.01 * ((width + 4) * 2.0**-24 + np.sqrt(width) * 2.0**-26)


def rank_targets(
    queries: np.ndarray,
    gallery: np.ndarray,
    targets: np.ndarray,
    first: int = 1,
    block: int = BLOCK,
    threads: int | None = None,
) -> Ranking:
    """Ranks a gallery for each query by similarity; among equal items the earlier one comes first.

    Reads both sides in parts and never holds more than `block` × `block` similarities, so either side may be a
    memory-mapped array that does not fit in memory.

    Args:
        queries: (n, d), rows of unit length.
        gallery: (m, d), rows of unit length.
        targets: int (n,), the index in the gallery of what each query ought to find.
        first: how many first results to return, at most m.
        block: queries, and gallery items, compared at once.
        threads: how many parts of the queries are ranked at the same time; one a CPU unless given. Each of them takes
            50 MB with blocks of the default size, and more where most of the gallery ties.

    Raises:
        ValueError: shapes do not fit, a target is not in the gallery, or a vector is not of unit length.
    """
    _check(queries, gallery, targets, block)
    if not 1 <= first <= len(gallery):
        raise ValueError(f"first must be between 1 and the gallery's {len(gallery)} items, not {first}")

    def rank_part(start: int) -> Ranking:
        some = slice(start, start + block)
        return _rank_part(queries[some], gallery, targets[some], first, block)

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(rank_part, range(0, len(queries), block)))
    return Ranking(np.concatenate([p.rank for p in parts]), np.concatenate([p.first for p in parts]))


def _check(queries: np.ndarray, gallery: np.ndarray, targets: np.ndarray, block: int) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (n, d) and (m, d)")
    if targets.shape != (len(queries),) or not len(queries):
        raise ValueError(
            f"{len(queries)} queries need as many targets, and at least one; targets are {targets.shape}"
        )
    if targets.min() < 0 or targets.max() >= len(gallery):
        raise ValueError(f"targets must lie in the gallery of {len(gallery)}")
    for name, vectors in (("queries", queries), ("gallery", gallery)):
        for start in range(0, len(vectors), block):
            part = vectors[start : start + block]
            lengths = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
            if not (np.abs(lengths - 1) <= 1e-3).all():
                told = f"from {lengths.min()} to {lengths.max()}"
                raise ValueError(f"{name} must be of unit length; from row {start} on, the lengths go {told}")


def _rank_part(queries: np.ndarray, gallery: np.ndarray, targets: np.ndarray, first: int, block: int) -> Ranking:
    search = _Search(queries, targets, gallery[targets], first, min(block, len(gallery)))
    for start in range(0, len(gallery), block):
        search.see(start, gallery[start : start + block])
    return Ranking(search.rank, search.where)


class _Search:
    """What some queries have found in the items of a gallery that they have seen so far."""

    def __init__(self, queries: np.ndarray, targets: np.ndarray, wanted: np.ndarray, first: int, width: int) -> None:
        n = len(queries)
        self.single, self.queries, self.targets = _single(queries), _on_grid(queries), targets
        self.wanted = np.vecdot(self.queries, _on_grid(wanted))
        self.margin = error_bound(queries.shape[1])
        self.low, self.high = _single(self.wanted - self.margin), _single(self.wanted + self.margin)
        self.rank = np.zeros(n, np.int64)
        self.best, self.where = np.full((n, first), -np.inf), np.full((n, first), -1)
        self.products = np.empty((n, width), np.float32)
        self.masks = np.zeros((2, n, -(-width // 8) * 8), bool)  # rows of whole words, see `_words`

    def see(self, start: int, items: np.ndarray) -> None:
        """Goes through the next items of the gallery, the first of which has the number `start`."""
        products = np.matmul(self.single, _single(items).T, out=self.products[:, : len(items)])
        self.masks[:, :, len(items) :] = False  # of the block before, where this one is the shorter last
        largest = products.max(1)  # one look at all tells which rows are worth a second
        self._count(start, items, products, np.flatnonzero(largest >= self.low))
        floor = self.best[:, -1] if start else _kth_at_least(products, self.best.shape[1]) - self.margin
        floor = _single(floor - self.margin)
        self._keep_first(start, items, products, np.flatnonzero(largest >= floor), floor)

    def _count(self, start: int, items: np.ndarray, products: np.ndarray, rows: np.ndarray) -> None:
        """Adds to the ranks of some rows how many of the items come before the target."""
        some = products[rows]
        above, near = self.masks[:, : len(rows)]
        np.greater(some, self.high[rows, None], out=above[:, : len(items)])
        np.greater_equal(some, self.low[rows, None], out=near[:, : len(items)])
        self.rank[rows] += np.bitwise_count(_words(above)).sum(1, dtype=np.int64)
        np.bitwise_xor(_words(near), _words(above), out=_words(near))
        rows, columns = _places(near, rows)
        similarity, wanted = _exact(self.queries, items, rows, columns), self.wanted[rows]
        earlier = start + columns < self.targets[rows]
        before = (similarity > wanted) | ((similarity == wanted) & earlier)
        self.rank += np.bincount(rows[before], minlength=len(self.rank))

    def _keep_first(
        self, start: int, items: np.ndarray, products: np.ndarray, rows: np.ndarray, floor: np.ndarray
    ) -> None:
        """Takes those of the items that belong to the first results of some rows."""
        reached = self.masks[0, : len(rows)]
        np.greater_equal(products[rows], floor[rows, None], out=reached[:, : len(items)])
        rows, columns = _places(reached, rows)
        values = _exact(self.queries, items, rows, columns)
        _merge(self.best, self.where, rows, start + columns, values)


def _merge(best: np.ndarray, where: np.ndarray, rows: np.ndarray, items: np.ndarray, values: np.ndarray) -> None:
    """Puts the k largest values of each row and their items in place, those of equal values in the items' order.

    Args:
        best: (n, k), the largest so far, all of earlier items.
        where: (n, k), their items.
        rows: of each candidate.
        items: of each candidate.
        values: of each candidate.
    """
    better = values > best[rows, -1]
    touched, rows = np.unique(rows[better], return_inverse=True)
    k = best.shape[1]
    rows = np.concatenate([np.repeat(np.arange(len(touched)), k), rows])
    values = np.concatenate([best[touched].ravel(), values[better]])
    items = np.concatenate([where[touched].ravel(), items[better]])
    order = np.lexsort((items, -values, rows))
    kept = order[np.searchsorted(rows[order], np.arange(len(touched)))[:, None] + np.arange(k)]
    best[touched], where[touched] = values[kept], items[kept]


def _kth_at_least(values: np.ndarray, k: int) -> np.ndarray:
    """Returns, for each row, a number that at least k of its values reach: -inf where there are fewer.

    Maxima of k or more disjoint groups of columns stand for the columns; halving them again and again reads each
    value once, where sorting would read it often.
    """
    while values.shape[1] >= 2 * max(k, 32):
        half = values.shape[1] // 2
        values = np.maximum(values[:, :half], values[:, half : 2 * half])
    if values.shape[1] < k:
        return np.full(len(values), -np.inf)
    return np.partition(values, -k, axis=1)[:, -k].astype(np.float64)


def _exact(queries: np.ndarray, items: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the exact similarities of pairs of a query and an item, by their numbers.

    Args:
        queries: (n, d), on the grid.
        items: (m, d), as they are.
        rows: of the pairs' queries.
        columns: of the pairs' items.
    """
    if len(rows) * _FEW > len(queries) * len(items):
        return (queries @ _on_grid(items).T)[rows, columns]
    found = np.empty(len(rows))
    for i in range(0, len(rows), _PAIRS):
        some = slice(i, i + _PAIRS)
        found[some] = np.vecdot(queries[rows[some]], _on_grid(items[columns[some]]))
    return found


def _on_grid(vectors: np.ndarray) -> np.ndarray:
    rounded = vectors.astype(np.float64)
    rounded *= _GRID
    np.rint(rounded, out=rounded)
    rounded /= _GRID
    return rounded


def _single(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _words(mask: np.ndarray) -> np.ndarray:
    """Returns a mask (n, 8 w) eight columns at a time, which counts and searches far faster."""
    return mask.view(np.uint64)


def _places(mask: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of rows, and the columns, where a mask (n, 8 w) of these rows is true."""
    some = np.flatnonzero(np.bitwise_or.reduce(_words(mask), axis=1))
    within, words = np.nonzero(_words(mask)[some])
    which, byte = np.nonzero(mask.reshape(len(mask), mask.shape[1] // 8, 8)[some[within], words])
    return rows[some[within[which]]], 8 * words[which] + byte
