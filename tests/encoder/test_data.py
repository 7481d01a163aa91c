import numpy as np
import pyarrow as pa
import pytest

from safeclip.encoder.data import Rows, epoch_batches, kept_rows, prefetch, share_of
from safeclip.encoder.load import load_encoder
from tests.encoder.quadruplets import render_quadruplets


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


@pytest.mark.parametrize(("rows", "count"), [(10, 4), (3, 8), (7, 7)])
def test_safe_pairs_join_steps_in_turn_each_as_often_as_the_others(rows, count):
    taken = np.concatenate([kept_rows(rows, count, seed=1, step=step) for step in range(rows)])
    assert np.array_equal(np.bincount(taken), [count] * rows)
    for turn in range(count):
        assert set(taken[turn * rows : (turn + 1) * rows]) == set(range(rows))
    assert np.array_equal(kept_rows(rows, count, 1, step=2), kept_rows(rows, count, 1, step=2))
    assert not np.array_equal(taken, np.concatenate([kept_rows(rows, count, 2, step=s) for s in range(rows)]))


def test_without_safe_pairs_none_join():
    assert len(kept_rows(0, 8, seed=1, step=5)) == 0


def test_prefetch_keeps_the_order_and_passes_errors_on():
    assert list(prefetch(lambda x: x * x, range(20), threads=3)) == [x * x for x in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda x: 1 // x, [1, 0, 1]))


def test_rows_that_lie_in_parts_are_the_same_rows():
    table, encoder = render_quadruplets(7, seed=3), load_encoder("world:encoder")
    parts = Rows(pa.concat_tables([table[4:], table[:0], table[:1], table[1:4], table[:0]]), encoder)
    chosen = np.array([6, 0, 3, 3, 5])
    found, expected = parts.batch(chosen), Rows(table, encoder).batch(chosen)
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.pixels, expected.pixels)
    assert len(parts.batch(chosen[:0])) == 0


def test_more_pictures_than_an_arrow_array_holds_can_be_read():
    table, encoder = render_quadruplets(2, seed=3).sort_by("id"), load_encoder("world:encoder")
    pictures = table["safe_image"].to_pylist()
    data = np.zeros(2**30, np.uint8)  # of which no page is touched but the last
    data[-len(pictures[0]) :] = np.frombuffer(pictures[0], np.uint8)
    offsets = np.array([0, len(data) - len(pictures[0]), len(data)], np.int32)
    cells = pa.Array.from_buffers(pa.binary(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    part = table.select(["safe_caption"]).append_column("safe_image", cells)
    large = pa.concat_tables([part.append_column("id", [[f"{n}-a", f"{n}-b"]]) for n in range(3)])
    found = Rows(large, encoder).batch(np.array([1, 5]))
    assert np.array_equal(found.pixels[0], Rows(table, encoder).batch(np.array([0])).pixels[0])
    assert np.array_equal(found.pixels[0], found.pixels[1])
