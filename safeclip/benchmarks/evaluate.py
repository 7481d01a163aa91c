"""The ranking that recalls are made of, beside the matrix products in it and nothing else.

Both work on the same queries and gallery in the same blocks, by float32 products of the same shapes, in as many
threads. A query's target is about as similar to it as the best of the other items is by chance, so that half of the
queries find theirs first and the rest has to look deeper.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from safeclip.benchmarks.side_by_side import compared, peak_memory_gib, take_turns
from safeclip.evaluation.ranking import BLOCK, Ranking, rank_targets

FIRST = 3  # results kept for each query, as the report keeps


def compare_ranking(queries: int, items: int, width: int, repeats: int) -> dict[str, Any]:
    """Measures `ranking` and `matmul` in turn.

    Args:
        queries: how many.
        items: of the gallery.
        width: of the vectors.
        repeats: turns of each.

    Returns:
        The layout of every benchmark; `ranking/matmul` is the ratio, `peak_gib` the most memory that this process
        has held, its libraries and the vectors included, `r@1` what the ranking found.
    """
    asked, gallery, targets = _vectors(queries, items, width)
    threads = len(os.sched_getaffinity(0))
    found: list[Ranking] = []

    def ranking() -> None:
        found[:] = [rank_targets(asked, gallery, targets, min(FIRST, items), threads=threads)]

    runs = take_turns({"ranking": ranking, "matmul": lambda: _multiply(asked, gallery, threads)}, repeats)
    figures = {
        "peak_gib": peak_memory_gib(),
        "r@1": round(float((found[0].rank == 0).mean()), 4),
        "queries": queries,
        "items": items,
        "width": width,
        "threads": threads,
    }
    return compared(runs, "s", [("ranking", "matmul")], figures)


def _multiply(queries: np.ndarray, gallery: np.ndarray, threads: int) -> None:
    """Multiplies all queries with the gallery in blocks, and keeps nothing of it."""

    def part(start: int) -> None:
        some = queries[start : start + BLOCK]
        products = np.empty((len(some), min(BLOCK, len(gallery))), np.float32)
        for first in range(0, len(gallery), BLOCK):
            items = gallery[first : first + BLOCK]
            np.matmul(some, items.T, out=products[:, : len(items)])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(0, len(queries), BLOCK)))


def _vectors(queries: int, items: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns queries, gallery and targets; float32, made in parts so that no copy of a side is in memory."""
    random = np.random.default_rng(0)
    gallery, asked = np.empty((items, width), np.float32), np.empty((queries, width), np.float32)
    targets = random.integers(items, size=queries)
    similarity = np.sqrt(2 * np.log(max(items, 2)) / width)  # about the largest of so many independent ones
    for start in range(0, items, BLOCK):
        gallery[start : start + BLOCK] = _directions(random, min(BLOCK, items - start), width)
    for start in range(0, queries, BLOCK):
        some = slice(start, start + BLOCK)
        near = min(similarity, 1.0) * gallery[targets[some]]
        others = _directions(random, len(near), width)
        asked[some] = _unit(near + np.sqrt(max(0.0, 1 - similarity**2)) * others)
    return asked, gallery, targets


def _directions(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    return _unit(random.standard_normal((count, width), dtype=np.float32))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
