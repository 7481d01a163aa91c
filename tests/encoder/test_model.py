import numpy as np
import pytest
import torch

from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import trim_tokens


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
