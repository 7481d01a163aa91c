"""The layers of low-rank adapters: merged where nothing is dropped, and a fast dropout where something is.

What an adapter adds to a layer's output, y = x Wᵀ + s (x Aᵀ) Bᵀ, may as well be added to its weight,
y = x (W + s B A)ᵀ (Hu et al., 2022), unless the adapter's input is not the layer's. The first is usual in training,
where what goes in and out of the thin products takes longer than they do; here the second is, in training too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn


class MergedLinear(lora.Linear):
    """A linear layer with one adapter without dropout, which is merged into the weight at every pass.

    The weight stays float32, since a sum in bfloat16 would lose an adapter that is small beside it; it is the sum
    that is rounded to the type of the autocast.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Returns the layer's output (…, out) of x (…, in)."""
        if self.disable_adapters or self.merged:
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        (name,) = self.active_adapters
        layer, a, b = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight
        return _Merged.apply(x, layer.weight, layer.bias, a, b, self.scaling[name])


class _Merged(torch.autograd.Function):
    """The product, and its gradient: that of the whole weight is never made, only those of A and B.

    With g the gradient of y, and rows of all leading dimensions in one: dA = s (g B)ᵀ x and dB = s gᵀ (x Aᵀ).
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
        g, rows = g.flatten(0, -2), x.flatten(0, -2)
        dx = (g @ merged).view_as(x) if ctx.needs_input_grad[0] else None
        da = (g @ b).T @ rows * ctx.scale
        db = (rows @ a.T).T @ g * ctx.scale  # of the transpose, for which g need not be copied
        return dx, None, None, da, db.T.contiguous(), None


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
