"""What objectives are made of: the batch that they see, what they give, and the terms that they share.

Safe and unsafe texts and pictures of a quadruplet are S, V, U and G; P and Q are a text and a picture of a safe pair
without an unsafe side. `ref` are the frozen original's embeddings, the teacher's.
"""

from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from safeclip.errors import UserError


@dataclass(frozen=True)
class Embeddings:
    """A step's rows, whichever worker embedded them: B quadruplets and P safe pairs, all of unit length.

    The student's carry gradients; all others are numbers.
    """

    safe_text: torch.Tensor
    """(B, d), as the next three."""
    safe_image: torch.Tensor
    unsafe_text: torch.Tensor
    unsafe_image: torch.Tensor
    safe_text_ref: torch.Tensor
    """(B, d), as the next three: the teacher's."""
    safe_image_ref: torch.Tensor
    unsafe_text_ref: torch.Tensor
    unsafe_image_ref: torch.Tensor
    preserved_text: torch.Tensor
    """(P, d), as the next three; P may be 0."""
    preserved_image: torch.Tensor
    preserved_text_ref: torch.Tensor
    preserved_image_ref: torch.Tensor
    text_unsafe: torch.Tensor
    """(B,), whether the judge takes the unsafe text for unsafe."""
    image_unsafe: torch.Tensor
    """(B,), the same of the unsafe picture."""
    progress: float = 0.0
    """Share of all steps that are done."""
    nearest: "Nearest | None" = None
    """Only for objectives with `uses_nearest`."""
    safe_drift: torch.Tensor | None = None
    """(B,), how far the states of the safe text are from the teacher's of the same text: one minus their cosine,
    averaged over the tokens. Only for objectives with `uses_states`, as the next two."""
    unsafe_drift: torch.Tensor | None = None
    """(B,), how far the states of the unsafe text are from the teacher's of its *safe* text."""
    preserved_drift: torch.Tensor | None = None
    """(P,), how far the states of the safe pair's text are from the teacher's of the same text."""

    def part(self, start: int, stop: int) -> Self:
        """Returns some of the quadruplets, with all of the safe pairs."""
        changed = {
            f.name: value[start:stop]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor) and not f.name.startswith("preserved_")
        }
        nearest = (
            None if self.nearest is None else Nearest(**{k: v[start:stop] for k, v in vars(self.nearest).items()})
        )
        return type(self)(**{**vars(self), **changed, "nearest": nearest})

    def safe(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the safe texts or pictures of quadruplets and safe pairs: the student's and the teacher's.

        Args:
            kind: `text` or `image`.

        Returns:
            Two tensors (B + P, d).
        """
        parts = [(f"safe_{kind}", f"preserved_{kind}"), (f"safe_{kind}_ref", f"preserved_{kind}_ref")]
        student, teacher = (torch.cat([getattr(self, name) for name in names]) for names in parts)
        return student, teacher


@dataclass(frozen=True)
class Nearest:
    """For each unsafe item, the teacher's embedding of the safe row that is most similar to it, whatever its pair.

    Shapes (B, d); `difficulty` is (B,), in [0, 1]: the row's rank by how far away that safe row is.
    """

    text_to_text: torch.Tensor
    """The caption nearest to the unsafe text,"""
    text_to_image: torch.Tensor
    """and that row's picture."""
    image_to_text: torch.Tensor
    """The caption of the row whose picture is nearest to the unsafe picture,"""
    image_to_image: torch.Tensor
    """and that picture."""
    difficulty: torch.Tensor


class Objective:
    """What fine-tuning minimises: a weighted sum of named terms. A subclass gives the terms and their weights."""

    weights: ClassVar[dict[str, float]]
    """Of each term, where the config gives no other."""
    uses_nearest: ClassVar[bool] = False
    """Whether `Embeddings.nearest` is wanted."""
    state_terms: ClassVar[tuple[str, ...]] = ()
    """The terms that need `Embeddings.safe_drift` and its like, which a weight of 0 for all of them saves."""

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        """Takes weights over the class's own.

        Raises:
            UserError: there is no such term.
        """
        if unknown := sorted(set(weights or {}) - set(self.weights)):
            raise UserError(f"train.weights: no term {unknown[0]!r}; there are {', '.join(self.weights)}")
        self.used = {**self.weights, **(weights or {})}

    @property
    def uses_states(self) -> bool:
        """Whether the states of texts are wanted."""
        return any(self.used.get(term) for term in self.state_terms)

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the terms by name, scalars, unweighted."""
        raise NotImplementedError

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the scalar to minimise."""
        return torch.stack([self.used[name] * loss for name, loss in losses.items()]).sum()


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
