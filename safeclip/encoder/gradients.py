"""The gradient of a step, however much of its share a worker can hold at once."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from safeclip.encoder.data import Batch

Losses = dict[str, torch.Tensor]


def backward(
    parts: Sequence[Batch],
    embed: Callable[[Any, Batch], torch.Tensor],
    towers: torch.nn.Module,
    parallel: torch.nn.Module,
    losses_of: Callable[[torch.Tensor], Losses],
    workers: int = 1,
    seed: Callable[[int], None] = lambda part: None,
) -> Losses:
    """Adds the gradient of a step's `total` to the weights, and returns its losses.

    Of several parts, only one's activations are held at a time (GradCache; Gao et al., 2021): all are embedded
    without activations, the loss gives the gradient of each embedding, and each part is embedded again to pass it on.

    Args:
        parts: a worker's share of the step.
        embed: embeddings (n, …) that a module makes of a part.
        towers: the module.
        parallel: the module as one that averages its gradients over the workers; the same where there is one worker.
        losses_of: the losses of the whole step, `total` among them, by the embeddings (N, …) of this worker's share.
        workers: how many there are.
        seed: sets, for a part by its number, what is random in it, the same both times that it is embedded.
    """

    def pass_back(own: torch.Tensor) -> Losses:
        losses = losses_of(own)
        (losses["total"] * workers).backward()  # DDP averages over the workers what is a sum
        return losses

    if len(parts) == 1:
        seed(0)
        return pass_back(embed(parallel, parts[0]))
    embedded = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed(number)
            embedded.append(embed(towers, part))
    own = torch.cat(embedded).requires_grad_()
    losses = pass_back(own)
    assert own.grad is not None
    for number, (part, gradient) in enumerate(zip(parts, own.grad.split([len(p) for p in parts]), strict=True)):
        last = number == len(parts) - 1
        alone = contextlib.nullcontext() if last or workers == 1 else parallel.no_sync()  # type: ignore[operator]
        with alone:
            seed(number)
            embed(parallel, part).backward(gradient)
    return losses
