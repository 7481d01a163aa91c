"""A training in which much happens, in a process of its own: `python -m tests.encoder.disturbed FOLDER`.

It begins with one worker, since there is room for no more, goes on with two when a machine joins, and one of the two
is killed. The cluster is its own, too: the machine that joins would be there for other tests.
"""

import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
import torch.distributed as dist
from ray.cluster_utils import Cluster

from safeclip import fitting
from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.encoder.objectives import SafeClip
from safeclip.encoder.train import train_encoder
from tests.processes import train_workers, wait_until


class Waiting(SafeClip):
    """A single worker trains for the first half of the epochs, and then waits to be replaced by two."""

    def losses(self, batch):
        if batch.progress >= 0.5 and dist.get_world_size() == 1:
            time.sleep(300)
        return super().losses(batch)


def steps_of_checkpoints(place: Path) -> list[tuple[int, int]]:
    """How far checkpoints are: epochs, and steps of the next."""
    found = []
    for path in place.glob("demo/encoder/training-*/checkpoint_*/progress.json"):
        with contextlib.suppress(OSError, ValueError):  # being written, or removed
            progress = json.loads(path.read_text())
            found.append((progress["epoch"], progress["step"]))
    return found


def main(place: Path) -> None:
    config = load_config(str(place / "config.yaml"))
    fitting._RESIZE_EVERY = 1.0
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    ray.init(address=cluster.address, logging_level="error")
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train_encoder, config, Folder(str(place / "demo")))

        def going_on() -> bool:
            return not training.done()

        wait_until(lambda: steps_of_checkpoints(place), going_on)
        cluster.add_node(**node)
        wait_until(lambda: max(steps_of_checkpoints(place), default=(0, 0)) > (1, 0), going_on)
        worker, _ = train_workers()
        worker.kill()
        training.result()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
