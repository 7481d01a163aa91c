"""The endpoint, asked over HTTP: the same answers alone and in a crowd, and refusals that say what to do."""

import base64
import io
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx
import numpy as np
import pytest
from PIL import Image

from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from serve.app import build_app, load_bound
from serve.encoder import BatchedEncoder
from serve.schemas import MAX_BODY_BYTES, MAX_IMAGE_BYTES, MAX_ITEMS, MAX_TEXT, MAX_TEXTS_BYTES

ROOT = Path(__file__).parents[2]
TEXTS = ["a dog next to a car", "a pizza", "a house on a green background, seen from far", "two trees", "a cup"]


def picture(red: int, size: int = 64, form: str = "PNG") -> bytes:
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[..., 0] = red
    pixels[: size // 2, :, 1] = np.arange(size) * 255 // size
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


PICTURES = [picture(0), picture(90, form="JPEG"), picture(180, 200, "WEBP"), picture(255, 31)]


def ask_texts(endpoint: str, texts: list) -> httpx.Response:
    return httpx.post(f"{endpoint}/v1/embeddings/text", json={"texts": texts}, timeout=60)


def ask_images(endpoint: str, images: list[bytes]) -> httpx.Response:
    encoded = [base64.b64encode(each).decode() for each in images]
    return httpx.post(f"{endpoint}/v1/embeddings/image", json={"images": encoded}, timeout=60)


def embeddings_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array(response.json()["embeddings"])


@pytest.fixture(scope="module")
def encoder(storage):
    return load_encoder(str(storage / "demo" / "encoder" / "open_clip"))


def test_texts_get_the_embeddings_of_the_runs_encoder(endpoint, encoder):
    response = ask_texts(endpoint, TEXTS)
    np.testing.assert_allclose(embeddings_of(response), encoder.encode_texts(TEXTS), atol=1e-5)
    assert response.json()["model"] == "demo"


def test_pictures_get_the_embeddings_of_the_runs_encoder(endpoint, encoder):
    response = ask_images(endpoint, PICTURES)
    np.testing.assert_allclose(embeddings_of(response), encoder.encode_images(PICTURES), atol=1e-5)


def test_pictures_may_come_as_files_of_a_form(endpoint, encoder):
    files = [("images", (f"{i}", data)) for i, data in enumerate(PICTURES)]
    response = httpx.post(f"{endpoint}/v1/embeddings/image", files=files, timeout=60)
    np.testing.assert_allclose(embeddings_of(response), encoder.encode_images(PICTURES), atol=1e-5)


def test_a_crowd_of_texts_and_pictures_gets_what_each_gets_alone(endpoint, encoder):
    requests = [(ask_texts, TEXTS[i % 5 :][: 1 + i % 3]) for i in range(40)]
    requests += [(ask_images, PICTURES[i % 4 :][: 1 + i % 2]) for i in range(40)]
    requests = requests[::3] + requests[1::3] + requests[2::3]
    with ThreadPoolExecutor(24) as crowd:
        answers = list(crowd.map(lambda r: embeddings_of(r[0](endpoint, r[1])), requests))
    for (ask, items), answer in zip(requests, answers, strict=True):
        alone = encoder.encode_texts(items) if ask is ask_texts else encoder.encode_images(items)
        np.testing.assert_allclose(answer, alone, atol=1e-5)


def test_a_broken_picture_does_not_disturb_the_others_of_its_batch(endpoint, encoder):
    requests = [[PICTURES[0]], [b"no picture"], [PICTURES[1]], [PICTURES[2][:80]]] * 4
    with ThreadPoolExecutor(16) as crowd:
        answers = list(crowd.map(lambda images: ask_images(endpoint, images), requests))
    for images, answer in zip(requests, answers, strict=True):
        if images[0] in PICTURES:
            np.testing.assert_allclose(embeddings_of(answer), encoder.encode_images(images), atol=1e-5)
        else:
            assert answer.status_code == 400
            assert "picture 1 does not decode" in answer.json()["detail"]


def test_health_and_model(endpoint):
    assert "Safe-CLIP" in httpx.get(endpoint, follow_redirects=True).text
    assert httpx.get(f"{endpoint}/healthz").json() == {"status": "ok"}
    model = httpx.get(f"{endpoint}/v1/model").json()
    assert model == {
        "run": "demo",
        "base": "world:encoder",
        "objective": "apart",
        "width": 128,
        "image_size": [64, 64],
        "key": "0123456789abcdef",
    }


def test_the_description_says_what_a_score_is_not(endpoint):
    described = httpx.get(f"{endpoint}/openapi.json").json()
    assert "no detector of illegal" in described["info"]["description"]
    assert set(described["paths"]) == {"/healthz", "/v1/model", "/v1/embeddings/text", "/v1/embeddings/image"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "texts: Field required"),
        ({"texts": []}, "texts: List should have at least 1 item"),
        ({"texts": "a dog"}, "texts: Input should be a valid array"),
        ({"texts": ["a dog", 3]}, "texts.1: Input should be a valid string"),
        ({"texts": ["a dog", " "]}, "texts.1: String should match pattern"),
        ({"texts": ["a dog"] * (MAX_ITEMS + 1)}, f"at most {MAX_ITEMS} items"),
        ({"texts": ["a" * (MAX_TEXT + 1)]}, f"at most {MAX_TEXT} characters"),
        ({"texts": ["a dog"], "colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_wrong_texts_are_422_and_not_repeated(endpoint, body, said):
    response = httpx.post(f"{endpoint}/v1/embeddings/text", json=body)
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert "a dog" not in response.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "images: Field required"),
        ({"images": []}, "images: List should have at least 1 item"),
        ({"images": [3]}, "picture 1 must be a string"),
        ({"images": ["data:image/png;base64,AAAA"]}, "picture 1 is no base64"),
        ({"images": ["AAAA"] * (MAX_ITEMS + 1)}, f"at most {MAX_ITEMS} items"),
    ],
)
def test_wrong_pictures_are_422(endpoint, body, said):
    response = httpx.post(f"{endpoint}/v1/embeddings/image", json=body)
    assert response.status_code == 422
    assert said in response.json()["detail"]


