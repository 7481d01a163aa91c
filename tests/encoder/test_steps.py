import itertools

import numpy as np
import pytest
import torch

from safeclip.config import Views, load_config
from safeclip.encoder.data import Rows
from safeclip.encoder.group import Group
from safeclip.encoder.load import load_encoder
from safeclip.encoder.steps import Step, epoch_batches, epoch_steps, load_share, prefetch, preserved_rows
from safeclip.encoder.teacher import PRESERVED
from tests.encoder.quadruplets import render_quadruplets


def test_an_epochs_batches_are_a_permutation_of_seed_and_epoch():
    one = epoch_batches(103, 10, seed=1, epoch=4)
    assert one.shape == (10, 10)
    assert len(set(one.ravel())) == 100
    assert np.array_equal(one, epoch_batches(103, 10, seed=1, epoch=4))
    assert not np.array_equal(one, epoch_batches(103, 10, seed=1, epoch=5))
    assert not np.array_equal(one, epoch_batches(103, 10, seed=2, epoch=4))


@pytest.mark.parametrize(("rows", "count"), [(10, 4), (3, 8), (7, 7)])
def test_safe_pairs_join_steps_in_turn_each_as_often_as_the_others(rows, count):
    taken = np.concatenate([preserved_rows(rows, count, seed=1, step=step) for step in range(rows)])
    assert np.array_equal(np.bincount(taken), [count] * rows)
    for turn in range(count):
        assert set(taken[turn * rows : (turn + 1) * rows]) == set(range(rows))
    assert np.array_equal(preserved_rows(rows, count, 1, step=2), preserved_rows(rows, count, 1, step=2))
    assert not np.array_equal(taken, np.concatenate([preserved_rows(rows, count, 2, step=s) for s in range(rows)]))


def test_without_safe_pairs_none_join():
    assert len(preserved_rows(0, 8, seed=1, step=5)) == 0


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda x: x * x, range(20), threads=3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda x: 1 // x, [1, 0, 1]))


def test_an_epochs_steps_go_on_from_those_of_the_epoch_before():
    train = load_config("ray_config.yaml", "embedded", ["train.batch=4"]).train
    numbers = [step.number for epoch in range(3) for step in epoch_steps(11, 5, train, seed=1, epoch=epoch)]
    assert numbers == list(range(6))


@pytest.mark.parametrize("views", [None, Views(share=0.5, zoom=0.2, shift=0.1)])
def test_the_shares_of_two_workers_are_the_share_of_one(views):
    encoder = load_encoder("world:encoder")
    table = render_quadruplets(9, seed=4)
    pairs = table.select(["id", "safe_caption", "safe_image"])
    rows = {"train": Rows(table, encoder), PRESERVED: Rows(pairs, encoder)}
    step = Step(3, np.array([5, 0, 8, 2]), np.array([1, 7]))
    whole = load_share(step, rows, Group(), views, seed=2)
    one, two = (load_share(step, rows, Group(rank, 2), views, seed=2) for rank in range(2))
    ends = np.cumsum([0, 4, 4, 2])
    for name in ("tokens", "pixels"):
        joined = []
        for start, end in itertools.pairwise(ends):  # safe items, unsafe ones, safe pairs
            half = slice(start // 2, end // 2)
            joined += [getattr(one, name)[half], getattr(two, name)[half]]
        assert torch.equal(torch.cat(joined), getattr(whole, name))
    plain = load_share(step, rows, Group(), None, seed=2)
    assert torch.equal(plain.pixels, whole.pixels) == (views is None)
