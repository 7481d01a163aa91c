"""A local cluster of the tests' own, by cluster/local.sh."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Local:
    """cluster/local.sh with a folder and ports of its own, so that it meets no cluster of the user's."""

    def __init__(self, folder: str):
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment["SAFECLIP_CLUSTER_DIR"] = folder
        self.port = free_ports(4)
        self.dashboard = self.port + 3

    def __call__(self, *words: str) -> subprocess.CompletedProcess:
        return self.run(str(ROOT / "cluster" / "local.sh"), *words)

    def up(self) -> subprocess.CompletedProcess:
        return self("up", "--cpus", "3", "--port", str(self.port), "--dashboard-port", str(self.dashboard))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        everything = {**self.environment, **environment}
        return subprocess.run(command, cwd=ROOT, env=everything, text=True, capture_output=True)

    def submit(self, *words: str) -> subprocess.CompletedProcess:
        address = f"http://127.0.0.1:{self.dashboard}"
        return self.run(".venv/bin/ray", "job", "submit", "--address", address, "--working-dir", ".", *words)


def free_ports(count: int) -> int:
    """Returns the first of some consecutive ports that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", first + i)) for i in range(count)):
                return first
    raise AssertionError("no free ports")


@contextlib.contextmanager
def local_cluster():
    """A `Local`, which is stopped in the end if it was started."""
    folder = tempfile.mkdtemp(prefix="sc", dir="/tmp")  # pytest's own folders are too deep for sockets
    made = Local(folder)
    try:
        yield made
    finally:
        made("down")
        shutil.rmtree(folder)


@pytest.fixture
def local():
    with local_cluster() as made:
        yield made
