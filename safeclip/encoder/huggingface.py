"""The way in for Hugging Face's CLIPModel: its folder, loaded as the open_clip model of the same weights."""

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from safeclip.encoder.export import TRANSPOSED, huggingface_name
from safeclip.errors import UserError

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def is_huggingface_clip(folder: Path) -> bool:
    """Whether a folder holds a `CLIPModel`, as its `save_pretrained` writes it."""
    if not (folder / "config.json").is_file():
        return False
    try:
        return CLIPConfig.get_config_dict(folder)[0].get("model_type") == "clip"
    except OSError:
        return False


def load_huggingface_clip(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Returns the open_clip model, on the CPU, and open_clip's `model_cfg` and `preprocess_cfg`.

    Args:
        folder: of a `CLIPModel`, and of its image processor.

    Raises:
        UserError: a file is missing or broken, or the model is one that open_clip's CLIP cannot express.
    """
    try:
        source = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        processor = CLIPImageProcessor.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"encoder {str(folder)!r} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    model_cfg = _model_config(source.config, str(folder))
    preprocess_cfg = _preprocess_config(processor, model_cfg["vision_cfg"]["image_size"])
    model = open_clip.CLIP(**model_cfg)
    model.load_state_dict(_open_clip_state(model, source.state_dict()))
    model.visual.preprocess_cfg = preprocess_cfg
    return model, {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


def preprocess_of(preprocess_cfg: dict[str, Any]) -> Any:
    """Returns the transform of a picture that open_clip's `preprocess_cfg` describes."""
    return image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)


def _model_config(config: CLIPConfig, name: str) -> dict[str, Any]:
    text, image = config.text_config, config.vision_config
    if text.vocab_size != len(open_clip.SimpleTokenizer().encoder):
        raise UserError(f"encoder {name!r}: a vocabulary of {text.vocab_size} is not that of CLIP's tokenizer")
    kinds = {tower.hidden_act for tower in (text, image)}
    if len(kinds) > 1 or not kinds <= {"gelu", "quick_gelu"}:
        raise UserError(f"encoder {name!r}: its activations are {', '.join(sorted(kinds))}, not gelu or quick_gelu")
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


def _preprocess_config(processor: CLIPImageProcessor, image_size: int) -> dict[str, Any]:
    return {
        "size": [image_size, image_size],
        "mode": "RGB",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": _INTERPOLATIONS.get(int(processor.resample), "bicubic"),
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
