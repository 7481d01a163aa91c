import io

import numpy as np
import pytest
import torch
from PIL import Image

from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import MOST_STRETCHED, decode_image, trim_tokens
from safeclip.errors import UserError


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


@pytest.mark.parametrize("text", ['say "stop!".', "a dog!/a cat", "hurry!--a cat"])
@torch.no_grad()
def test_a_text_with_the_token_zero_keeps_its_end(encoder, text):
    tokens = encoder.tokenizer([text])
    assert 0 in tokens[0, : tokens[0].argmax()]
    assert trim_tokens(tokens)[0, -1] == tokens.max()
    whole = encoder.model.encode_text(tokens, normalize=True).numpy()
    assert np.allclose(encoder.encode_texts([text]), whole, atol=1e-5)


def test_tokens_are_cut_behind_the_longest_text(encoder):
    tokens = encoder.tokenizer(["a dog", "a dog next to a cat"])
    assert trim_tokens(tokens).shape == (2, 8)
    assert trim_tokens(tokens[:0]).shape == tokens[:0].shape


def encoded(size):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(MOST_STRETCHED, 1), (3, 3 * MOST_STRETCHED)])
def test_a_picture_may_be_long(size):
    assert decode_image(encoded(size)).size == size


@pytest.mark.parametrize(("size", "told"), [((65535, 1), "65535×1"), ((2, 2 * MOST_STRETCHED + 1), "2×201")])
def test_a_picture_too_narrow_to_be_resized_is_refused(size, told):
    with pytest.raises(UserError, match=rf"^row 3 is {told}; its longer side may be at most 100 times its shorter"):
        decode_image(encoded(size), "row 3")
