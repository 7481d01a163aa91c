"""What each step of a training takes in: which rows, and a worker's share of them in the form that it passes on.

A step's rows are a function of seed, epoch and step alone; workers share them in equal slices, so the order of rows
does not depend on how many workers there are.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from safeclip.config import Train, Views
from safeclip.encoder.data import Batch, Rows
from safeclip.encoder.group import Group
from safeclip.encoder.teacher import PRESERVED
from safeclip.encoder.views import choose_views, take_views

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Step:
    """The rows of a step, by number, of all workers."""

    number: int
    """Over all epochs."""
    rows: np.ndarray
    """Quadruplets (B,)."""
    preserved: np.ndarray
    """Safe pairs (P,); P may be 0."""


def epoch_steps(quadruplets: int, preserved: int, train: Train, seed: int, epoch: int) -> list[Step]:
    """Returns the steps of an epoch.

    Args:
        quadruplets: how many there are.
        preserved: how many safe pairs there are.
        train: says how many of both a step takes.
        seed: of the order.
        epoch: number of the epoch.
    """
    batches = epoch_batches(quadruplets, train.batch, seed, epoch)
    count = train.preserve.per_step if train.preserve else 0
    numbers = range(epoch * len(batches), (epoch + 1) * len(batches))
    return [
        Step(number, batch, preserved_rows(preserved, count, seed, number))
        for number, batch in zip(numbers, batches, strict=True)
    ]


def epoch_batches(rows: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the row numbers (steps, batch) of an epoch's batches; the rows left over wait for another epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    steps = rows // batch
    return order[: steps * batch].reshape(steps, batch)


def preserved_rows(rows: int, count: int, seed: int, step: int) -> np.ndarray:
    """Returns the row numbers (count,) of the safe pairs that join a step: all of them in turn, shuffled each time.

    Args:
        rows: how many there are; none gives none.
        count: how many a step takes.
        seed: of the order.
        step: number of the step, over all epochs.
    """
    if not rows:
        return np.zeros(0, np.int64)
    places = np.arange(step * count, (step + 1) * count)
    turns = {
        turn: np.random.default_rng([seed, int(turn), 1]).permutation(rows) for turn in np.unique(places // rows)
    }
    return np.array([turns[place // rows][place % rows] for place in places])


def load_share(step: Step, rows: dict[str, Rows], group: Group, views: Views | None, seed: int) -> Batch:
    """Returns a worker's share of a step: its safe items, then its unsafe ones, then those of its safe pairs.

    Args:
        step: whose rows.
        rows: by split, `train` and, where there are safe pairs, `preserve`.
        group: whose share.
        views: how pictures are moved and scaled; None to take them as they are.
        seed: of the views.
    """
    quadruplets, preserved = group.share(step.rows), group.share(step.preserved)
    parts = [rows["train"].batch(quadruplets)]
    if len(preserved):
        parts.append(rows[PRESERVED].batch(preserved))
    batch = Batch.join(parts)
    if views is None:
        return batch
    sides = ((quadruplets, "safe"), (quadruplets, "unsafe"), (preserved, PRESERVED))
    chosen = [choose_views(numbers, views, seed, step.number, side) for numbers, side in sides]
    return Batch(batch.tokens, take_views(batch.pixels, np.concatenate(chosen)))


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Iterator[Result]:
    """Yields `function(item)` in order, computed ahead on threads while the caller is busy."""
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[Result]] = [pool.submit(function, item) for item in islice(source, threads + 1)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(source, 1)]
            yield result
