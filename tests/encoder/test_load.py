import copy

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from safeclip.artifacts import Folder
from safeclip.encoder.export import save_open_clip
from safeclip.encoder.load import load_encoder, load_from
from safeclip.errors import UserError
from safeclip.world import WEIGHTS


def test_an_architectures_weights_may_lie_in_a_file(tmp_path):
    torch.manual_seed(5)
    model = open_clip.create_model("ViT-S-32", pretrained=None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = load_encoder(f"ViT-S-32/{tmp_path}/weights.pt")
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


def test_an_encoder_may_lie_on_any_file_system():
    folder = Folder("memory://encoders/copy")
    folder.make()
    for file in (WEIGHTS / "encoder").iterdir():
        folder.write(file.name, file.read_bytes())
    expected = load_encoder("world:encoder").encode_texts(["a dog next to a key"])
    for source in (folder, Folder(str(WEIGHTS / "encoder")), "world:encoder"):
        assert load_from(source).encode_texts(["a dog next to a key"]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="encoder 'memory://encoders/none' cannot be loaded: there is no such folder"):
        load_from(Folder("memory://encoders/none"))
