"""The encoder for others: as an open_clip folder, as a Hugging Face CLIPModel, and as an SD text encoder.

All of them hold the same weights under other names; their embeddings agree within rounding.
"""

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModel,
)
from transformers.utils import logging

from safeclip.encoder.model import Encoder
from safeclip.errors import UserError

# open_clip's names of modules and parameters, and what Hugging Face calls them; applied in this order.
_RENAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc", ".mlp.fc1"),
    (r"\.mlp\.c_proj", ".mlp.fc2"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\b", "vision_model.embeddings.patch_embedding"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
)
EXPORTS = ("open_clip", "huggingface", "text_encoder", "lora")  # folders, as far as an encoder has them
TRANSPOSED = ("visual.proj", "text_projection")  # open_clip multiplies by them from the right


def huggingface_name(name: str) -> str:
    """Returns what Hugging Face's CLIPModel calls a module or parameter of an open_clip.CLIP."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def oddities(model: torch.nn.Module) -> list[str]:
    """Returns what an encoder has that Hugging Face's CLIPModel cannot express; nothing for a plain CLIP."""
    if not isinstance(model, open_clip.CLIP) or not isinstance(model.visual, VisionTransformer):
        return ["towers other than two plain transformers"]
    blocks = [*model.transformer.resblocks, *model.visual.transformer.resblocks]
    odd = {
        "layer scale": any(not isinstance(b.ls_1, torch.nn.Identity) for b in blocks),
        "attention pooling": model.visual.attn_pool is not None or model.visual.pool_type != "tok",
        "no norm before the image transformer": isinstance(model.visual.ln_pre, torch.nn.Identity),
        "a text tower that is not causal": model.attn_mask is None or model.text_pool_type != "argmax",
        "a projection with a bias": not isinstance(model.text_projection, torch.nn.Parameter),
    }
    return [what for what, is_so in odd.items() if is_so]


def check_plain(model: torch.nn.Module) -> None:
    """Refuses an encoder that Hugging Face's CLIPModel cannot express.

    Raises:
        UserError: names the part that differs.
    """
    if found := oddities(model):
        raise UserError(f"an encoder with {' and '.join(found)} has no Hugging Face CLIPModel")


def _tower(transformer: Any, width: int) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        "layer_norm_eps": block.ln_1.eps,
    }


def huggingface_config(clip: Any) -> CLIPConfig:
    """Returns the CLIPConfig of an open_clip.CLIP."""
    vocabulary, text_width = clip.token_embedding.weight.shape
    image_width = clip.visual.conv1.out_channels
    text = {
        **_tower(clip.transformer, text_width),
        "vocab_size": vocabulary,
        "max_position_embeddings": clip.positional_embedding.shape[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # where the tower pools; the library's default would pool elsewhere
        "pad_token_id": vocabulary - 1,
        "projection_dim": clip.text_projection.shape[1],
    }
    image = {
        **_tower(clip.visual.transformer, image_width),
        "image_size": clip.visual.image_size[0],
        "patch_size": clip.visual.patch_size[0],
        "projection_dim": clip.visual.proj.shape[1],
    }
    return CLIPConfig(text_config=text, vision_config=image, projection_dim=clip.text_projection.shape[1])


def huggingface_state(clip: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of an open_clip.CLIP by the names of Hugging Face's CLIPModel, in its shapes, float32."""
    state = {}
    for name, value in clip.state_dict().items():
        value = value.detach().float().cpu()
        if ".in_proj_" in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                state[huggingface_name(name.replace(".in_proj_", f".{part}_proj."))] = chunk.clone()
        else:
            state[huggingface_name(name)] = value.T.contiguous() if name in TRANSPOSED else value
    return state


def to_huggingface(clip: Any) -> CLIPModel:
    """Returns an open_clip.CLIP as a Hugging Face CLIPModel, float32, in evaluation mode.

    Raises:
        UserError: the encoder is no plain CLIP.
    """
    check_plain(clip)
    model = CLIPModel(huggingface_config(clip))
    model.load_state_dict(huggingface_state(clip))
    return model.eval()


def to_text_encoder(clip: Any) -> CLIPTextModel:
    """Returns the text tower as what `StableDiffusionPipeline.text_encoder` takes, float32, in evaluation mode.

    Raises:
        UserError: the encoder is no plain CLIP.
    """
    check_plain(clip)
    model = CLIPTextModel(huggingface_config(clip).text_config)
    return _filled(model, clip, "text_model.")


def to_vision_tower(clip: Any) -> CLIPVisionModel:
    """Returns the image tower as what a LLaVA's `vision_tower` is, float32, in evaluation mode.

    Raises:
        UserError: the encoder is no plain CLIP.
    """
    check_plain(clip)
    return _filled(CLIPVisionModel(huggingface_config(clip).vision_config), clip, "vision_model.")


def _filled(tower: Any, clip: torch.nn.Module, prefix: str) -> Any:
    state = huggingface_state(clip)
    tower.load_state_dict({name: state[prefix + name] for name in tower.state_dict()})
    return tower.eval()


def clip_tokenizer(context_length: int) -> CLIPTokenizer:
    """Returns open_clip's byte-pair tokenizer as a CLIPTokenizer; it pads with the end token.

    Args:
        context_length: tokens at most, start and end among them.
    """
    own = open_clip.SimpleTokenizer(context_length=context_length)
    return CLIPTokenizer(
        vocab=own.encoder,
        merges=list(own.bpe_ranks),
        unk_token="<end_of_text>",
        bos_token="<start_of_text>",
        eos_token="<end_of_text>",
        pad_token="<end_of_text>",
        model_max_length=context_length,
    )


def clip_processor(encoder: Encoder) -> CLIPProcessor:
    """Returns the processor that prepares pictures and texts as the encoder was trained with."""
    config = encoder.config["preprocess_cfg"]
    height, width = config["size"]
    squash = config["resize_mode"] == "squash"
    images = CLIPImageProcessor(
        size={"height": height, "width": width} if squash else {"shortest_edge": min(height, width)},
        do_center_crop=not squash,
        crop_size={"height": height, "width": width},
        resample=2 if config["interpolation"] == "bilinear" else 3,  # as open_clip reads it
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
    )
    return CLIPProcessor(images, clip_tokenizer(encoder.model.context_length))


def save_open_clip(model: torch.nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes what `open_clip.create_model("local-dir:<folder>")` loads: the config, and float32 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.detach().float().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def export_encoder(encoder: Encoder, folder: Path) -> None:
    """Writes `open_clip/`, with the tokenizer where it is the encoder's own, and of a plain CLIP more below a folder.

    That is `huggingface/` and `text_encoder/`.
    """
    logging.disable_progress_bar()  # of writing one file
    save_open_clip(encoder.model, encoder.config, folder / "open_clip")
    if hasattr(encoder.tokenizer, "save_pretrained"):  # not open_clip's default, which needs no files
        encoder.tokenizer.save_pretrained(folder / "open_clip")
    if found := oddities(encoder.model):
        print(f"export: for open_clip only; {' and '.join(found)} cannot be a Hugging Face CLIPModel")
        return
    to_huggingface(encoder.model).save_pretrained(folder / "huggingface")
    clip_processor(encoder).save_pretrained(folder / "huggingface")
    to_text_encoder(encoder.model).save_pretrained(folder / "text_encoder")
