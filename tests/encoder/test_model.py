import io

import numpy as np
import pytest
import torch
from PIL import Image

from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import decode_image, trim_tokens
from safeclip.errors import UserError
from safeclip.records import MOST_STRETCHED


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


def encoded(size, form="PNG", mode="1"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("size", [(MOST_STRETCHED, 1), (3, 3 * MOST_STRETCHED)])
def test_a_picture_may_be_long(size):
    assert decode_image(encoded(size)).size == size


@pytest.mark.parametrize(("size", "told"), [((65535, 1), "65535×1"), ((2, 2 * MOST_STRETCHED + 1), "2×201")])
def test_a_picture_too_narrow_to_be_resized_is_refused(size, told):
    with pytest.raises(UserError, match=rf"^row 3 is {told}; its longer side may be at most 100 times its shorter"):
        decode_image(encoded(size), "row 3")


def test_a_picture_of_more_than_8_bits_a_colour_is_refused():
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(sink, "PNG")
    with pytest.raises(UserError, match=r"^picture has more than 8 bits a colour; convert it first"):
        decode_image(sink.getvalue())


def test_what_a_reader_of_pillow_raises_is_told_whatever_it_is():
    data = bytearray(encoded((8, 8), "DDS", "RGB"))
    data[80:84] = bytes(4)  # the kind of pixels: none raises NotImplementedError
    with pytest.raises(UserError, match=r"^picture does not decode as an image \(Unknown pixel format"):
        decode_image(bytes(data))
    with pytest.raises(UserError, match=r"^picture does not decode as an image \(Image size \(196000000 pixels\)"):
        decode_image(encoded((14_000, 14_000)))


def test_formats_and_pixels_may_be_limited():
    data = encoded((30, 20))
    assert decode_image(data, formats=("PNG",), most_pixels=600).size == (30, 20)
    with pytest.raises(UserError, match=r"^picture does not decode as an image \(no known format\)"):
        decode_image(data, formats=("WEBP", "JPEG"))
    with pytest.raises(UserError, match=r"^picture has 30×20 pixels; it may have at most 599"):
        decode_image(data, most_pixels=599)
