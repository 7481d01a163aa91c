"""Both towers of a student as the module that DDP wraps, and what it returns by name."""

import torch

from safeclip.encoder.model import Encoder, is_causal, pool_states, text_states
from safeclip.encoder.states import state_drift
from safeclip.encoder.student import clip_of


class TwoTowers(torch.nn.Module):
    """A student as one module, texts and pictures in one pass, as DDP wants it."""

    def __init__(self, student: torch.nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.student = student
        self.normalize_pixels = encoder.normalize_pixels

    def forward(self, tokens: torch.Tensor, pixels: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """Returns embeddings (N, 2, d) of tokens (N, L) and of uint8 pixels (N, 3, H, W), float32.

        Where there are states (N, L, w) that the texts are held to, there is one more column, (N, 2, d + 1): how far
        each text's are from them, and 0 for the picture. So it is gathered, and its gradient cached, as all the rest.
        """
        clip = clip_of(self.student)
        image = clip.encode_image(self.normalize_pixels(pixels), normalize=True).float()
        if not is_causal(clip):
            return torch.stack([clip.encode_text(tokens, normalize=True).float(), image], dim=1)
        states = text_states(clip, tokens)
        text = pool_states(clip, states, tokens).float()
        if wanted is None:
            return torch.stack([text, image], dim=1)
        drift = state_drift(states.float(), wanted)
        columns = torch.stack([drift, torch.zeros_like(drift)], dim=1).unsqueeze(-1)
        return torch.cat([torch.stack([text, image], dim=1), columns], dim=-1)


def by_name(embedded: torch.Tensor, rows: int, has_drift: bool) -> dict[str, torch.Tensor]:
    """Returns what the towers of all workers made as fields of `Embeddings`, the rows of workers one after the other.

    Args:
        embedded: (workers, N, 2, …), of each worker its safe items, unsafe ones, and safe pairs.
        rows: how many quadruplets each has.
        has_drift: whether the last column tells how far the states of texts are from those they are held to.
    """
    sides = {
        "safe": embedded[:, :rows],
        "unsafe": embedded[:, rows : 2 * rows],
        "preserved": embedded[:, 2 * rows :],
    }
    width = embedded.shape[-1] - has_drift
    found: dict[str, torch.Tensor] = {}
    for side, part in sides.items():
        every = part.flatten(0, 1)
        found |= {f"{side}_text": every[:, 0, :width], f"{side}_image": every[:, 1, :width]}
        if has_drift:
            found[f"{side}_drift"] = every[:, 0, width]
    return found
