"""What the tests share: one local Ray for the whole session."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports ray: a local Ray would ask for tokens, and its workers would take all cores each. The other
# two are what jobs/command.py sets for trainings.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray on this machine, started by the first test that asks for it."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        logging_level="warning",
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first: one of two processes would else be left with them in the end."""
    longest = (
        "tests/jobs/test_pipeline",
        "tests/jobs/test_train_toxifier",
        "tests/encoder/test_train",
        "tests/encoder/test_worker",
        "tests/toxifier/test_train",
        "tests/jobs/test_command",
        "tests/evaluation/test_evaluate",
        "tests/cluster/test_local",
        "tests/world/test_language_model",
    )
    items.sort(key=lambda item: next((n for n, name in enumerate(longest) if item.nodeid.startswith(name)), 99))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each of two processes whole files, and to one those that share what each would else make for itself."""
    from xdist.scheduler import LoadFileScheduling

    reports = {f"tests/evaluation/{name}.py" for name in ("test_evaluate", "test_reference", "test_report")}

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            if file in reports:
                return "reports"
            return "endpoint" if file.startswith("tests/serve/") else file

    return ByFile(config, log)
