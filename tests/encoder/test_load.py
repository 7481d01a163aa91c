import open_clip
import pytest
import torch

from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError


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
