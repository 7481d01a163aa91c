import os
import signal
import time

import pytest
import ray.exceptions

from safeclip import actors
from safeclip.actors import map_rows
from safeclip.config import Resources
from safeclip.device import LostGpuError
from tests.processes import wait_until


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


class Late:
    """Is ready at once in the process that makes one first, and in another while that one works."""

    def __init__(self, marks):
        self.marks = marks
        try:
            os.mkdir(f"{marks}/first")
        except FileExistsError:
            wait_until(lambda: os.path.exists(f"{marks}/working"))
            os.mkdir(f"{marks}/late")

    def __call__(self, row):
        os.makedirs(f"{self.marks}/working", exist_ok=True)
        wait_until(lambda: os.path.exists(f"{self.marks}/late"))
        time.sleep(2)
        return {"process": os.getpid()}


def test_an_actor_that_is_ready_late_finds_a_row_left(ray_cluster, tmp_path, monkeypatch):
    from ray.data import DataContext

    # By the usual size of blocks there would be room for one task in the object store.
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2**20)
    rows = [{"number": number} for number in range(2)]
    found = map_rows(rows, Late, (str(tmp_path),), Resources(actors=2)).take_all()
    assert len({row["process"] for row in found}) == 2


def test_a_row_that_kills_whoever_works_on_it_ends_the_work(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(actors, "MOST_DEATHS", 1)
    with pytest.raises(ray.exceptions.RayError, match="died"):
        map_rows([{"number": 3}], Adds, (10, str(tmp_path)), Resources(actors=1, cpus=1)).take_all()
    assert (tmp_path / "deaths").read_text() == "xx"


class Loses:
    """Has a GPU that is lost at the first row that it is given, and says in which process it is."""

    def __init__(self, marks):
        self.marks = marks

    def __call__(self, row):
        with open(f"{self.marks}/tries", "a") as file:
            file.write(f"{row['number']}\n")
        if not os.path.exists(f"{self.marks}/lost"):
            os.mkdir(f"{self.marks}/lost")
            raise LostGpuError("an illegal memory access was encountered")
        return {"number": row["number"], "process": os.getpid()}


def test_an_actor_that_loses_its_gpu_is_replaced_and_each_row_is_worked_on(ray_cluster, tmp_path):
    rows = [{"number": number} for number in range(3)]
    found = map_rows(rows, Loses, (str(tmp_path),), Resources(actors=1, cpus=1)).take_all()
    assert sorted(row["number"] for row in found) == [0, 1, 2]
    tries = (tmp_path / "tries").read_text().split()
    assert (len(tries), set(tries)) == (4, {"0", "1", "2"})


class Errs:
    """Fails at each row, with its GPU as it was."""

    def __init__(self, marks):
        self.marks = marks

    def __call__(self, row):
        with open(f"{self.marks}/tries", "a") as file:
            file.write("x")
        raise RuntimeError("out of memory")


def test_another_error_ends_the_work_at_once(ray_cluster, tmp_path):
    with pytest.raises(ray.exceptions.RayError, match="out of memory"):
        map_rows([{"number": 1}], Errs, (str(tmp_path),), Resources(actors=1, cpus=1)).take_all()
    assert (tmp_path / "tries").read_text() == "x"
