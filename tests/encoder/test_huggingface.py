import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from safeclip.encoder.export import export_encoder
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from tests.encoder.quadruplets import render_quadruplets


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_encoder(load_encoder("world:encoder"), folder)
    return folder / "huggingface"


def test_a_huggingface_folder_gives_the_embeddings_of_the_encoder_that_it_was_made_from(exported, tmp_path):
    table = render_quadruplets(12, seed=3)
    texts, images = (table[name].to_pylist() for name in ("unsafe_caption", "unsafe_image"))
    encoders = [load_encoder("world:encoder"), load_encoder(str(exported))]
    export_encoder(encoders[1], tmp_path)
    encoders.append(load_encoder(str(tmp_path / "open_clip")))
    expected = encoders[0].encode_texts(texts), encoders[0].encode_images(images)
    for encoder in encoders[1:]:
        assert np.allclose(encoder.encode_texts(texts), expected[0], atol=1e-5)
        assert np.allclose(encoder.encode_images(images), expected[1], atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_activation_is_taken_from_the_config(tmp_path, exported, activation):
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": activation}
    text = {**tower, "vocab_size": 49408, "max_position_embeddings": 16, "eos_token_id": 49407}
    image = {**tower, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=24)).eval()
    model.save_pretrained(tmp_path)
    shutil.copy(exported / "processor_config.json", tmp_path)
    encoder = load_encoder(str(tmp_path))
    tokens = encoder.tokenizer(["a dog next to a key", "a cat"])
    theirs = model.get_text_features(tokens, attention_mask=tokens != 0).pooler_output.detach().numpy()
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.allclose(encoder.encode_texts(["a dog next to a key", "a cat"]), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: {"model_type": "bert"}, "neither open_clip_config.json nor a Hugging Face CLIPModel"),
        (lambda config: {**config, "text_config": {**config["text_config"], "vocab_size": 99}}, "cannot be loaded"),
        (lambda config: {**config, "text_config": {**config["text_config"], "layer_norm_eps": 1e-6}}, "epsilon"),
        (lambda config: {**config, "text_config": {**config["text_config"], "hidden_act": "relu"}}, "activations"),
    ],
)
def test_a_folder_of_another_kind_is_refused(exported, tmp_path, change, said):
    shutil.copytree(exported, tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda name: None if name == "visual_projection.weight" else name,
            "1 of its .+, such as visual_projection.w",
        ),
        (lambda name: f"model.{name}", r"\d+ of its weights are missing, such as logit_scale"),
    ],
)
def test_weights_that_are_missing_are_named_and_not_made_up(exported, tmp_path, change, said):
    shutil.copytree(exported, tmp_path / "lacking")
    file = tmp_path / "lacking" / "model.safetensors"
    weights = {change(name): weight for name, weight in load_file(file).items() if change(name)}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        load_encoder(str(tmp_path / "lacking"))


def test_pickled_weights_are_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        load_encoder(str(tmp_path / "pickled"))


@pytest.mark.parametrize("resample", [0, 1])  # nearest, Lanczos
def test_a_resampling_that_open_clip_does_not_know_is_refused(exported, tmp_path, resample):
    shutil.copytree(exported, tmp_path / "other")
    file = tmp_path / "other" / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["resample"] = resample
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"resized with resample {resample}, not bilinear"):
        load_encoder(str(tmp_path / "other"))
