"""Small random models, for tests of what puts one into another."""

import dataclasses
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from safeclip.encoder.export import clip_tokenizer
from safeclip.encoder.model import Encoder

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
