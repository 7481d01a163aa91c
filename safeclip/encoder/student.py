"""The student: a copy of the base model with low-rank adapters, which alone are trained, or trained as a whole.

open_clip's attention keeps query, key and value in one matrix, in a module that adapters cannot reach without
rewriting its weights at every pass. A student with adapters therefore has attention of separate linear layers; the
same numbers, and names of modules that can be told apart. Adapters lie, as the paper's do, on key, value and output
of the attention, on both layers of the MLP, and on the patch embedding.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from safeclip.config import Lora
from safeclip.encoder.export import huggingface_name
from safeclip.encoder.lora import AdaptedLinear, AdaptedPatches, Dropout
from safeclip.errors import UserError

# The second line has timm's names, which SigLIP's image towers go by.
TARGETS = (
    r"(.*\.)?(attn\.(k_proj|v_proj|out_proj)|mlp\.(c_fc|c_proj)|conv1"
    r"|attn\.(qkv|proj)|mlp\.(fc1|fc2)|patch_embed\.proj)"
)


class SplitAttention(nn.Module):
    """What `nn.MultiheadAttention` computes for self-attention, from four linear layers; batch first."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if not fused.batch_first or fused.in_proj_weight is None or fused.in_proj_bias is None:
            raise UserError("train.base: the attention of this encoder has no single projection with a bias to adapt")
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
        mask = None if attn_mask is None else attn_mask.to(q.dtype)
        if q.device.type == "cpu" and q.dtype is torch.bfloat16:
            # The fused kernel takes four times as long here, there and back (50 tokens, one core).
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            mixed = (scores if mask is None else scores + mask).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
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


def _replace(model: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Puts what `make` gives in the place of every module of a kind."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is kind:
                setattr(module, name, make(child))


def split_attention(model: nn.Module) -> None:
    """Gives a model attention of separate linear layers."""
    _replace(model, nn.MultiheadAttention, SplitAttention)


def fuse_attention(model: nn.Module) -> None:
    """Undoes `split_attention`."""
    _replace(model, SplitAttention, lambda attention: attention.fuse())


def make_student(clip: nn.Module, lora: Lora | None, seed: int = 0) -> nn.Module:
    """Returns a student: a copy of an encoder that is ready to be trained. The encoder is not touched.

    Args:
        clip: as open_clip builds it.
        lora: rank, alpha and dropout of fresh adapters, which alone are trainable; None to train all weights.
        seed: of the adapters' first values; the embeddings equal the encoder's whatever they are.

    Raises:
        UserError: the encoder is more than two towers, or `lora.targets` names no module; or where nothing is named,
            a tower has none of the layers that adapters go to.
    """
    if hasattr(clip, "text_decoder"):
        raise UserError(f"train.base: {type(clip).__name__} has a decoder besides its towers; give a CLIP")
    student = copy.deepcopy(clip)
    if lora is None:
        student.requires_grad_(True)
        for name, parameter in student.named_parameters():
            if name in ("logit_scale", "logit_bias"):  # of the contrastive loss of pretraining
                parameter.requires_grad_(False)
        return student
    split_attention(student)
    attention: Any
    for attention in student.modules():
        if hasattr(attention, "qkv_bias_separate"):
            # Else attention of EVA's kind multiplies by the weight of its projection, past the adapter around it.
            attention.qkv_bias_separate = True
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets or TARGETS,
        bias="none",
    )
    if not lora.dropout:
        settings._register_custom_module({nn.Linear: AdaptedLinear, nn.Conv2d: AdaptedPatches})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(student, settings)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"train.lora.targets: {lora.targets or 'the default'!r} will not do: {reason}") from error
    missing = {"image", "text"} - {_tower_of(n) for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}
    if missing and not lora.targets:
        raise UserError(
            f"train.lora.targets: the {min(missing)} tower of this encoder has no layers of the usual names; "
            "name those to adapt (a regular expression), or train all weights with train.lora=null"
        )
    for module in adapted.modules():
        if isinstance(module, LoraLayer):  # and not the base's own, which stays another class than the adapters'
            _replace(module.lora_dropout, nn.Dropout, lambda dropout: Dropout(dropout.p))
    return adapted


