import os
import time

from safeclip.artifacts import Folder
from safeclip.config import Resources
from safeclip.evaluation.batches import answer_batches
from tests.processes import wait_until


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
        return {**row, "whole": True, "process": os.getpid()}


def test_an_actor_that_is_ready_late_finds_a_batch_left(ray_cluster, tmp_path, monkeypatch):
    from ray.data import DataContext

    # By the usual size of blocks there would be room for one task in the object store.
    monkeypatch.setattr(DataContext.get_current(), "target_max_block_size", 2**20)
    (tmp_path / "marks").mkdir()
    kept, resources = Folder(str(tmp_path / "kept")), Resources(actors=2)
    found = answer_batches(Late, (str(tmp_path / "marks"),), {"base": ["a", "b"]}, resources, "late", kept)
    assert [row["batch"] for row in found["base"]] == [0, 1]
    assert len({row["process"] for row in found["base"]}) == 2
