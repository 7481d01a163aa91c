import os
from pathlib import Path

from safeclip.artifacts import Folder, Stage
from safeclip.config import Resources
from safeclip.fitting import fit


def read(path: str) -> str:
    return Path(path).read_text()


def test_a_relative_path_means_the_same_in_the_workers_of_a_training(ray_cluster, tmp_path):
    (tmp_path / "base").write_text("the base")
    plan = os.path.relpath(tmp_path / "base")
    stage = Stage(Folder(str(tmp_path / "stage")), "key")
    assert fit(read, plan, stage, Resources(actors=1, cpus=1), 0).return_value == "the base"
