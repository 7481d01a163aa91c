"""What the tests share: one local Ray for the whole session, and an S3 server."""

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports ray: a local Ray would ask for tokens, and its workers would take all cores each. The other
# two are what jobs/command.py sets for trainings.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

# Before Ray's workers start, which take these over: for them and for this process S3 is the server of the fixture s3,
# and no test reaches another with the developer's credentials. The port is held until a test wants the server.
_s3_socket = socket.socket()
_s3_socket.bind(("127.0.0.1", 0))
os.environ |= {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_s3_socket.getsockname()[1]}",
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


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


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of this machine, started by the first test that asks for it."""
    import fsspec
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Silent(MotoRequestHandler):
        def log_request(self, *words: object) -> None:
            pass

    _s3_socket.listen(128)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent, fd=_s3_socket.fileno())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fsspec.filesystem("s3").mkdir("tests")
    yield "s3://tests"
    server.shutdown()


@pytest.fixture
def s3(s3_bucket: str) -> str:
    """The URL of an S3 folder in which nothing lies."""
    return f"{s3_bucket}/{uuid.uuid4().hex}"


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
