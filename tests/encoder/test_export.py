import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel

from safeclip.encoder.export import clip_tokenizer, export_encoder
from safeclip.encoder.load import load_encoder
from safeclip.world.scenes import caption, object_names, render, sample_scenes

SCENES = sample_scenes(24, 11, object_names())
TEXTS = [caption(scene) for scene in SCENES]
PICTURES = [render(scene) for scene in SCENES]


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def webp(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", lossless=True)
    return out.getvalue()


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    export_encoder(encoder, path)
    return path


def test_open_clip_folder_gives_the_same_embeddings(encoder, folder):
    again = load_encoder(str(folder / "open_clip"))
    assert again.config == encoder.config
    pictures = [webp(p) for p in PICTURES]
    assert cosines(again.encode_texts(TEXTS), encoder.encode_texts(TEXTS)).min() > 1 - 1e-4
    assert cosines(again.encode_images(pictures), encoder.encode_images(pictures)).min() > 1 - 1e-4


@torch.no_grad()
def test_huggingface_folder_gives_the_same_embeddings(encoder, folder):
    model, processor = (
        CLIPModel.from_pretrained(folder / "huggingface"),
        CLIPProcessor.from_pretrained(folder / "huggingface"),
    )
    inputs = processor(text=TEXTS, images=[Image.fromarray(p) for p in PICTURES], return_tensors="pt", padding=True)
    out = model(**inputs)
    assert cosines(out.text_embeds.numpy(), encoder.encode_texts(TEXTS)).min() > 1 - 1e-4
    images = encoder.encode_images([webp(p) for p in PICTURES])
    assert cosines(out.image_embeds.numpy(), images).min() > 1 - 1e-4


@torch.no_grad()
def test_text_encoder_folder_gives_the_same_embeddings(encoder, folder):
    model = CLIPTextModel.from_pretrained(folder / "text_encoder")
    tokens = clip_tokenizer(32)(TEXTS, padding="max_length", return_tensors="pt").input_ids
    pooled = model(tokens).pooler_output @ encoder.model.text_projection
    assert cosines(pooled.numpy(), encoder.encode_texts(TEXTS)).min() > 1 - 1e-4


def test_tokenizer_agrees_with_open_clips_up_to_padding(encoder):
    texts = [*TEXTS, "An  ODD\tone: café, 3 dogs & it's", ""]
    for text in texts:
        own = encoder.tokenizer([text])[0]
        assert clip_tokenizer(32)(text).input_ids == own[own != 0].tolist()


def test_a_long_text_is_cut_to_the_context(encoder):
    ids = clip_tokenizer(32)("dog " * 100, truncation=True).input_ids
    assert ids == encoder.tokenizer(["dog " * 100])[0].tolist()
