import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from safeclip.artifacts import Folder
from safeclip.encoder.data import Rows, share_rows
from safeclip.encoder.load import load_encoder
from safeclip.encoder.teacher import Unit
from safeclip.errors import UserError
from safeclip.records import QUADRUPLET
from tests.encoder.quadruplets import render_quadruplets
from tests.processes import wait_until


class Small:
    """An encoder, as far as rows that are not read need one."""

    picture_shape = (3, 8, 8)


def share(run: Folder, temporary: Path, host: str = "here") -> dict[str, Rows]:
    """Shares the rows of a run, as the only worker of a machine of this name, by way of a temporary folder."""
    tempfile.tempdir, socket.gethostname = str(temporary), lambda: host
    folders = {split: run / split for split in ("train", "validation")}
    units = {split: [Unit(split, "rows.parquet", f"{split}.parquet")] for split in folders}
    return share_rows(folders, run / "teacher", units, "key", Small(), 0, 1)


@pytest.fixture
def as_before(monkeypatch):
    """Sets back at the end what `share` sets."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(socket, "gethostname", socket.gethostname)


def write_run(run: Folder) -> Folder:
    """Writes a row for each split, and what stands for the teacher's embedding of it."""
    row = dict.fromkeys(QUADRUPLET.names) | {"id": "1", "unsafe_image": b"picture"}
    (run / "teacher").make()
    for split in ("train", "validation"):
        (run / split).make()
        (run / split).write_table("rows.parquet", pa.Table.from_pylist([row], QUADRUPLET))
        (run / "teacher").write_table(f"{split}.parquet", pa.table({"id": ["1"]}))
    return run


def names_in(folder: Path) -> list[str]:
    """Names of the machines' copies of rows."""
    return sorted(path.name for path in folder.glob("*/*") if path.suffix in (".arrow", ".pixels"))


def test_the_machines_copies_of_rows_are_gone_when_they_are_open_or_writing_fails(tmp_path, as_before):
    run, temporary = write_run(Folder(str(tmp_path / "run"))), tmp_path / "temporary"
    temporary.mkdir()
    assert share(run, temporary)["train"].table["unsafe_image"].to_pylist() == [b"picture"]
    assert not names_in(temporary)
    (run / "teacher").write_table("validation.parquet", pa.table({"id": ["2"]}))
    with pytest.raises(UserError, match="not of these rows"):  # when those of the other split are written
        share(run, temporary)
    assert not names_in(temporary)


def test_trainings_leave_each_others_copies_alone_and_remove_those_of_killed_ones(tmp_path, as_before):
    one, two = (write_run(Folder(str(tmp_path / name))) for name in ("one", "two"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    slow = Path((one / "teacher").path("validation.parquet"))
    slow.unlink()
    os.mkfifo(slow)  # whoever reads it waits
    started = torch.multiprocessing.spawn(_share, (one, temporary), join=False, daemon=True)
    process = started.processes[0]
    try:
        wait_until(lambda: len(names_in(temporary)) == 2, process.is_alive)
        before = names_in(temporary)
        share(two, temporary)  # of the same settings in another run
        assert names_in(temporary) == before
        slow.rename(slow.with_suffix(".fifo"))
        (one / "teacher").write_table("validation.parquet", pa.table({"id": ["1"]}))
        share(one, temporary, "there")  # the same training on another machine, if the folder is shared
        assert names_in(temporary) == before
    finally:
        process.kill()
        process.join()
    assert names_in(temporary) == before
    share(two, temporary, "there")
    assert names_in(temporary) == before
    share(two, temporary)
    assert not names_in(temporary)


def _share(_: int, run: Folder, temporary: Path) -> None:
    share(run, temporary)


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
