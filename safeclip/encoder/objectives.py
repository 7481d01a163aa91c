"""What fine-tuning minimises: objectives by name, each a class that gives named losses.

Safe and unsafe texts and pictures of a quadruplet are S, V, U and G; `ref` are the frozen original's embeddings.
Embeddings have unit length, shape (B, d), and hold the rows of the whole batch, whoever computed them.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from safeclip.errors import UserError


@dataclass(frozen=True)
class Embeddings:
    """A batch of quadruplets: the student's four embeddings, and the teacher's two of the safe side."""

    safe_text: torch.Tensor
    safe_image: torch.Tensor
    unsafe_text: torch.Tensor
    unsafe_image: torch.Tensor
    safe_text_ref: torch.Tensor
    safe_image_ref: torch.Tensor


class Objective(Protocol):
    """What training needs of an objective."""

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the scalar to minimise."""


def contrastive(one: torch.Tensor, other: torch.Tensor, scale: float = 100.0) -> torch.Tensor:
    """Returns the symmetric cross-entropy of a batch whose rows match, CLIP's loss (Radford et al., 2021).

    Args:
        one: embeddings (B, d) of unit length.
        other: embeddings (B, d) of unit length.
        scale: of the cosines, an inverse temperature.
    """
    logits = scale * one @ other.T
    target = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns one minus the cosine of rows of unit length, averaged over the batch."""
    return 1 - (one * other).sum(1).mean()


class SafeClip:
    """The eight terms of Safe-CLIP (Poppi et al., 2024, section 3.3; weights from the released training code).

    Unsafe items are drawn to the safe side of their quadruplet, as the original saw it, and safe items stay where
    the original saw them; across modalities by a contrastive term, within one by a cosine distance.
    """

    weights = {  # noqa: RUF012
        "d(S,S_ref)": 0.10,
        "d(U,S_ref)": 0.10,
        "d(V,V_ref)": 0.10,
        "d(G,V_ref)": 0.20,
        "C(S,V_ref)": 0.25,
        "C(U,V_ref)": 0.25,
        "C(V,S_ref)": 0.25,
        "C(G,S_ref)": 0.50,
    }

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the eight terms, scalars, unweighted."""
        text_ref, image_ref = batch.safe_text_ref, batch.safe_image_ref
        return {
            "d(S,S_ref)": distance(batch.safe_text, text_ref),
            "d(U,S_ref)": distance(batch.unsafe_text, text_ref),
            "d(V,V_ref)": distance(batch.safe_image, image_ref),
            "d(G,V_ref)": distance(batch.unsafe_image, image_ref),
            "C(S,V_ref)": contrastive(batch.safe_text, image_ref),
            "C(U,V_ref)": contrastive(batch.unsafe_text, image_ref),
            "C(V,S_ref)": contrastive(batch.safe_image, text_ref),
            "C(G,S_ref)": contrastive(batch.unsafe_image, text_ref),
        }

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the weighted sum over eight, with weights that add up to one."""
        whole = sum(self.weights.values())
        return torch.stack([self.weights[name] / whole * loss for name, loss in losses.items()]).sum() / 8


OBJECTIVES: dict[str, type[Objective]] = {"safe-clip": SafeClip}


def make_objective(name: str) -> Objective:
    """Returns an objective by its name in the config.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    if name not in OBJECTIVES:
        raise UserError(f"train.objective: {name!r} is no objective; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]()
