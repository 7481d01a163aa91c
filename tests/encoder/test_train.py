import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray

from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.encoder.train import train_encoder
from tests.encoder.quadruplets import write_quadruplets

SETTINGS = ["train.epochs=2", "train.batch=8", "train.learning_rate=0.001", "train.lora.dropout=0.0"]


def config_for(storage: Path, *sets: str):
    return load_config("ray_config.yaml", "embedded", [f"storage={storage}", *SETTINGS, *sets])


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    storage = tmp_path_factory.mktemp("runs")
    run = Folder(str(storage / "demo"))
    write_quadruplets(run, {"train": 24, "validation": 8})
    return run, train_encoder(config_for(storage), run)


def test_it_writes_a_manifest_and_four_exports(trained):
    run, manifest = trained
    print(json.dumps(manifest, indent=1))
    assert manifest["train"]["steps"] == 6
