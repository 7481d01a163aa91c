"""A small run that is complete up to the encoder, and its report: made once for all tests of the evaluation."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from safeclip.artifacts import Folder, Stage
from safeclip.config import Config, load_config
from safeclip.encoder.load import load_encoder
from safeclip.records import QUADRUPLET
from safeclip.world.models import save_encoder
from safeclip.world.quadruplets import rendered_quadruplets, trained_unsafe_objects

ROOT = Path(__file__).parents[2]


def make_run(storage: Path, noise: float) -> tuple[Config, Folder]:
    """Returns the config and folder of a run whose safe encoder is the world's with noise in its text tower."""
    sets = [f"storage={storage}", "evaluate.rendered=40", "evaluate.bootstrap=50", "evaluate.batch=32"]
    # Drawing and describing take long; the tests that need them ask for a few pictures.
    sets += ["evaluate.text_to_image=null", "evaluate.image_to_text=null"]
    config = load_config(ROOT / "ray_config.yaml", "embedded", sets, "small")
    run = Folder(str(storage)) / "small"
    table = rendered_quadruplets(30, 5, trained_unsafe_objects())
    for split, start, stop in (("train", 0, 16), ("validation", 16, 18), ("test", 18, 30)):
        folder = run / "quadruplets" / split
        folder.make()
        rows = [{**row, "split": split} for row in table.slice(start, stop - start).to_pylist()]
        folder.write_table("00000.parquet", pa.Table.from_pylist(rows, QUADRUPLET))
    data = {
        "captions": 40,
        "accepted": 30,
        "rejected": {"unsafe_captions: names no <unsafe> object": 10},
        "quadruplets": {"train": 16, "validation": 2, "test": 12},
    }
    Stage(run / "quadruplets", "key").finish(0, {"content_hash": "hash", "data": data})
    model = load_encoder("world:encoder").model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter += noise * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    save_encoder(model, storage / "small" / "encoder" / "open_clip")
    train = {"objective": "safe-clip", "epochs": 2, "samples_per_second": 31.5, "workers": 2}
    Stage(run / "encoder", "key").finish(0, {"content_hash": "hash", "train": train, "quadruplets": "hash"})
    return config, run


@pytest.fixture(scope="session")
def report(ray_cluster, tmp_path_factory) -> tuple[Config, Folder, dict]:
    """The config, folder and metrics of an evaluated run whose safe encoder differs from the base."""
    from safeclip.evaluation.evaluate import evaluate

    config, run = make_run(tmp_path_factory.mktemp("runs"), noise=1.5)
    evaluate(config, run)
    return config, run, json.loads((run / "report").read("metrics.json"))
