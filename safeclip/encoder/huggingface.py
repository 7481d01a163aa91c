"""The way in for Hugging Face's CLIPModel: its folder, loaded as the open_clip model of the same weights."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from safeclip.encoder.export import TRANSPOSED, huggingface_name
from safeclip.encoder.model import Encoder
from safeclip.errors import UserError
from safeclip.pretrained import load_model, load_pretrained

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # open_clip knows no others


def load_huggingface(folder: Path, device: str) -> Encoder:
    """Loads a `CLIPModel`, with its image processor, as `save_pretrained` writes them.

    Args:
        folder: where they lie.
        device: where the model is put.

    Raises:
        UserError: the folder holds no such model, or not all of it, a file is broken, or open_clip's CLIP cannot
            express it.
    """
    name = f"encoder {str(folder)!r}"
    try:
        kind = CLIPConfig.get_config_dict(folder)[0].get("model_type")
    except OSError:
        kind = None
    if kind != "clip":
        raise UserError(f"{name}: the folder holds neither open_clip_config.json nor a Hugging Face CLIPModel")
    source, loading = load_model(CLIPModel, str(folder), name, dtype=torch.float32, output_loading_info=True)
    processor = load_pretrained(CLIPImageProcessor, str(folder), name)
    if missing := sorted(loading["missing_keys"]):  # which are random numbers now
        raise UserError(f"{name} cannot be loaded: {len(missing)} of its weights are missing, such as {missing[0]}")
    model_cfg = _model_config(source.config, name)
    preprocess_cfg = _preprocess_config(processor, source.config.vision_config.image_size, name)
    model = open_clip.CLIP(**model_cfg)
    model.load_state_dict(_open_clip_state(model, source.state_dict()))
    return Encoder(
        model.to(device).eval().requires_grad_(False),
        open_clip.SimpleTokenizer(context_length=model.context_length),
        image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False),
        {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg},
        device,
    )


def _model_config(config: CLIPConfig, name: str) -> dict[str, Any]:
    text, image = config.text_config, config.vision_config
    if text.vocab_size != len(open_clip.SimpleTokenizer().encoder):
        raise UserError(f"{name}: a vocabulary of {text.vocab_size} is not that of CLIP's tokenizer")
    if any(tower.layer_norm_eps != 1e-5 for tower in (text, image)):
        raise UserError(f"{name}: open_clip's layer norms have an epsilon of 1e-5, not this model's")
    kinds = {tower.hidden_act for tower in (text, image)}
    if len(kinds) > 1 or not kinds <= {"gelu", "quick_gelu"}:
        raise UserError(f"{name}: its activations are {', '.join(sorted(kinds))}, not gelu or quick_gelu")
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": kinds == {"quick_gelu"},
        "vision_cfg": {
            **_tower_config(image),
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "head_width": image.hidden_size // image.num_attention_heads,
        },
        "text_cfg": {
            **_tower_config(text),
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
        },
    }


def _tower_config(tower: Any) -> dict[str, Any]:
    ratio = tower.intermediate_size / tower.hidden_size
    return {"width": tower.hidden_size, "layers": tower.num_hidden_layers, "mlp_ratio": ratio}


def _preprocess_config(processor: CLIPImageProcessor, image_size: int, name: str) -> dict[str, Any]:
    if (resample := processor.resample) not in _INTERPOLATIONS:
        raise UserError(f"{name}: its pictures are resized with resample {resample}, not bilinear (2) or bicubic (3)")
    return {
        "size": [image_size, image_size],
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": _INTERPOLATIONS[resample],
        "resize_mode": "shortest" if processor.do_center_crop else "squash",
        "fill_color": 0,
    }


def _open_clip_state(model: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns their weights by open_clip's names, in its shapes."""
    state = {}
    for name in model.state_dict():
        if ".in_proj_" in name:
            parts = [theirs[huggingface_name(name.replace(".in_proj_", f".{part}_proj."))] for part in "qkv"]
            state[name] = torch.cat(parts)
        else:
            value = theirs[huggingface_name(name)]
            state[name] = value.T.contiguous() if name in TRANSPOSED else value
    return state