def _tower_of(module: str) -> str:
    return "image" if ".visual." in module else "text"


def lower_frozen(student: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the frozen weights of a student's layers in the type that autocast would cast them to at every pass.

    A GPU keeps float32 where there is an adapter to merge: it takes many rows at a time (see `AdaptedLinear`).

    Args:
        student: as `make_student` gives it; changed in place.
        dtype: of the autocast.
    """
    kinds = AdaptedLinear | AdaptedPatches
    adapted = {module.get_base_layer() for module in student.modules() if isinstance(module, kinds)}
    for module in student.modules():
        frozen = isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad
        if frozen and not (module in adapted and module.weight.is_cuda):
            module.to(dtype)
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # the autocast casts back what peft would cast to float32


def compile_blocks(towers: nn.Module) -> None:
    """Compiles each block of a student's towers, or the towers as a whole where they have no known blocks.

    All blocks of a tower are one piece of code, so it is compiled once for all of them. The number of items and the
    length of captions differ from step to step.
    """
    torch._dynamo.config.recompile_limit = 32  # per type, tower, with gradients or none, in training or not
    blocks = [module for module in towers.modules() if isinstance(module, ResidualAttentionBlock | Block)]
    for block in blocks or [towers]:
        block.compile(dynamic=True)


def train_mode(module: nn.Module) -> None:
    """Puts a student in training mode, all but its batch norms and, where it has adapters, the base's own dropout.

    The batch norms' statistics stay the base encoder's: those of a batch would make an embedding depend on what else
    is in it, and the running ones are no weights that checkpoints and exports hold.

    With adapters, `train.lora.dropout` is all the dropout that there is; stochastic depth, and patches left out, are
    of the base's training. Where all weights are trained, they are as the base's config says: there is no other
    setting for them, and they keep so many weights from learning the rows by heart.
    """
    adapted = any(isinstance(part, PeftModel) for part in module.modules())
    module.train(not adapted)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
        elif adapted:
            # Not by the kinds of dropout: some of it is functions that ask whether the module around is in training.
            # So do Hugging Face's layers before they do without their activations.
            checkpoints = isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing
            part.training = isinstance(part, Dropout) or checkpoints


def clip_of(student: nn.Module) -> Any:
    """Returns the encoder within a student, with its adapters at work."""
    return student.get_base_model() if isinstance(student, PeftModel) else student


def trained_state(student: nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of the weights that training changes, by name, on the CPU."""
    if isinstance(student, PeftModel):
        state = get_peft_model_state_dict(student)
    else:
        state = {name: p for name, p in student.named_parameters() if p.requires_grad}
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}


def load_trained_state(student: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fills a student with what `trained_state` returned.

    Raises:
        UserError: it is of another student.
    """
    own = trained_state(student)
    odd = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
    if odd:
        raise UserError(f"the checkpoint is of another architecture or other adapters: it differs in {odd[0]}")
    if isinstance(student, PeftModel):
        set_peft_model_state_dict(student, state)
    else:
        student.load_state_dict(state, strict=False)


def merge_student(student: nn.Module) -> nn.Module:
    """Returns an encoder as open_clip builds it, adapters worked into its weights. The student is not touched."""
    merged = copy.deepcopy(student)
    if isinstance(merged, PeftModel):
        merged = merged.merge_and_unload()
        fuse_attention(merged)
    return merged.eval().requires_grad_(False)


def save_adapter(student: PeftModel, folder: Path) -> None:
    """Writes the adapters as `PeftModel.from_pretrained` puts them on the base model's Hugging Face CLIPModel."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model."
    state = {prefix + huggingface_name(k.removeprefix(prefix)): v for k, v in trained_state(student).items()}
    save_file(state, folder / "adapter_model.safetensors")
    settings: Any = copy.deepcopy(student.peft_config["default"])
    settings.target_modules = sorted({name.removeprefix(prefix).rsplit(".lora_", 1)[0] for name in state})
    settings.inference_mode = True
    settings.save_pretrained(folder)
