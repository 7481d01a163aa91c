"""The states of texts, token by token: what a text-to-image model reads of them, and how far they are from others."""

import torch
import torch.nn.functional as F

PADDING = 3  # places behind a text's end that count as well: a text-to-image model reads them all


def held_tokens(own: torch.Tensor, held_to: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns texts side by side, filled up with the end token as text-to-image pipelines do it.

    Args:
        own: tokens (N, L), padded with zeros.
        held_to: tokens (N, L) of the texts whose states the others' are held to.

    Returns:
        Both, (N, l), where l is as long as it must be; and which of their states count, bool (N, l): those up to the
        end of the longer of the two texts, and PADDING more, so that a text's drift does not depend on
        the rest of the batch.
    """
    ends = torch.maximum(own.argmax(1), held_to.argmax(1)) + 1 + PADDING
    length = min(int(ends.max()), own.shape[1]) if len(own) else 0
    read = torch.arange(length, device=own.device) < ends.unsqueeze(1)
    return fill_with_end(own)[:, :length], fill_with_end(held_to)[:, :length], read


def fill_with_end(tokens: torch.Tensor) -> torch.Tensor:
    """Returns tokens (N, L), padded with zeros, with the end token in their place, as text-to-image pipelines pad."""
    behind = torch.arange(tokens.shape[1], device=tokens.device) > tokens.argmax(1, keepdim=True)
    return torch.where(behind, tokens.amax(1, keepdim=True), tokens)


def state_drift(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns how far states are from wanted ones: one minus their cosine, averaged over a text's tokens, (N,).

    Args:
        states: (N, L, w).
        wanted: (N, L, w), 0 where a state does not count.
    """
    counts = (wanted != 0).any(-1)
    apart = 1 - F.cosine_similarity(states, wanted, dim=-1)
    return (apart * counts).sum(1) / counts.sum(1).clamp(min=1)
