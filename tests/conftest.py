"""What the tests share: one local Ray for the whole session."""

import os
from collections.abc import Iterator

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


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tells two processes how to divide the work: by files, those that take longest first.

    The other way round, one process would be left with the longest in the end. Files whose tests use the same report
    go together, since each process would make one of its own.
    """
    longest = (
        "tests/jobs/test_pipeline",
        "tests/jobs/test_train_toxifier",
        "tests/encoder/test_train",
        "tests/toxifier/test_train",
        "tests/jobs/test_command",
        "tests/evaluation/test_evaluate",
        "tests/encoder/test_elastic",
        "tests/cluster/test_local",
        "tests/world/test_language_model",
    )
    items.sort(key=lambda item: next((n for n, name in enumerate(longest) if item.nodeid.startswith(name)), 99))
    sharing = {item.path for item in items if "report" in item.fixturenames}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("report" if item.path in sharing else str(item.path)))
