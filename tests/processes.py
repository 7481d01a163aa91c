"""The processes of the tests' own Ray, to kill one of them, and a process beside this one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch


def train_workers() -> list[psutil.Process]:
    """Workers of Ray Train that the Ray of this process has started; another test run's are left alone."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if process.name().startswith("ray::RayTrainWorker")]


def wait_until(condition: Callable[[], Any], alive: Callable[[], bool] = lambda: True) -> Any:
    """Waits for something true, as long as what is to bring it about is alive, and returns it."""
    while not (found := condition()):
        assert alive(), "it ended before it could be killed"
        time.sleep(0.02)
    return found


def work_as_two(work: Callable[..., None], folder: Path, *arguments: object) -> None:
    """Calls `work(rank, *arguments)` as two workers that form a group: the first here, the second in a process."""
    second = torch.multiprocessing.spawn(_join, (1, work, folder, *arguments), join=False, daemon=True)
    _join(0, 0, work, folder, *arguments)
    second.join()


def _join(_: int, rank: int, work: Callable[..., None], folder: Path, *arguments: object) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        work(rank, *arguments)
    finally:
        torch.distributed.destroy_process_group()
