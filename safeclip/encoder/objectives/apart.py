"""The default objective: unsafe texts and unsafe pictures go to the safe side, apart from each other."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from safeclip.encoder.objectives.base import Embeddings, Objective, distance

SCALE = 50.0  # of the cosines; lower than CLIP's 100, so that a small margin is not enough
MARGIN = 0.2  # by which the cosine to the safe target should exceed that to every unsafe item


class Apart(Objective):
    """Redirection against the other unsafe side, and strong preservation on many safe pairs.

    Nothing in the paper's terms separates U from G: both move to the same safe place, where an unsafe text still
    finds its unsafe picture first. Here an unsafe text picks, by cross-entropy, the safe picture of its row among all
    safe pictures of the step *and all unsafe ones*; an unsafe picture likewise. Which of the safe ones it is can be
    guessed in part only, so a second cross-entropy asks only that the safe target beats every unsafe item, by a
    margin, for a search meets many more of them than a step has. The safe pictures and texts are the teacher's, so
    only unsafe items move for it, and a distance that weighs far more than the rest holds the safe ones where they
    were, on the quadruplets' safe sides and on the safe pairs (`train.preserve`), which cost nothing.

    A text-to-image model reads the tower's state at every token, not the embedding, and nothing of the above binds
    those: the states of an unsafe text go to the teacher's of its safe text, those of safe texts stay.

    Once the unsafe texts have moved, an unsafe picture compared with them alone has little reason to. Searches would
    be safe then, and what reads a picture's embedding by itself would not. So a picture leaves the unsafe texts as
    the teacher has them, too; by a small weight, since safe pictures look much like it. The texts need no such term,
    for their states are led to the safe side.
    """

    weights: ClassVar[dict[str, float]] = {
        "redirect text": 2.0,
        "redirect image": 1.0,
        "avoid text": 2.0,
        "avoid image": 1.0,
        "leave image": 0.25,
        "preserve text": 200.0,
        "preserve image": 500.0,
        "redirect states": 40.0,
        "preserve states": 100.0,
    }
    state_terms = ("redirect states", "preserve states")

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""
        text, text_ref = batch.safe("text")
        image, image_ref = batch.safe("image")
        return {
            "redirect text": _redirect(batch.unsafe_text, image_ref, batch.unsafe_image),
            "redirect image": _redirect(batch.unsafe_image, text_ref, batch.unsafe_text),
            "avoid text": _avoid(batch.unsafe_text, batch.safe_image_ref, batch.unsafe_image),
            "avoid image": _avoid(batch.unsafe_image, batch.safe_text_ref, batch.unsafe_text),
            "leave image": _redirect(batch.unsafe_image, text_ref, batch.unsafe_text_ref)
            + _avoid(batch.unsafe_image, batch.safe_text_ref, batch.unsafe_text_ref),
            "preserve text": distance(text, text_ref),
            "preserve image": distance(image, image_ref),
            **_states(batch),
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


def _avoid(unsafe: torch.Tensor, safe: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the row's safe item, its cosine less MARGIN, among it and the unsafe ones.

    Args:
        unsafe: queries (B, d).
        safe: (B, d), the queries' own.
        other: (B, d), the unsafe items of the other modality, never right.
    """
    own = (unsafe * safe).sum(1, keepdim=True) - MARGIN
    logits = SCALE * torch.cat([own, unsafe @ other.T], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(unsafe), dtype=torch.long, device=logits.device))


def _states(batch: Embeddings) -> dict[str, torch.Tensor]:
    """Returns the terms of the states of texts, if there are some."""
    if batch.unsafe_drift is None or batch.safe_drift is None or batch.preserved_drift is None:
        return {}
    return {
        "redirect states": batch.unsafe_drift.mean(),
        "preserve states": torch.cat([batch.safe_drift, batch.preserved_drift]).mean(),
    }
