import copy
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from safeclip.artifacts import Folder
from safeclip.encoder.export import export_encoder, save_open_clip
from safeclip.encoder.load import load_encoder, load_from
from safeclip.errors import UserError
from safeclip.world import WEIGHTS

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ASKS_FOR_CODE = {"hf_tokenizer_name": "given below", "tokenizer_kwargs": {"trust_remote_code": True}}


def write_config(folder, **of_text):
    """Writes the config of a small encoder, whose weights are returned."""
    config = {**SMALL, "text_cfg": {**SMALL["text_cfg"], **of_text}}
    mean_and_deviation = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": mean_and_deviation})
    )
    return open_clip.CLIP(**SMALL).state_dict()


def test_an_architectures_weights_may_lie_in_a_file(tmp_path):
    torch.manual_seed(5)
    model = open_clip.create_model("ViT-S-32", pretrained=None).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = load_encoder(f"ViT-S-32/{tmp_path}/weights.safetensors")
    tokens = encoder.tokenizer(["a dog next to a key"])
    with torch.no_grad():
        expected = model.encode_text(tokens, normalize=True).numpy()
    assert encoder.encode_texts(["a dog next to a key"]) == pytest.approx(expected, abs=1e-5)


def test_an_encoder_with_a_resnet_loads_as_open_clip_loads_it(tmp_path):
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    model_cfg = {"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
    model_cfg["text_cfg"] = text
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(model_cfg)).eval()
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    save_open_clip(model, config, tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.picture_shape == (3, 64, 64)
    picture = Image.radial_gradient("L").convert("RGB")
    with torch.no_grad():
        expected = model.encode_image(encoder.preprocess(picture).unsqueeze(0), normalize=True).numpy()
    assert encoder.encode_pixels(np.stack([encoder.resize_image(picture)])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ViT-S-32/missing.pt", "ViT-S-32 has no weights 'missing.pt'"),
        ("ViT-L-14/openay", "there are openai, "),
        ("no-such-thing", "neither a folder nor a known name"),
        ("tests", "the folder holds neither open_clip_config.json nor a Hugging Face CLIPModel"),
    ],
)
def test_what_is_no_encoder_is_named(source, said):
    with pytest.raises(UserError, match=said):
        load_encoder(source)


def test_a_file_of_weights_that_is_cut_off_is_told_in_a_line(tmp_path):
    export_encoder(load_encoder("world:encoder"), tmp_path)
    for name in ("open_clip/open_clip_model.safetensors", "huggingface/model.safetensors"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:100_000])
        with pytest.raises(UserError, match=r"cannot be loaded: Error while deserializing header"):
            load_encoder(str(file.parent))


def test_an_encoder_may_lie_on_any_file_system(s3):
    folder = Folder(s3)
    for file in (WEIGHTS / "encoder").iterdir():
        folder.write(file.name, file.read_bytes())
    expected = load_encoder("world:encoder").encode_texts(["a dog next to a key"])
    for source in (folder, s3, Folder(str(WEIGHTS / "encoder")), "world:encoder"):
        assert load_from(source).encode_texts(["a dog next to a key"]) == pytest.approx(expected, abs=1e-6)
    for source in (folder / "none", f"{s3}/none"):
        with pytest.raises(UserError, match=f"encoder '{s3}/none' cannot be loaded: there is no such folder"):
            load_from(source)


def write_code(folder):
    """Writes a tokenizer that is the folder's own Python, and returns the file that this makes when it runs."""
    ran = folder / "ran"
    auto_map = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine", "auto_map": auto_map}))
    (folder / "tokenization_mine.py").write_text(
        f"import pathlib\nfrom transformers import CLIPTokenizer\npathlib.Path({str(ran)!r}).touch()\n"
        "class Mine(CLIPTokenizer):\n    pass\n"
    )
    return ran


def test_a_folders_code_is_not_run(tmp_path):
    ran = write_code(tmp_path)
    save_file(write_config(tmp_path, **ASKS_FOR_CODE), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="it has code of its own, which is never run"):
        load_encoder(str(tmp_path))
    assert not ran.exists()


def test_the_code_that_an_architecture_asks_for_is_not_run(tmp_path):
    ran = write_code(tmp_path)
    text = {**SMALL["text_cfg"], **ASKS_FOR_CODE, "hf_tokenizer_name": str(tmp_path)}
    (tmp_path / "asks-for-code.json").write_text(json.dumps({**SMALL, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "asks-for-code.json")
    save_file(open_clip.CLIP(**SMALL).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="it has code of its own, which is never run"):
        load_encoder(f"asks-for-code/{tmp_path}/weights.safetensors")
    assert not ran.exists()


def test_pickled_weights_are_refused(tmp_path):
    weights = write_config(tmp_path)
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    said = r"open_clip_pytorch_model.bin is pickled, and only .safetensors is read; write its tensors again with"
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path))
    with pytest.raises(UserError, match=said):
        load_encoder(f"ViT-S-32/{tmp_path}/open_clip_pytorch_model.bin")
    save_file(weights, tmp_path / "model.safetensors")  # open_clip would still take the other
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path))
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    assert load_encoder(str(tmp_path)).width == SMALL["embed_dim"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="there are no weights"):
        load_encoder(str(tmp_path))
