import copy
import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel, PreTrainedTokenizerFast

from safeclip.encoder.export import clip_tokenizer, export_encoder, save_open_clip
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


def test_a_tokenizer_of_the_encoders_own_goes_with_the_export(tmp_path):
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "dog", "key", "a", "next", "to"])}
    own = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "base"
    )
    size = {"width": 64, "layers": 1}
    text = {**size, "context_length": 8, "vocab_size": len(words), "heads": 1, "no_causal_mask": True}
    text |= {"pool_type": "last", "hf_tokenizer_name": "some/name", "tokenizer_kwargs": {"clean": "canonicalize"}}
    model_cfg = {"embed_dim": 16, "vision_cfg": {**size, "image_size": 64, "patch_size": 32}, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**copy.deepcopy(model_cfg))
    preprocess_cfg = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"model_cfg": {**model_cfg, "custom_text": True}, "preprocess_cfg": preprocess_cfg}
    save_open_clip(model, config, tmp_path / "base")
    base = load_encoder(str(tmp_path / "base"))
    export_encoder(base, tmp_path / "exported")
    again = load_encoder(str(tmp_path / "exported" / "open_clip"))
    assert again.config == base.config
    texts = ["A dog, next to a KEY!", "a cat"]
    assert base.tokenizer(texts).tolist() == [[4, 2, 5, 6, 4, 3, 0, 0], [4, 1, 0, 0, 0, 0, 0, 0]]
    assert torch.equal(again.tokenizer(texts), base.tokenizer(texts))
    assert np.allclose(again.encode_texts(texts), base.encode_texts(texts), atol=1e-6)