def test_a_form_without_files_is_422(endpoint):
    for wrong in ({"files": {"pictures": PICTURES[0]}}, {"data": {"images": "x"}, "files": {"images": PICTURES[0]}}):
        response = httpx.post(f"{endpoint}/v1/embeddings/image", **wrong)
        assert response.status_code == 422
        assert "a field named images" in response.json()["detail"]


@pytest.mark.parametrize("path", ["text", "image"])
def test_broken_json_is_400(endpoint, path):
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{endpoint}/v1/embeddings/{path}", content=b"{'texts': ", headers=headers)
    assert response.status_code == 400
    assert "JSON" in response.json()["detail"]


def test_another_kind_of_body_is_400(endpoint):
    response = httpx.post(
        f"{endpoint}/v1/embeddings/image", content=PICTURES[0], headers={"content-type": "image/png"}
    )
    assert response.status_code == 400
    assert "application/json or multipart/form-data" in response.json()["detail"]
    response = httpx.post(f"{endpoint}/v1/embeddings/text", data={"texts": "a dog"})
    assert response.status_code == 400
    assert "send application/json, and say so in content-type" in response.json()["detail"]


def test_too_large_is_413(endpoint):
    response = ask_images(endpoint, [b"\0" * (MAX_IMAGE_BYTES + 1)])
    assert response.status_code == 413
    assert "picture 1 is too large; send at most 8 MiB each" in response.json()["detail"]

    def chunks(limit):
        for _ in range(limit // 2**20 + 1):
            yield b" " * 2**20

    headers = {"content-type": "application/json"}
    for kind, limit in (("image", MAX_BODY_BYTES), ("text", MAX_TEXTS_BYTES)):
        for body in (b" " * (limit + 1), chunks(limit)):
            response = httpx.post(f"{endpoint}/v1/embeddings/{kind}", content=body, headers=headers, timeout=60)
            assert response.status_code == 413
            assert f"send at most {limit // 2**20} MiB" in response.json()["detail"]


def test_the_longest_texts_fit(endpoint):
    body = json.dumps({"texts": ["\U0001f600" * MAX_TEXT] * MAX_ITEMS}).encode()  # each in twelve bytes of ASCII
    assert len(body) < MAX_TEXTS_BYTES
    response = httpx.post(
        f"{endpoint}/v1/embeddings/text", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert len(embeddings_of(response)) == MAX_ITEMS


@pytest.mark.parametrize(
    ("form", "mode", "size", "said"),
    [
        ("PNG", "1", (9000, 9000), "picture 1 has 9000×9000 pixels; it may have at most 40,000,000"),
        ("PNG", "1", (14_000, 14_000), "picture 1 does not decode"),  # too many for Pillow's own limit, too
        ("PNG", "1", (65_535, 1), "picture 1 is 65535×1; its longer side may be at most 100 times"),
        ("GIF", "P", (64, 64), "picture 1 does not decode as an image (no known format)"),
        ("DDS", "RGB", (64, 64), "picture 1 does not decode as an image (no known format)"),
    ],
)
def test_a_picture_too_large_too_narrow_or_of_another_format_is_400(endpoint, form, mode, size, said):
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    response = ask_images(endpoint, [file.getvalue()])
    assert response.status_code == 400
    assert said in response.json()["detail"]
    assert response.json()["detail"].endswith("; send WebP, JPEG or PNG")


def test_inputs_are_not_logged(endpoint):
    import ray

    word = "unmistakable-input-word"
    assert ask_texts(endpoint, [word]).status_code == 200
    assert httpx.post(f"{endpoint}/v1/embeddings/text", json={"texts": [word, 3]}).status_code == 422
    logs = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", ray.get_runtime_context().get_session_name(), "logs")
    told = [path.name for path in logs.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    assert told == []
    assert any(b"/v1/embeddings/text" in path.read_bytes() for path in logs.rglob("*.log")), "the logs were found"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"run": "nowhere"}, "run 'nowhere' has no safe encoder in"),
        ({"runs": "demo"}, "runs: no such argument; there are run, storage"),
        ({"serve.replicas": "3"}, "serve.replicas: no such setting"),
        ({"serve.max_replicas": "many"}, "serve.max_replicas: 'many' will not do"),
    ],
)
def test_build_app_names_a_wrong_argument(storage, arguments, said):
    with pytest.raises(click.ClickException, match=said):
        build_app({"storage": str(storage), **arguments})


