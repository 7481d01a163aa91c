"""Low-rank adapters on a CLIP: the student is the base model plus adapters, and nothing else of it is trained.

open_clip's attention keeps query, key and value in one matrix, in a module that adapters cannot reach without
rewriting its weights at every pass. The student therefore has attention of separate linear layers; the same
numbers, and names of modules that can be told apart. Adapters lie, as the paper's do, on key, value and output of the
attention, on both layers of the MLP, and on the patch embedding.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from safeclip.config import Lora
from safeclip.encoder.export import huggingface_name
from safeclip.errors import UserError

TARGETS = r"(.*\.)?(attn\.(k_proj|v_proj|out_proj)|mlp\.(c_fc|c_proj)|conv1)"


class SplitAttention(nn.Module):
    """What `nn.MultiheadAttention` computes for self-attention, from four linear layers; batch first."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if not fused.batch_first or fused.in_proj_weight is None or fused.in_proj_bias is None:
            raise ValueError("attention must have one projection with a bias, batch first")
        self.num_heads = fused.num_heads
        projections = zip(fused.in_proj_weight.chunk(3), fused.in_proj_bias.chunk(3), strict=True)
        self.q_proj, self.k_proj, self.v_proj = (_linear(weight, bias) for weight, bias in projections)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Returns the attended values (B, L, width); the weights are never returned."""
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        mixed = F.scaled_dot_product_attention(q, k, v, None if attn_mask is None else attn_mask.to(q.dtype))
        return self.out_proj(mixed.transpose(1, 2).flatten(-2)), None

    @torch.no_grad()
    def fuse(self) -> nn.MultiheadAttention:
        """Returns the same as an `nn.MultiheadAttention`."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        fused = nn.MultiheadAttention(self.out_proj.in_features, self.num_heads, batch_first=True)
        fused.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        fused.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        fused.out_proj.weight.copy_(self.out_proj.weight)
        fused.out_proj.bias.copy_(self.out_proj.bias)
        return fused.to(self.out_proj.weight.device)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return linear


def _blocks(clip: Any) -> list[Any]:
    return [*clip.transformer.resblocks, *clip.visual.transformer.resblocks]


def add_lora(clip: Any, config: Lora, seed: int = 0) -> PeftModel:
    """Returns a student: a copy of a CLIP with fresh adapters, which alone are trainable. The CLIP is not touched.

    Args:
        clip: a plain `open_clip.CLIP`.
        config: rank, alpha and dropout.
        seed: of the adapters' first values; the embeddings equal the CLIP's whatever they are.

    Raises:
        UserError: `config.targets` names no module.
    """
    student = copy.deepcopy(clip)
    for block in _blocks(student):
        block.attn = SplitAttention(block.attn)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets or TARGETS,
        bias="none",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(student, settings)
        except ValueError as error:
            raise UserError(f"train.lora.targets: {config.targets!r} names no layer that can be adapted") from error


def adapter_state(student: PeftModel) -> dict[str, torch.Tensor]:
    """Returns a copy of the adapters' weights by name, on the CPU."""
    return {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for k, v in get_peft_model_state_dict(student).items()
    }


def load_adapter_state(student: PeftModel, state: dict[str, torch.Tensor]) -> None:
    """Fills a student's adapters with what `adapter_state` returned."""
    set_peft_model_state_dict(student, state)


def merge_lora(student: PeftModel) -> Any:
    """Returns an `open_clip.CLIP` with the adapters worked into its weights. The student is not touched."""
    clip = copy.deepcopy(student).merge_and_unload()
    for block in _blocks(clip):
        block.attn = block.attn.fuse()
    return clip.eval().requires_grad_(False)


def save_adapter(student: PeftModel, folder: Path) -> None:
    """Writes the adapters as `PeftModel.from_pretrained` puts them on the base model's Hugging Face CLIPModel."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model."
    state = {prefix + huggingface_name(k.removeprefix(prefix)): v for k, v in adapter_state(student).items()}
    save_file(state, folder / "adapter_model.safetensors")
    settings: Any = copy.deepcopy(student.peft_config["default"])
    settings.target_modules = sorted({name.removeprefix(prefix).rsplit(".lora_", 1)[0] for name in state})
    settings.inference_mode = True
    settings.save_pretrained(folder)
