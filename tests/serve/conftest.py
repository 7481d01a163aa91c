"""The endpoint over a run of its own, whose encoder is the world's."""

import json
import socket
from pathlib import Path

import pytest

from safeclip.config import load_config, save_config
from safeclip.world import WEIGHTS
from safeclip.world.models import build_encoder, load_weights, save_encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def storage(tmp_path_factory) -> Path:
    """A folder with the run `demo`, complete as far as serving needs it."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = folder / "demo" / "encoder"
    model = load_weights(build_encoder(), WEIGHTS / "encoder" / "open_clip_model.safetensors")
    save_encoder(model, encoder / "open_clip")
    (encoder / "manifest.json").write_text(json.dumps({"key": "0123456789abcdef"}))
    (folder / "demo" / "config.yaml").write_text(save_config(load_config(ROOT / "ray_config.yaml")))
    return folder


@pytest.fixture(scope="session")
def endpoint(ray_cluster, storage) -> str:
    """The address of a running endpoint, with one replica."""
    from ray import serve

    from serve.app import build_app

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    app = build_app({"run": "demo", "storage": str(storage), "serve.max_replicas": "1", "serve.batch_wait_ms": "30"})
    serve.run(app, name="demo", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
