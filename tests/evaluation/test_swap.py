import copy

import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextModel,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from safeclip.encoder.export import to_huggingface
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from safeclip.evaluation.swap import swap_text_encoder, swap_vision_tower
from safeclip.world.models import build_generator
from tests.evaluation.models import SIZE, shaken, small_encoder, small_sdxl

TEXTS = ["a dog next to a bomb on a blue background", "a cat"]


def pictures(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": SIZE, "width": SIZE}
    return pipeline(TEXTS, generator=noise, output_type="np", **settings).images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random encoders of different sizes, and the folders of the CLIPModels that they are."""
    found = {}
    for name, encoder in {"first": small_encoder(32, 2, 1), "second": small_encoder(48, 3, 2)}.items():
        folder = tmp_path_factory.mktemp(name)
        to_huggingface(encoder.model).save_pretrained(folder)
        found[name] = (encoder, folder)
    return found


@pytest.fixture(scope="module")
def generator():
    """The world's."""
    return build_generator()


@pytest.fixture
def sdxl(folders):
    """A random SDXL whose text encoders Hugging Face's own classes loaded."""
    return small_sdxl(folders["first"][1], folders["second"][1])


@pytest.fixture
def llava(folders):
    """A random LLaVA whose vision tower Hugging Face's own class loaded."""
    torch.manual_seed(0)
    tower = CLIPVisionModel.from_pretrained(folders["first"][1])
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    config = LlavaConfig(vision_config=tower.config, text_config=text, image_token_index=63, image_seq_length=4)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    return model.eval()


@torch.no_grad()
def captions(llava) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and the scores of captions of two pictures."""
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    prompt = torch.tensor([[0, *[63] * 4, 5, 6]] * 2)
    tokens = llava.generate(input_ids=prompt, pixel_values=pixels, max_new_tokens=6, do_sample=False)
    return tokens.numpy(), llava(input_ids=prompt, pixel_values=pixels).logits.numpy()


def test_the_worlds_generator_draws_the_same_bits_with_its_own_encoder_and_others_with_another(generator):
    base = load_encoder("world:encoder")
    own = pictures(generator)
    assert swap_text_encoder(generator, shaken(base)) == "text_encoder"
    assert np.abs(pictures(generator) - own).max() > 0.05
    swap_text_encoder(generator, base)
    assert np.array_equal(pictures(generator), own)


@pytest.mark.parametrize(("name", "slot"), [("first", "text_encoder"), ("second", "text_encoder_2")])
def test_sdxl_takes_an_encoder_where_it_fits_and_draws_the_same_bits_with_its_own(sdxl, folders, name, slot):
    encoder = folders[name][0]
    own = pictures(sdxl)
    assert swap_text_encoder(sdxl, shaken(encoder)) == slot
    assert not np.array_equal(pictures(sdxl), own)
    assert swap_text_encoder(sdxl, encoder) == slot
    assert np.array_equal(pictures(sdxl), own)


def test_a_tower_without_its_last_layer_gets_the_states_before_it(generator, folders):
    encoder, folder = folders["second"]
    pipeline = copy.copy(generator)
    pipeline.text_encoder = CLIPTextModel.from_pretrained(folder, num_hidden_layers=2)
    tokens = torch.tensor([[49406, 1125, 1929, 49407]])
    whole = CLIPTextModel.from_pretrained(folder)
    with torch.no_grad():
        before_last = whole(tokens, output_hidden_states=True).hidden_states[-2]
        swap_text_encoder(pipeline, shaken(encoder))
        assert not torch.equal(pipeline.text_encoder(tokens)[0], whole.final_layer_norm(before_last))
        swap_text_encoder(pipeline, encoder)
        assert torch.equal(pipeline.text_encoder(tokens)[0], whole.final_layer_norm(before_last))


def test_llava_writes_the_same_bits_with_its_own_encoder_and_others_with_another(llava, folders):
    encoder = folders["first"][0]
    tokens, scores = captions(llava)
    swap_vision_tower(llava, shaken(encoder))
    assert not np.array_equal(captions(llava)[1], scores)
    swap_vision_tower(llava, encoder)
    again = captions(llava)
    assert np.array_equal(again[0], tokens)
    assert np.array_equal(again[1], scores)


def test_a_tower_keeps_its_own_dtype(generator, folders):
    pipeline = copy.copy(generator)
    pipeline.text_encoder = CLIPTextModel.from_pretrained(folders["first"][1], dtype=torch.bfloat16)
    swap_text_encoder(pipeline, folders["first"][0])
    assert {p.dtype for p in pipeline.text_encoder.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ((32, 2), r"text_encoder: width 32 instead of 128, layers 2 instead of 4, heads 2 instead of 4"),
        ((128, 4), r"text_encoder: heads 2 instead of 4, context length 12 instead of 32\)"),
    ],
)
def test_an_encoder_of_another_size_is_refused_with_both_sizes(generator, encoder, said):
    with pytest.raises(UserError, match=said):
        swap_text_encoder(generator, small_encoder(*encoder, seed=0))


def test_another_vocabulary_is_refused(generator):
    text = {"context_length": 32, "vocab_size": 600, "width": 128, "heads": 4, "layers": 4}
    with pytest.raises(UserError, match="vocabulary 600 instead of 49408"):
        swap_text_encoder(generator, small_encoder(32, 2, 0, text_cfg=text))


def test_sdxl_names_what_differs_from_either_encoder(sdxl):
    said = r"text_encoder: width 64 instead of 32.*; text_encoder_2: width 64 instead of 48, layers 4 instead of 3"
    with pytest.raises(UserError, match=said):
        swap_text_encoder(sdxl, small_encoder(64, 4, 0))


def test_llava_refuses_another_picture_size_and_a_tower_that_is_no_clip(llava):
    vision = {"image_size": 48, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
    with pytest.raises(UserError, match=r"vision_tower: picture size 48 instead of 32\)"):
        swap_vision_tower(llava, small_encoder(32, 2, 0, vision_cfg=vision))
    siglip = SiglipVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = LlavaConfig(vision_config=siglip, text_config=llava.config.text_config)
    with pytest.raises(UserError, match="SiglipVisionModel, which no CLIP can replace"):
        swap_vision_tower(LlavaForConditionalGeneration(config), small_encoder(32, 2, 0))


def test_a_pipeline_without_a_clip_is_refused(generator):
    pipeline = copy.copy(generator)
    pipeline.text_encoder = None
    with pytest.raises(UserError, match="StableDiffusionPipeline has no CLIP text encoder"):
        swap_text_encoder(pipeline, small_encoder(32, 2, 0))
