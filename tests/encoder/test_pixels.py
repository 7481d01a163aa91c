import os
from pathlib import Path

import numpy as np
import pytest

from safeclip.encoder.data import Rows
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import decode_image
from safeclip.encoder.pixels import PixelStore
from safeclip.errors import UserError
from tests.encoder.quadruplets import render_quadruplets

SHAPE = (3, 8, 8)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


def test_what_one_worker_writes_another_reads(tmp_path):
    one, other = (PixelStore(tmp_path / "p.pixels", SHAPE) for _ in range(2))
    (tmp_path / "p.pixels").unlink()
    for number in (7, 2):
        one.write(number, picture(number))
    found = np.empty(SHAPE, np.uint8)
    assert [other.read(number, found) for number in (0, 1, 3, 6, 8)] == [False] * 5
    for number in (2, 7):
        assert other.read(number, found)
        assert np.array_equal(found, picture(number))


def test_a_picture_that_was_written_in_part_is_not_there(tmp_path):
    path = tmp_path / "p.pixels"
    store = PixelStore(path, SHAPE)
    store.write(0, picture(0))
    with path.open("r+b") as file:
        file.truncate(100)
    assert not store.read(0, np.empty(SHAPE, np.uint8))


def test_a_picture_that_another_worker_writes_meanwhile_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    store, other = (PixelStore(tmp_path / "p.pixels", SHAPE) for _ in range(2))
    other.write(1, picture(1))
    found = np.zeros(SHAPE, np.uint8)

    def and_write(read):
        def both(*arguments):
            count_or_data = read(*arguments)
            other.write(0, picture(0))
            return count_or_data

        return both

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, and_write(getattr(os, name)))
    assert not store.read(0, found) or np.array_equal(found, picture(0))
    assert store.read(0, found)
    assert np.array_equal(found, picture(0))


def test_a_full_disk_is_told_once_and_costs_nothing_but_time(encoder, capsys):
    table = render_quadruplets(4, seed=1)
    rows = Rows(table, encoder, PixelStore(Path("/dev/full"), encoder.picture_shape))
    for _ in range(2):
        assert np.array_equal(rows.batch(np.arange(4)).pixels, Rows(table, encoder).batch(np.arange(4)).pixels)
    assert capsys.readouterr().out.count("no room in /dev") == 1


def test_a_batch_is_what_the_encoder_makes_of_rows_and_is_resized_once(encoder, tmp_path):
    table = render_quadruplets(6, seed=2).sort_by("id")
    rows = Rows(table.take([4, 0, 5, 1, 3, 2]), encoder, PixelStore(tmp_path / "p.pixels", encoder.picture_shape))
    chosen = np.array([5, 2, 3])
    images = [data for side in ("safe", "unsafe") for data in table[f"{side}_image"].take(chosen).to_pylist()]
    wanted = np.stack([encoder.resize_image(decode_image(data)) for data in images])
    assert np.array_equal(rows.batch(chosen).pixels, wanted)
    broken = rows.table
    for side in ("safe", "unsafe"):
        broken = broken.set_column(broken.column_names.index(f"{side}_image"), f"{side}_image", [[b"none"] * 6])
    rows = Rows(broken, encoder, rows.resized)
    assert np.array_equal(
        rows.batch(chosen[::-1]).pixels, wanted.reshape(2, 3, *wanted.shape[1:])[:, ::-1].reshape(wanted.shape)
    )
    with pytest.raises(UserError, match=f"row {table['id'][0]}: safe_image does not decode"):
        rows.batch(np.array([5, 0]))
