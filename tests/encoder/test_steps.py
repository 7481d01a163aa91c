import numpy as np
import pytest

from safeclip.encoder.steps import epoch_batches, prefetch, preserved_rows


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
