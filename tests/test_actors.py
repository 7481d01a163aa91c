import os
import signal

import pytest
import ray.exceptions

from safeclip import actors
from safeclip.actors import map_rows
from safeclip.config import Resources


class Adds:
    """Adds to a number, and dies of the number 3."""

    def __init__(self, amount, marks):
        self.amount, self.marks = amount, marks

    def __call__(self, row):
        if row["number"] == 3:
            with open(f"{self.marks}/deaths", "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return {"sum": row["number"] + self.amount, "process": os.getpid()}


def test_each_row_is_worked_on_once_by_as_many_actors_as_asked_for(ray_cluster, tmp_path):
    rows = [{"number": number} for number in (0, 1, 2, 4, 5, 6)]
    found = map_rows(rows, Adds, (10, str(tmp_path)), Resources(actors=1, cpus=1)).take_all()
    assert sorted(row["sum"] for row in found) == [10, 11, 12, 14, 15, 16]
    assert len({row["process"] for row in found}) == 1


def test_a_row_that_kills_whoever_works_on_it_ends_the_work(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(actors, "MOST_DEATHS", 1)
    with pytest.raises(ray.exceptions.RayError, match="died"):
        map_rows([{"number": 3}], Adds, (10, str(tmp_path)), Resources(actors=1, cpus=1)).take_all()
    assert (tmp_path / "deaths").read_text() == "xx"
