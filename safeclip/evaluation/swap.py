"""Puts an encoder's towers in the place of those that a pretrained generative model was made with.

The model's own tower is filled with the encoder's weights and keeps all else: dtype, device, kind of attention. So
two encoders differ in nothing but their weights, and the encoder that the tower came from changes no bit.
"""

from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel, PreTrainedConfig

from safeclip.encoder.export import check_plain, huggingface_config, huggingface_state
from safeclip.encoder.model import Encoder
from safeclip.errors import UserError

TEXT_SLOTS = ("text_encoder", "text_encoder_2")

# Settings of Hugging Face's towers that must agree, and what a message calls them.
_SHARED = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "MLP width",
    "hidden_act": "activation",
    "layer_norm_eps": "epsilon",
}
_TEXT = {**_SHARED, "vocab_size": "vocabulary", "max_position_embeddings": "context length"}
_VISION = {**_SHARED, "image_size": "picture size", "patch_size": "patch size"}


def swap_text_encoder(pipeline: Any, encoder: Encoder) -> str:
    """Fills the text tower of a StableDiffusionPipeline or StableDiffusionXLPipeline with an encoder's weights.

    Of SDXL's two towers the first that is of the encoder's architecture is filled; the other one stays as it is.
    Stable Diffusion 2 comes without its tower's last layer, since it takes the states before that: such a tower gets
    the layers that it has.

    Args:
        pipeline: changed in place.
        encoder: any plain CLIP.

    Returns:
        The name of the pipeline's part that was filled.

    Raises:
        UserError: the pipeline has no CLIP text tower, or none of the encoder's architecture; the message names what
            differs, with both sizes.
    """
    towers = {name: getattr(pipeline, name, None) for name in TEXT_SLOTS}
    towers = {n: t for n, t in towers.items() if isinstance(t, CLIPTextModel | CLIPTextModelWithProjection)}
    if not towers:
        raise UserError(f"{type(pipeline).__name__} has no CLIP text encoder that could be replaced")
    check_plain(encoder.model)
    config = huggingface_config(encoder.model).text_config
    misfits = {name: _text_misfits(config, tower) for name, tower in towers.items()}
    fitting = next((name for name, found in misfits.items() if not found), None)
    if fitting is None:
        raise _misfit("; ".join(f"{name}: {', '.join(found)}" for name, found in misfits.items()))
    _fill(towers[fitting], encoder, "" if _projects(towers[fitting]) else "text_model.")
    return fitting


def swap_vision_tower(llava: Any, encoder: Encoder) -> None:
    """Fills the vision tower of a LlavaForConditionalGeneration with an encoder's weights, in place.

    Raises:
        UserError: the tower is no CLIP's, or of another architecture or picture size than the encoder's; the message
            names what differs, with both sizes.
    """
    tower = llava.model.vision_tower
    if not isinstance(tower, CLIPVisionModel):
        raise UserError(f"the vision tower is a {type(tower).__name__}, which no CLIP can replace")
    check_plain(encoder.model)
    if found := _differences(huggingface_config(encoder.model).vision_config, tower.config, _VISION):
        raise _misfit(f"vision_tower: {', '.join(found)}")
    _fill(tower, encoder, "vision_model.")


def _projects(tower: torch.nn.Module) -> bool:
    return isinstance(tower, CLIPTextModelWithProjection)


def _text_misfits(config: PreTrainedConfig, tower: Any) -> list[str]:
    projection = {"projection_dim": "embedding width"} if _projects(tower) else {}
    cut = not projection and config.num_hidden_layers == tower.config.num_hidden_layers + 1
    names = {k: v for k, v in {**_TEXT, **projection}.items() if not (cut and k == "num_hidden_layers")}
    return _differences(config, tower.config, names)


def _differences(ours: PreTrainedConfig, theirs: PreTrainedConfig, names: dict[str, str]) -> list[str]:
    pairs = {name: (getattr(ours, key), getattr(theirs, key)) for key, name in names.items()}
    return [f"{name} {one} instead of {other}" for name, (one, other) in pairs.items() if one != other]


def _misfit(what: str) -> UserError:
    return UserError(f"the encoder does not fit the model ({what}); give one of the architecture it was made with")


def _fill(tower: torch.nn.Module, encoder: Encoder, prefix: str) -> None:
    weights = huggingface_state(encoder.model)
    tower.load_state_dict({name: weights[prefix + name] for name in tower.state_dict()})
