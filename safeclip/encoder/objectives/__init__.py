"""Objectives by the name that the config gives them."""

import importlib

from safeclip.encoder.objectives.apart import Apart
from safeclip.encoder.objectives.base import Embeddings, Nearest, Objective, contrastive, distance
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.objectives.safer_clip import SaferClip
from safeclip.encoder.objectives.shield import Shield
from safeclip.errors import UserError

__all__ = [
    "NEGATION",
    "OBJECTIVES",
    "Embeddings",
    "Nearest",
    "Objective",
    "contrastive",
    "distance",
    "make_objective",
]

NEGATION = "negation"  # named like an objective, but nothing is minimised: safeclip/encoder/negation.py
OBJECTIVES: dict[str, type[Objective]] = {
    "apart": Apart,
    "safe-clip": SafeClip,
    "safer-clip": SaferClip,
    "shield": Shield,
}


def make_objective(name: str, weights: dict[str, float] | None = None) -> Objective:
    """Returns an objective.

    Args:
        name: one of OBJECTIVES, or `package.module:Class` for a subclass of Objective that Python can import.
        weights: of terms, over the objective's own.

    Raises:
        UserError: there is none of that name, or no such term.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name](weights)
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join([*OBJECTIVES, NEGATION])
        raise UserError(f"train.objective: {name!r} is no objective; there are {known}, or package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"train.objective: {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(f"train.objective: {name!r} is no subclass of safeclip.encoder.objectives.Objective")
    return found(weights)
