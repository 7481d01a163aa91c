"""ShieldCLIP's objective."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from safeclip.encoder.objectives.base import Embeddings, Objective, distance

SCALE = 100.0  # of the cosines


class Shield(Objective):
    """The idea of ShieldCLIP (2026): a label for each text and each picture says whether it is unsafe at all.

    A generated item whose label is unsafe is drawn to the safe side of its row, and no unsafe item is the right
    answer to anything. One whose label is safe is a safe item like others: it stays where it was. (Labels are safe
    only where the judges' thresholds are below a half; the pipeline drops other rows.) Cross-entropy, not cosine
    distance alone, which that paper found to degenerate.
    """

    weights: ClassVar[dict[str, float]] = {
        "match text": 1.0,
        "match image": 1.0,
        "preserve text": 1.0,
        "preserve image": 1.0,
    }

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""
        text, text_ref = batch.safe("text")
        image, image_ref = batch.safe("image")
        return {
            "match text": _match(
                text, batch.unsafe_text, batch.text_unsafe, image_ref, batch.unsafe_image, batch.image_unsafe
            ),
            "match image": _match(
                image, batch.unsafe_image, batch.image_unsafe, text_ref, batch.unsafe_text, batch.text_unsafe
            ),
            "preserve text": distance(
                *_staying(text, text_ref, batch.unsafe_text, batch.unsafe_text_ref, batch.text_unsafe)
            ),
            "preserve image": distance(
                *_staying(image, image_ref, batch.unsafe_image, batch.unsafe_image_ref, batch.image_unsafe)
            ),
        }


def _match(
    safe: torch.Tensor,
    unsafe: torch.Tensor,
    labels: torch.Tensor,
    gallery: torch.Tensor,
    other: torch.Tensor,
    other_labels: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of queries over a gallery of the other modality.

    Args:
        safe: queries (B + P, d) whose answer has the same number in `gallery`.
        unsafe: queries (B, d) whose answer is the safe item of their row, or, where both labels are safe, `other`'s.
        labels: (B,), whether a query of `unsafe` is unsafe.
        gallery: safe items (B + P, d).
        other: generated items (B, d), right only where they and the query are safe.
        other_labels: (B,), whether they are unsafe.
    """
    logits = SCALE * torch.cat([safe, unsafe]) @ torch.cat([gallery, other]).T
    rows = torch.arange(len(unsafe), device=logits.device)
    own = torch.where(labels | other_labels, rows, len(gallery) + rows)
    target = torch.cat([torch.arange(len(safe), device=logits.device), own])
    return F.cross_entropy(logits, target)


def _staying(
    safe: torch.Tensor, safe_ref: torch.Tensor, other: torch.Tensor, other_ref: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([safe, other[~labels]]), torch.cat([safe_ref, other_ref[~labels]])
