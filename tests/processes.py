"""The processes of the tests' own Ray, to kill one of them."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil


def train_workers() -> list[psutil.Process]:
    """Workers of Ray Train that the Ray of this process has started; another test run's are left alone."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if process.name().startswith("ray::RayTrainWorker")]


def wait_for_file(folder: Path, pattern: str, alive: Callable[[], bool], seconds: float = 200) -> None:
    """Waits until a file is there, as long as what writes it is alive."""
    deadline = time.monotonic() + seconds
    while not list(folder.glob(pattern)):
        assert alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