@pytest.mark.parametrize("during", [False, True])
@pytest.mark.parametrize("manifest", [{"key": "another"}, None])
def test_a_replica_takes_no_encoder_that_was_trained_since(storage, tmp_path, monkeypatch, manifest, during):
    folder, config = shutil.copytree(storage / "demo", tmp_path / "demo"), load_config(ROOT / "ray_config.yaml")
    run, file = Folder(str(folder)), folder / "encoder" / "manifest.json"
    load_bound(run, config, "0123456789abcdef")

    def train() -> None:
        file.unlink()
        if manifest:
            file.write_text(json.dumps(manifest))

    class Slow(BatchedEncoder):
        def __init__(self, *given):
            super().__init__(*given)
            train()

    if during:
        monkeypatch.setattr("serve.app.BatchedEncoder", Slow)
    else:
        train()
    said = "its encoder is now another" if manifest else "its encoder is being trained"
    with pytest.raises(UserError, match=f"demo was trained again since .*: {said}; restart the endpoint"):
        load_bound(run, config, "0123456789abcdef")


def test_serve_run_refuses_an_unknown_run_in_one_line(storage):
    command = [str(ROOT / ".venv/bin/serve"), "run", "serve.app:build_app", "run=nowhere", f"storage={storage}"]
    ended = subprocess.run(command, cwd=ROOT, env=dict(os.environ), text=True, capture_output=True)
    assert ended.returncode == 1
    assert "run 'nowhere' has no safe encoder" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_importing_the_app_starts_no_ray():
    code = "import serve.app, ray; assert not ray.is_initialized()"
    subprocess.run([str(ROOT / ".venv/bin/python"), "-c", code], cwd=ROOT, check=True)
