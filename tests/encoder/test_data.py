import numpy as np
import pytest

from safeclip.encoder.data import epoch_batches, prefetch, share_of


def test_an_epochs_batches_are_a_permutation_of_seed_and_epoch():
    one = epoch_batches(103, 10, seed=1, epoch=4)
    assert one.shape == (10, 10)
    assert len(set(one.ravel())) == 100
    assert np.array_equal(one, epoch_batches(103, 10, seed=1, epoch=4))
    assert not np.array_equal(one, epoch_batches(103, 10, seed=1, epoch=5))
    assert not np.array_equal(one, epoch_batches(103, 10, seed=2, epoch=4))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_shares_are_the_batch_in_order(workers):
    batch = epoch_batches(103, 10, seed=1, epoch=4)[3]
    assert np.array_equal(np.concatenate([share_of(batch, rank, workers) for rank in range(workers)]), batch)


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda x: x * x, range(20), threads=3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda x: 1 // x, [1, 0, 1]))
