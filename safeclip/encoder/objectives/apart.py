"""The default objective: unsafe texts and unsafe pictures go to the safe side, apart from each other."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from safeclip.encoder.objectives.base import Embeddings, Objective, distance

SCALE = 50.0  # of the cosines; lower than CLIP's 100, so that a small margin is not enough


class Apart(Objective):
    """Redirection against the other unsafe side, and strong preservation on many safe pairs.

    Nothing in the paper's terms separates U from G: both move to the same safe place, where an unsafe text still
    finds its unsafe picture first. Here an unsafe text picks, by cross-entropy, the safe picture of its row among all
    safe pictures of the step *and all unsafe ones*; an unsafe picture likewise. The safe pictures and texts are the
    teacher's, so only unsafe items move for it, and a distance that weighs far more than the rest holds the safe ones
    where they were, on the quadruplets' safe sides and on the safe pairs (`train.preserve`), which cost nothing.
    """

    weights: ClassVar[dict[str, float]] = {
        "redirect text": 2.0,
        "redirect image": 1.0,
        "preserve text": 200.0,
        "preserve image": 200.0,
    }

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""
        text, text_ref = batch.safe("text")
        image, image_ref = batch.safe("image")
        return {
            "redirect text": _redirect(batch.unsafe_text, image_ref, batch.unsafe_image),
            "redirect image": _redirect(batch.unsafe_image, text_ref, batch.unsafe_text),
            "preserve text": distance(text, text_ref),
            "preserve image": distance(image, image_ref),
        }


def _redirect(unsafe: torch.Tensor, safe: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the row's safe item among the safe and the unsafe ones of the other modality.

    Args:
        unsafe: queries (B, d).
        safe: (B + P, d), of which the first B are the queries' own.
        other: (B, d), never right.
    """
    logits = SCALE * unsafe @ torch.cat([safe, other]).T
    return F.cross_entropy(logits, torch.arange(len(unsafe), device=logits.device))
