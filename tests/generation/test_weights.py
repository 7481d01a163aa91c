import pytest
from huggingface_hub import constants

from safeclip.generation.weights import model_hash


def test_the_hash_of_a_model_is_of_its_weights_in_whatever_folders(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"weights")
    assert model_hash(str(tmp_path / "unet")) == model_hash(str(tmp_path / "copy")) != model_hash(str(tmp_path))
    assert model_hash(str(tmp_path)).startswith("SHA-256 ")


@pytest.mark.parametrize("file", ["config.json", "model_index.json"])
def test_of_a_hubs_model_the_commit_is_named_where_it_was_downloaded(tmp_path, monkeypatch, file):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--model"
    for name, text in {f"snapshots/abc/{file}": "{}", "refs/main": "abc"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    model_hash.cache_clear()
    assert model_hash("someone/model") == "commit abc"
    assert model_hash("someone/other") == model_hash("/no/such/folder") == "not known"


def test_each_of_the_worlds_models_has_a_hash():
    models = ("world:llm", "world:generator", "world:encoder", "world:captioner")
    assert len({model_hash(name) for name in models} - {"not known"}) == len(models)
