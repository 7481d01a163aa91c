"""Small random models, for tests of what puts one into another."""

import dataclasses
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from safeclip.encoder.export import clip_tokenizer, to_vision_tower
from safeclip.encoder.model import Encoder
from safeclip.world.language_model import language_model
from safeclip.world.models import IMAGE_TOKEN

CONTEXT, SIZE = 12, 32


def small_encoder(width: int, layers: int, seed: int, **settings) -> Encoder:
    """A random encoder whose two towers have this width and depth."""
    torch.manual_seed(seed)
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": width, "layers": layers, "head_width": 16},
        "text_cfg": {"context_length": CONTEXT, "width": width, "heads": 2, "layers": layers},
        **settings,
    }
    model = open_clip.CLIP(**config).eval()
    return Encoder(model, lambda texts: texts, None, {"model_cfg": config})


def shaken(encoder: Encoder) -> Encoder:
    """The encoder with other weights in both towers."""
    model = open_clip.CLIP(**encoder.config["model_cfg"]).eval()
    model.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return dataclasses.replace(encoder, model=model)


def small_sdxl(first: Path, second: Path) -> StableDiffusionXLPipeline:
    """A random SDXL whose text encoders are those of two folders of CLIPModels, 32 and 48 wide."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24, use_linear_projection=True,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=AutoencoderTiny(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4).eval(),
        text_encoder=CLIPTextModel.from_pretrained(first),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(second),
        tokenizer=clip_tokenizer(CONTEXT),
        tokenizer_2=clip_tokenizer(CONTEXT),
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def save_small_llava(encoder: Encoder, folder: Path) -> None:
    """Writes a random LLaVA around an encoder's vision tower, with SmolLM2's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(language_model())
    tower = to_vision_tower(encoder.model)
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower.config, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.save_pretrained(folder)
    size = {"height": tower.config.image_size, "width": tower.config.image_size}
    images = CLIPImageProcessor(size=size, crop_size=size)
    patch = tower.config.patch_size
    LlavaProcessor(
        images, tokenizer, patch, "default", image_token=IMAGE_TOKEN, num_additional_image_tokens=1
    ).save_pretrained(folder)
