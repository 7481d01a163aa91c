"""What Ray Train runs in each worker: epochs, and a report of each checkpoint."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safeclip.encoder.worker import Plan, Worker


@dataclass(frozen=True)
class Ended:
    """How a training ended."""

    workers: int
    """How many there were."""
    diverged: int | None = None
    """The epoch in which the loss was no finite number."""


def train_loop(plan: Plan) -> Ended:
    """What Ray Train runs in each worker. All of them return the same."""
    import ray.train
    import ray.train.torch

    logging.getLogger().setLevel(logging.WARNING)  # open_clip tells at length how it loads
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), str(ray.train.torch.get_device())
    worker = Worker(
        plan,
        rank,
        context.get_local_rank(),
        context.get_world_size(),
        device,
        ray.train.torch.prepare_model,
    )
    done = False
    try:
        ended = _train(worker)
        done = ended.diverged is None
        return ended
    finally:
        if worker.tracker:
            worker.tracker.end(done)


def _train(worker: Worker) -> Ended:
    import ray.train

    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            worker.load(Path(folder))
        if worker.group.rank == 0:
            after = f"epoch {worker.progress.epoch}" + (f" and {n} steps" if (n := worker.progress.step) else "")
            print(f"encoder: training goes on after {after}, with {worker.group.workers} workers", flush=True)
    while not worker.progress.is_over(worker.train):
        if worker.take_epoch(lambda: _report(worker)) is None:
            # An exception would only have Ray try again, to the same end.
            return Ended(worker.group.workers, diverged=worker.progress.epoch + 1)
        _report(worker)
    return Ended(worker.group.workers)


def _report(worker: Worker) -> None:
    import ray.train

    checkpoint = None
    if worker.group.rank == 0:
        folder = tempfile.mkdtemp(prefix="safeclip-checkpoint-")
        worker.save(Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        if worker.tracker:
            worker.tracker.flush()
    ray.train.report(
        {"epoch": worker.progress.epoch}, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True
    )
