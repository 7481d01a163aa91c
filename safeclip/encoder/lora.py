"""The layers of low-rank adapters: one product for what goes in, and a fast dropout for where something is dropped.

What an adapter adds to a layer's output, y = x Wᵀ + s (x Aᵀ) Bᵀ, may as well be added to its weight,
y = x (W + s B A)ᵀ (Hu et al., 2022), unless the adapter's input is not the layer's. peft does the first in steps that
each write what the next one reads, and in training that takes longer than the thin products themselves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn


class AdaptedLinear(lora.Linear):
    """A linear layer with one adapter without dropout.

    The adapter is merged into the weight at every pass where the weight is float32: the least work for many rows. A
    sum in bfloat16 would lose an adapter that is small beside the weight, so where the weight is bfloat16 already the
    adapter adds to the output: the least work for few rows.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Returns the layer's output (…, out) of x (…, in)."""
        if self.disable_adapters or self.merged:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        (name,) = self.active_adapters
        layer, a, b = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight
        product = _Merged if layer.weight.dtype == torch.float32 else _Added
        return product.apply(x.flatten(0, -2), layer.weight, layer.bias, a, b, self.scaling[name]).unflatten(
            0, x.shape[:-1]
        )


class _Merged(torch.autograd.Function):
    """y = x (W + s B A)ᵀ for x (N, in). The gradient of the whole weight is never made, only those of A and B.

    With g the gradient of y: dA = s (g B)ᵀ x and dB = s gᵀ (x Aᵀ).
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            merged = torch.addmm(weight, b, a, alpha=scale).to(x.dtype)
        ctx.save_for_backward(x, merged, a.to(x.dtype), b.to(x.dtype))
        ctx.scale = scale
        return F.linear(x, merged, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:  # type: ignore[override]
        x, merged, a, b = ctx.saved_tensors
        dx = g @ merged if ctx.needs_input_grad[0] else None
        da = (g @ b).T @ x * ctx.scale
        db = _transposed((x @ a.T).T @ g * ctx.scale)
        return dx, None, None, da, db, None


class _Added(torch.autograd.Function):
    """y = x Wᵀ + s (x Aᵀ) Bᵀ for x (N, in), the same otherwise."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        thin = x @ a.T
        ctx.save_for_backward(x, weight, a, b, thin)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(thin, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:  # type: ignore[override]
        x, weight, a, b, thin = ctx.saved_tensors
        back = g @ b * ctx.scale
        dx = (g @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, back.T @ x, _transposed(thin.T @ g * ctx.scale), None


def _transposed(x: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of B from that of Bᵀ, of which no product has to copy g."""
    return x.T.contiguous()


class Dropout(nn.Dropout):
    """What `nn.Dropout` computes, in less than half the time on a CPU, where its random numbers come one by one.

    Here a 64-bit number decides on four elements, so the rate is a multiple of 2⁻¹⁶.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x with elements left out at random, and the others enlarged to keep its mean."""
        if not (self.training and self.p) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        random = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (random[: x.numel()] >= dropped - 2**15).view(x.shape)
        return x * kept.view(torch.int8).to(x.dtype).mul_(2**16 / (2**16 - dropped))  # bool takes longer to convert
