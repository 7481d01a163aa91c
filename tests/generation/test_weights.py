import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

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
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    folder = tmp_path / "models--someone--model"
    for name, text in {f"snapshots/abc/{file}": "{}", "refs/main": "abc"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    model_hash.cache_clear()
    assert model_hash("someone/model") == "commit abc"
    assert model_hash("someone/other") == model_hash("/no/such/folder") == "not known"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does when it is asked for a model that it has."""

    models = ("someone/model", "timm/vit_large_patch14_clip_224.openai")

    def do_GET(self):
        name = self.path.removeprefix("/api/models/")
        self.send_response(200 if name in self.models else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"id": name, "sha": f"of-{name}"}).encode())

    def log_message(self, *_):
        """Says nothing."""


def test_the_hub_is_asked_for_the_commit_of_a_model_that_other_machines_download(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with HTTPServer(("127.0.0.1", 0), Hub) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        model_hash.cache_clear()
        assert model_hash("someone/model") == model_hash("hf-hub:someone/model") == "commit of-someone/model"
        assert model_hash("ViT-L-14/openai") == "commit of-timm/vit_large_patch14_clip_224.openai"
        assert {model_hash(name) for name in ("someone/other", "ViT-L-14/none", "None")} == {"not known"}
        hub.shutdown()
    model_hash.cache_clear()


def test_each_of_the_worlds_models_has_a_hash():
    models = ("world:llm", "world:generator", "world:encoder", "world:captioner")
    assert len({model_hash(name) for name in models} - {"not known"}) == len(models)
