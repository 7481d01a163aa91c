import open_clip
import pytest
import torch

from safeclip.artifacts import Folder
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
