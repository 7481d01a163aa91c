import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safeclip.artifacts import Folder
from safeclip.errors import UserError
from safeclip.generation.llm import adapter_folder, adapter_hash, save_merged
from tests.toxifier.models import save_tiny_model

ROOT = Path(__file__).parents[2]


def _adapter(folder, weights=b"weights"):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_an_adapter_is_named_by_folder_by_run_or_as_the_worlds(tmp_path):
    run = Folder(str(tmp_path / "run"))
    assert adapter_folder(None, run) is None
    assert adapter_folder("world:toxifier", run).exists("adapter_config.json")
    folder = _adapter(tmp_path / "mine")
    assert adapter_folder(str(folder), run) == Folder(str(folder))
    _adapter(tmp_path / "run" / "toxifier" / "adapter")
    with pytest.raises(UserError, match=r"no trained toxifier yet; run jobs.train_toxifier"):
        adapter_folder("run", run)
    (tmp_path / "run" / "toxifier" / "manifest.json").write_text("{}")
    assert adapter_folder("run", run).url.endswith("run/toxifier/adapter")


def test_a_folder_without_an_adapter_is_refused_by_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"has no adapter_config.json and no adapter_model.safetensors"):
        adapter_folder(str(tmp_path), Folder(str(tmp_path)))


def test_the_hash_depends_on_the_weights(tmp_path):
    one, other = (Folder(str(_adapter(tmp_path / name, name.encode()))) for name in ("one", "other"))
    assert adapter_hash(one) != adapter_hash(other)
    assert len(adapter_hash(one)) == 16
    assert adapter_hash(None) == ""


def _pickle(model: str) -> None:
    """Turns a model's folder into one of pickled weights."""
    weights = Path(model, "model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()


def test_pickled_weights_are_refused(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    _pickle(model)
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        save_merged(model, Folder(str(tmp_path)), tmp_path / "merged")
    code = (  # in a process of its own, since vLLM changes the one that it is in; as with a name of the hub's
        "from safeclip.config import load_config; from safeclip.generation.llm import _engine\n"
        f"_engine(load_config().generate.toxify, {model!r}, {{'enforce_eager': True}})"
    )
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert "Cannot find any model weights with" in ended.stderr
