"""A training that starts with the workers there is room for, and grows when a machine joins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from safeclip.artifacts import Folder
from safeclip.config import load_config, save_config
from tests.encoder.quadruplets import write_quadruplets

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "train.epochs=4", "train.batch=8", "train.warmup=0", "train.preserve=null",
    "train.objective=tests.encoder.waiting:Waiting", "train.min_workers=1", "train.resources.actors=2",
]  # fmt: skip

# A cluster of its own: the machine that joins would be there for other tests, too.
DRIVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from safeclip import fitting
from safeclip.artifacts import Folder
from safeclip.config import parse_config
from safeclip.encoder.train import train_encoder
from tests.processes import wait_for_file

place = Path(sys.argv[1])
fitting._RESIZE_EVERY = 1.0
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
ray.init(address=cluster.address, logging_level="error")
with ThreadPoolExecutor(1) as pool:
    config = parse_config((place / "config.yaml").read_text(), "config.yaml")
    training = pool.submit(train_encoder, config, Folder(str(place / "demo")))
    wait_for_file(place / "demo/encoder", "training-*/checkpoint_*/progress.json", lambda: not training.done())
    cluster.add_node(**node)
    training.result()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.timeout(400)
def test_a_training_grows_when_a_machine_joins(tmp_path):
    write_quadruplets(Folder(str(tmp_path / "demo")), {"train": 24, "validation": 8})
    (tmp_path / "config.yaml").write_text(save_config(load_config(sets=SETTINGS)))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=380)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "with 2 workers" in ended.stdout
    manifest = json.loads((tmp_path / "demo" / "encoder" / "manifest.json").read_text())
    assert [record["epoch"] for record in manifest["history"]] == [1, 2, 3, 4]
    assert manifest["history"][-1]["loss"]["total"] < manifest["history"][0]["loss"]["total"]
