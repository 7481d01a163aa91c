import os
import signal
import time
from functools import partial

import pyarrow as pa
import pytest

from safeclip.artifacts import Folder, Stage
from safeclip.config import Resources
from safeclip.errors import UserError
from safeclip.generation.units import plan_units, remove_others, run_units, summary_of, unit_statistics, write_unit
from tests.processes import wait_until

ROWS = pa.schema([("id", pa.string()), ("number", pa.int64()), ("reject", pa.string())])


def _table(rows):
    return pa.Table.from_pylist(rows, ROWS)


class Square:
    """Squares numbers; rejects those over a limit; says who worked in a file of its own; may die once."""

    def __init__(self, limit, dies_at=None, marks=None):
        self.limit, self.dies_at, self.marks = limit, dies_at, marks

    def __call__(self, table):
        rows = table.to_pylist()
        if self.marks:
            with open(f"{self.marks}/{rows[0]['id']}", "a") as file:
                file.write(f"{os.getpid()}\n")
            if self.dies_at == rows[0]["number"] and not os.path.exists(f"{self.marks}/died"):
                open(f"{self.marks}/died", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        for row in rows:
            row["number"] **= 2
            row["reject"] = "too large" if row["number"] > self.limit else None
        return _table(rows)


class Late(Square):
    """Is ready at once in the process that makes one first, and in another while that one works."""

    def __init__(self, limit, marks):
        super().__init__(limit, marks=marks)
        try:
            os.mkdir(f"{marks}/first")
        except FileExistsError:
            wait_until(lambda: os.path.exists(f"{marks}/working"))
            os.mkdir(f"{marks}/late")

    def __call__(self, table):
        os.makedirs(f"{self.marks}/working", exist_ok=True)
        wait_until(lambda: os.path.exists(f"{self.marks}/late"))
        time.sleep(2)
        return super().__call__(table)


@pytest.fixture
def source(tmp_path):
    folder = Folder(str(tmp_path / "source"))
    folder.make()
    units = []
    for unit in range(4):
        rows = [{"id": f"{unit}-{i}", "number": 3 * unit + i, "reject": None} for i in range(3)]
        rows.append({"id": f"{unit}-x", "number": 0, "reject": "rejected before"})
        units.append(write_unit(folder, f"{unit:05d}.parquet", _table(rows)))
    return folder, {"units": units}


def _run(tmp_path, name, source, limit=50, actors=2, **more):
    folder = Folder(str(tmp_path / name))
    folder.make()
    units = plan_units(source[1], limit)
    return folder, run_units(
        Stage(folder, "key"), units, partial(Square, limit, **more), source[0], Resources(actors=actors)
    )


def test_every_accepted_row_is_worked_on_once_and_counted(ray_cluster, tmp_path, source):
    folder, units = _run(tmp_path, "out", source)
    rows = [r for u in units for r in folder.read_table(u["name"]).to_pylist()]
    assert [r["number"] for r in rows] == [n**2 for n in range(12)]
    summary = summary_of(units)
    assert (summary["rows"], summary["accepted"]) == (12, 8)
    assert summary["rejected"] == {"too large": 4}


def test_result_does_not_depend_on_the_number_of_actors(ray_cluster, tmp_path, source):
    one, two = (summary_of(_run(tmp_path, str(n), source, actors=n)[1]) for n in (1, 2))
    assert one == two


def test_an_actor_that_is_ready_late_finds_a_unit_left(ray_cluster, tmp_path, source, monkeypatch):
    from ray.data import DataContext

    # By the usual size of blocks there would be room for one task in the object store.
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2**20)
    marks, folder = tmp_path / "marks", Folder(str(tmp_path / "out"))
    marks.mkdir()
    folder.make()
    units = plan_units({"units": source[1]["units"][:2]}, 50)
    run_units(Stage(folder, "key"), units, partial(Late, 50, str(marks)), source[0], Resources(actors=2))
    workers = [(marks / f"{unit}-0").read_text() for unit in range(2)]
    assert workers[0] != workers[1]


def test_work_goes_on_where_it_was_cut_off_and_other_settings_start_anew(ray_cluster, tmp_path, source):
    marks = tmp_path / "marks"
    marks.mkdir()
    folder, first = _run(tmp_path, "out", source, marks=str(marks))
    folder.fs.rm(folder.path(first[2]["name"]))
    folder.write(first[1]["name"], b"damaged")
    _, again = _run(tmp_path, "out", source, marks=str(marks))
    assert again == first
    workers = {file.name: len(file.read_text().split()) for file in marks.iterdir()}
    assert workers == {"0-0": 1, "1-0": 2, "2-0": 2, "3-0": 1}
    _, other = _run(tmp_path, "out", source, limit=5)
    assert not {u["name"] for u in other} & {u["name"] for u in first}
    remove_others(folder, other)
    assert folder.files(".parquet") == sorted(u["name"] for u in other)


def test_a_unit_whose_footer_is_damaged_is_not_done(tmp_path):
    folder = Folder(str(tmp_path))
    statistics = write_unit(folder, "a.parquet", _table([{"id": "a", "number": 1, "reject": None}]))
    assert unit_statistics(folder, "a.parquet") == statistics
    data = folder.read("a.parquet")
    size = int.from_bytes(data[-8:-4], "little")
    folder.write("a.parquet", data[: -8 - size] + b"\xff" * size + data[-8:])
    with pytest.raises(OSError, match="deserialize"):
        folder.read_table("a.parquet")
    assert unit_statistics(folder, "a.parquet") is None


def test_a_killed_actor_costs_nothing_but_its_unit(ray_cluster, tmp_path, source):
    marks = tmp_path / "marks"
    marks.mkdir()
    undisturbed = _run(tmp_path, "undisturbed", source)[1]
    disturbed = _run(tmp_path, "disturbed", source, marks=str(marks), dies_at=6)[1]
    assert (marks / "died").exists()
    assert disturbed == undisturbed


def test_no_write_permission_is_said_in_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        (Folder(str(blocked)) / "stage").make()
