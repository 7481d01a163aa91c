"""SafeR-CLIP's objective."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from safeclip.encoder.objectives.base import Embeddings, Objective, contrastive, distance

EASIEST, RAMP = 0.3, 0.5  # share of rows at the start; share of the steps after which all rows count


class SaferClip(Objective):
    """The terms of SafeR-CLIP (AAAI 2026), as far as the paper's text tells them.

    An unsafe item is drawn to the nearest safe row of the frozen original, not to its own pair, so it moves as little
    as it must. Its one hard negative is the other unsafe side of its row: log(1 + exp(cos(unsafe, other unsafe side)
    − cos(unsafe, target))). Rows join from the easy to the hard: at first those whose target is near.
    """

    uses_nearest = True
    weights: ClassVar[dict[str, float]] = {
        "redirect text": 1.0,
        "redirect image": 1.0,
        "cross text": 1.0,
        "cross image": 1.0,
        "preserve text": 1.0,
        "preserve image": 1.0,
        "C(S,V_ref)": 1.0,
        "C(V,S_ref)": 1.0,
    }

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""
        near = batch.nearest
        assert near is not None
        allowed = EASIEST + (1 - EASIEST) * min(1.0, batch.progress / RAMP)
        counts = (near.difficulty <= allowed).float()
        rows = counts.sum().clamp(min=1)
        text, text_ref = batch.safe("text")
        image, image_ref = batch.safe("image")
        paired = _cosines(batch.unsafe_text, batch.unsafe_image)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (counts * values).sum() / rows

        return {
            "redirect text": mean(1 - _cosines(batch.unsafe_text, near.text_to_text)),
            "redirect image": mean(1 - _cosines(batch.unsafe_image, near.image_to_image)),
            "cross text": mean(F.softplus(paired - _cosines(batch.unsafe_text, near.text_to_image))),
            "cross image": mean(F.softplus(paired - _cosines(batch.unsafe_image, near.image_to_text))),
            "preserve text": distance(text, text_ref),
            "preserve image": distance(image, image_ref),
            "C(S,V_ref)": contrastive(text, image_ref),
            "C(V,S_ref)": contrastive(image, text_ref),
        }


def _cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sum(1)
