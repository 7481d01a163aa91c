"""The layers that carry low-rank adapters, and their dropout.

What an adapter adds to a layer's output, y = x Wᵀ + s (x Aᵀ) Bᵀ, may as well be added to its weight,
y = x (W + s B A)ᵀ (Hu et al., 2022), unless a dropout stands between x and A. peft computes the first in training,
where dropout, thin products, scaling and sum each write what the next one reads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn


class AdaptedLinear(lora.Linear):
    """A linear layer with one adapter without dropout.

    Where the weight is float32, the adapter is merged into it at every pass, which takes as long for one row as for
    many. A sum in bfloat16 would lose an adapter that is small beside the weight; where the weight is bfloat16
    already, the adapter therefore adds to the output, in place.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Returns the layer's output (…, out) of x (…, in)."""
        if self.disable_adapters or self.merged:
            return super().forward(x)
        return _adapted(self, _lower(x))


class AdaptedPatches(lora.Conv2d):
    """A convolution with one adapter without dropout; computed as a linear layer where its patches lie side by side.

    Patches that neither overlap nor leave anything out are rows of numbers, so nothing need be convolved, and the
    gradient of the adapter is that of `AdaptedLinear`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Returns the layer's output (N, out, H / h, W / w) of x (N, in, H, W) for patches of h × w."""
        if self.disable_adapters or self.merged or not self._side_by_side(x):
            return super().forward(x)
        conv: Any = self.get_base_layer()
        height, width = conv.kernel_size
        patches = _lower(x).unflatten(2, (-1, height)).unflatten(4, (-1, width)).permute(0, 2, 4, 1, 3, 5)
        return _adapted(self, patches.flatten(3)).permute(0, 3, 1, 2)

    def _side_by_side(self, x: torch.Tensor) -> bool:
        conv: Any = self.get_base_layer()
        whole = all(size % patch == 0 for size, patch in zip(x.shape[2:], conv.kernel_size, strict=True))
        plain = conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1) and conv.groups == 1
        return whole and plain and conv.stride == conv.kernel_size


def _lower(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x


def _adapted(layer: AdaptedLinear | AdaptedPatches, x: torch.Tensor) -> torch.Tensor:
    """Returns the product (…, out) of x (…, in) and a layer's weight with its adapter, each seen as a matrix."""
    (name,) = layer.active_adapters
    base, thin = layer.get_base_layer(), (layer.lora_A[name], layer.lora_B[name])
    weight, a, b = (part.weight.flatten(1) for part in (base, *thin))
    y = _Product.apply(x.flatten(0, -2), weight, base.bias, a, b, layer.scaling[name])
    return y.unflatten(0, x.shape[:-1])


class _Product(torch.autograd.Function):
    """y = x (W + s B A)ᵀ + bias for x (N, in). The gradient of the whole weight is never made, only those of A and B.

    With g the gradient of y: dA = s (g B)ᵀ x and dB = s gᵀ (x Aᵀ).
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float) -> torch.Tensor:
        merge = weight.dtype == torch.float32
        if merge:
            with torch.autocast(x.device.type, enabled=False):
                weight = torch.addmm(weight, b, a, alpha=scale).to(x.dtype)
        a, b = a.to(x.dtype), b.to(x.dtype)
        thin = x @ a.T
        y = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
        ctx.save_for_backward(x, weight, a, b, thin)
        ctx.merged, ctx.scale = merge, scale
        return y if merge else y.addmm_(thin, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:  # type: ignore[override]
        x, weight, a, b, thin = ctx.saved_tensors
        back = g @ b * ctx.scale
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ weight if ctx.merged else (g @ weight).addmm_(back, a)
        db = (thin.T @ g * ctx.scale).T.contiguous()  # as a transpose, for which g need not be copied
        return dx, None, None, back.T @ x, db, None


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
