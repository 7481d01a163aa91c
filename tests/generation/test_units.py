import os
import signal
from functools import partial

import pyarrow as pa
import pytest

from safeclip.artifacts import Folder, Stage
from safeclip.config import Resources
from safeclip.generation.units import plan_units, remove_others, run_units, statistics_of, summary_of, write_unit

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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("source")))
    units = []
    for unit in range(4):
        rows = [{"id": f"{unit}-{i}", "number": 3 * unit + i, "reject": None} for i in range(3)]
        rows.append({"id": f"{unit}-x", "number": 0, "reject": "rejected before"})
        units.append(write_unit(folder, f"{unit:05d}.parquet", _table(rows)))
    return folder, {"units": units}


def _run(place, source, actors=2, **more):
    folder, units = place if isinstance(place, Folder) else Folder(str(place)), plan_units(source[1], 50)
    folder.make()
    return run_units(Stage(folder, "key"), units, partial(Square, 50, **more), source[0], Resources(actors=actors))


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, source, tmp_path_factory):
    """Where two actors have done all units, and the units' statistics."""
    place = tmp_path_factory.mktemp("undisturbed")
    return place, _run(place, source)


def test_every_accepted_row_is_worked_on_once_and_counted(undisturbed):
    place, units = undisturbed
    rows = [r for u in units for r in Folder(str(place)).read_table(u["name"]).to_pylist()]
    assert [r["number"] for r in rows] == [n**2 for n in range(12)]
    summary = summary_of(units)
    assert (summary["rows"], summary["accepted"]) == (12, 8)
    assert summary["rejected"] == {"too large": 4}


def test_result_does_not_depend_on_the_number_of_actors(undisturbed, source, tmp_path):
    assert _run(tmp_path, source, actors=1) == undisturbed[1]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_work_goes_on_where_it_was_cut_off(undisturbed, source, tmp_path, request, kind):
    marks, (place, first) = tmp_path / "marks", undisturbed
    marks.mkdir()
    out = Folder(request.getfixturevalue("s3") if kind == "s3" else str(tmp_path / "out"))
    out.make()
    for number, unit in enumerate(first):
        if number != 2:
            out.write(unit["name"], b"damaged" if number == 1 else (place / unit["name"]).read_bytes())
    assert _run(out, source, marks=str(marks)) == first
    assert out.files() == sorted(unit["name"] for unit in first)
    workers = {file.name: len(file.read_text().split()) for file in marks.iterdir()}
    assert workers == {"1-0": 1, "2-0": 1}


def test_units_of_other_settings_are_others_and_the_earlier_ones_are_removed(source, tmp_path):
    folder = Folder(str(tmp_path))
    first, other = ([unit.target for unit in plan_units(source[1], limit)] for limit in (50, 5))
    assert not set(first) & set(other)
    units = {name: write_unit(folder, name, _table([])) for name in [*first, *other]}
    remove_others(folder, [units[name] for name in other])
    assert folder.files(".parquet") == sorted(other)


def test_a_unit_whose_footer_is_damaged_is_not_done(tmp_path):
    folder = Folder(str(tmp_path))
    statistics = write_unit(folder, "a.parquet", _table([{"id": "a", "number": 1, "reject": None}]))
    assert statistics_of(folder, ["a.parquet", "b.parquet"]) == {"a.parquet": statistics}
    data = folder.read("a.parquet")
    size = int.from_bytes(data[-8:-4], "little")
    folder.write("a.parquet", data[: -8 - size] + b"\xff" * size + data[-8:])
    with pytest.raises(OSError, match="deserialize"):
        folder.read_table("a.parquet")
    assert statistics_of(folder, ["a.parquet", "b.parquet"]) == {}


def test_a_killed_actor_costs_nothing_but_its_unit(undisturbed, source, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    disturbed = _run(tmp_path / "out", source, marks=str(marks), dies_at=6)
    assert (marks / "died").exists()
    assert disturbed == undisturbed[1]
