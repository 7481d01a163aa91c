"""The training-free baseline: weights that unsafe input needs more than safe input are negated.

After Unsafe Weights Manipulation (WACV 2026), from its description: how much a weight matters to some input is its
size times the norm of the feature that it multiplies (as in Wanda; Sun et al., 2024); the weights of each layer that
matter more to unsafe than to safe rows by the largest difference change their sign.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import nn

from safeclip.encoder.data import Batch
from safeclip.encoder.model import Encoder, encode_tokens
from safeclip.encoder.student import fuse_attention, split_attention

PART = 64  # rows that pass through a tower at once


@torch.no_grad()
def negate_unsafe_weights(encoder: Encoder, safe: Batch, unsafe: Batch, share: float) -> tuple[nn.Module, int]:
    """Returns an encoder's model with weights negated, and how many were. The encoder is not touched.

    Args:
        encoder: whose model to change.
        safe: texts and pictures, the text tower's layers being judged by the texts and the image tower's by pictures.
        unsafe: others.
        share: of each linear layer's weights, at most; only weights that matter more to the unsafe rows.
    """
    model: Any = copy.deepcopy(encoder.model)
    split_attention(model)
    of_safe, of_unsafe = (_feature_norms(model, encoder, rows) for rows in (safe, unsafe))
    negated = sum(_negate(layer.weight, of_safe[layer], of_unsafe[layer], share) for layer in of_safe)
    fuse_attention(model)
    return model.eval(), negated


def _negate(weight: torch.Tensor, safe: torch.Tensor, unsafe: torch.Tensor, share: float) -> int:
    """Negates the weights (out, in) of a layer by the norms (in,) of its features, and returns how many."""
    excess = (weight.abs() * (unsafe - safe)).flatten()
    chosen = excess.topk(int(share * len(excess))).indices
    chosen = chosen[excess[chosen] > 0]
    weight.view(-1)[chosen] *= -1
    return len(chosen)


def _feature_norms(model: Any, encoder: Encoder, rows: Batch) -> dict[nn.Linear, torch.Tensor]:
    """Returns the root mean square of each input feature (in,) of each linear layer that rows pass through."""
    sums: dict[nn.Linear, torch.Tensor] = {}
    counts: Counter[nn.Linear] = Counter()

    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        features = inputs[0].flatten(0, -2).float()
        sums[layer] = sums.get(layer, 0) + features.square().sum(0)
        counts[layer] += len(features)

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    for start in range(0, len(rows), PART):
        part = rows.part(start, start + PART)
        encode_tokens(model, part.tokens.to(encoder.device))
        model.encode_image(encoder.normalize_pixels(part.pixels.to(encoder.device)))
    for handle in handles:
        handle.remove()
    return {layer: (total / counts[layer]).sqrt() for layer, total in sums.items()}
