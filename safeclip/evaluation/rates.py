"""Figures of encoders within a generative model: shares of what it makes, and what metrics.json holds of them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from safeclip.evaluation.intervals import paired_differences, with_intervals
from safeclip.evaluation.metrics import Measured


class Judged(Protocol):
    """A judge's word on what came out of some inputs, all unsafe or all safe."""

    @property
    def unsafe(self) -> list[bool]:
        """Of each, whether it is unsafe."""
        ...

    @property
    def right(self) -> list[bool] | None:
        """Of each, whether it is right; None where the judge cannot tell, and for unsafe inputs."""
        ...


def join_judged(answers: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns of all inputs, bool (n,), what is unsafe and what is right; None in its place if no judge can tell."""
    unsafe = np.array([each for answer in answers for each in answer.unsafe])
    if all(answer.right is None for answer in answers):
        return unsafe, None
    return unsafe, np.array([each for a in answers for each in (a.right or [False] * len(a.unsafe))])


def held(asked: np.ndarray, unsafe: np.ndarray, right: np.ndarray | None) -> np.ndarray:
    """Returns what a report marks, bool (n,): of unsafe inputs what is unsafe, of safe ones what is right.

    Where no judge can tell what is right, that is what is not unsafe.

    Args:
        asked: bool (n,), whether the input is unsafe.
        unsafe: bool (n,), as `join_judged` returns it.
        right: bool (n,), likewise.
    """
    return np.where(asked, unsafe, ~unsafe if right is None else right)


def unsafe_rates(
    unsafe: np.ndarray, concepts: Sequence[tuple[str, ...]], resamples: int, seed: int
) -> dict[str, Any]:
    """Returns `unsafe_rate` with its 95% interval, `n`, and the same of each concept as `by_concept`.

    Args:
        unsafe: bool (n,), whether something unsafe came out of each unsafe input.
        concepts: of each input; one of several concepts counts in each.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    found: dict[str, Any] = {**with_intervals({"unsafe_rate": unsafe}, resamples, seed), "by_concept": {}}
    for concept in sorted({c for each in concepts for c in each}):
        rows = np.array([concept in each for each in concepts])
        found["by_concept"][concept] = with_intervals({"unsafe_rate": unsafe[rows]}, resamples, seed)
    return found


def rate_differences(
    pairs: dict[str, tuple[np.ndarray, np.ndarray]], resamples: int, seed: int
) -> dict[str, float | int | list[float]]:
    """Returns by how much each mean differs from the first encoder's on the same inputs, with 95% intervals.

    Args:
        pairs: for each name, what came out with the encoder and with the first one, of shape (n,), bool or numbers; n
            may differ by name.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    found: dict[str, float | int | list[float]] = {}
    for name, (own, first) in pairs.items():
        change = paired_differences({name: own}, {name: first}, resamples, seed)
        found |= {key: value for key, value in change.items() if key != "n"}
    return found


def measured_within(
    kind: str, figures: dict[str, dict[str, Any]], differences: dict[str, dict[str, Any]], setting: dict[str, Any]
) -> Measured:
    """Returns what metrics.json holds of encoders within a model, under the name of the kind of model.

    Args:
        kind: `text_to_image` or `image_to_text`.
        figures: by the encoder's label; or `missing`, and why. Among them, `notes` are sentences, not figures, and
            so is what `lacking` says, by name, of figures that could not be measured.
        differences: by the label of each encoder after the first, where both could be measured.
        setting: what all encoders share.
    """
    spoken = kind.replace("_", " ")
    reasons = {label: found["missing"] for label, found in figures.items() if "missing" in found}
    missing = {f"{kind}.{label}": f"{spoken} with {label}: {reason}" for label, reason in reasons.items()}
    if len(reasons) == len(figures) and len(set(reasons.values())) == 1:
        missing = {kind: f"{spoken}: {next(iter(reasons.values()))}"}
    there = {label: found for label, found in figures.items() if label not in reasons}
    lacking = {name: said for found in there.values() for name, said in found.get("lacking", {}).items()}
    missing |= {f"{kind}.{name}": f"{spoken}: {said}" for name, said in lacking.items()}
    notes = dict.fromkeys(f"{spoken}: {note}" for found in there.values() for note in found.get("notes", []))
    return Measured(
        {
            label: {kind: {k: v for k, v in found.items() if k not in ("notes", "lacking")}}
            for label, found in there.items()
        },
        {label: {kind: found} for label, found in differences.items()},
        {kind: setting},
        missing,
        list(notes),
    )
