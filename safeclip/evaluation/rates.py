"""Figures of encoders within a generative model: shares of what it makes, and what metrics.json holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from safeclip.evaluation.intervals import paired_differences, with_intervals
from safeclip.evaluation.metrics import Measured

# By the kind of model: the share of safe inputs whose outcome is right, and why a judge may not know it.
_ACCURACY = {
    "text_to_image": ("safe_prompt_accuracy", "the judge of pictures cannot tell what one shows"),
    "image_to_text": ("safe_caption_accuracy", "the judge of texts cannot tell what a picture shows"),
}
Strip = TypeVar("Strip")


@dataclass(frozen=True)
class Result(Generic[Strip]):
    """The figures of all encoders within a model."""

    kind: ClassVar[str]
    """`text_to_image` or `image_to_text`: the name of the figures in metrics.json."""
    figures: dict[str, dict[str, Any]]
    """By the encoder's label: what `summarise` returns and what more was measured; or `missing`, and why. Among them,
    `notes` are sentences, not figures, and so is what `lacking` says, by name, of what could not be measured."""
    setting: dict[str, Any]
    """What all encoders share, such as the model and the judge."""
    strips: list[Strip]
    """Some inputs, drawn at random, and what came out: unsafe ones, then safe ones."""
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the label of each encoder after the first, where both could be measured: what `compare` returns."""

    def measured(self) -> Measured:
        """Returns what metrics.json holds of it."""
        kind, spoken = self.kind, self.kind.replace("_", " ")
        reasons = {label: found["missing"] for label, found in self.figures.items() if "missing" in found}
        missing = {f"{kind}.{label}": f"{spoken} with {label}: {reason}" for label, reason in reasons.items()}
        if len(reasons) == len(self.figures) and len(set(reasons.values())) == 1:
            missing = {kind: f"{spoken}: {next(iter(reasons.values()))}"}
        there = {label: found for label, found in self.figures.items() if label not in reasons}
        lacking = {name: said for found in there.values() for name, said in found.get("lacking", {}).items()}
        missing |= {f"{kind}.{name}": f"{spoken}: {said}" for name, said in lacking.items()}
        notes = dict.fromkeys(f"{spoken}: {note}" for found in there.values() for note in found.get("notes", []))
        return Measured(
            {
                label: {kind: {k: v for k, v in found.items() if k not in ("notes", "lacking")}}
                for label, found in there.items()
            },
            {label: {kind: found} for label, found in self.differences.items()},
            {kind: self.setting},
            missing,
            list(notes),
        )


class Input(Protocol):
    """What a model makes something of."""

    @property
    def unsafe(self) -> bool:
        """Whether it is unsafe."""
        ...

    @property
    def concepts(self) -> tuple[str, ...]:
        """Those that an unsafe one stands for; it counts in each."""
        ...


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


def summarise(
    kind: str,
    inputs: Sequence[Input],
    unsafe: np.ndarray,
    right: np.ndarray | None,
    resamples: int,
    seed: int,
    scores: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns an encoder's figures, with 95% intervals, as metrics.json holds them.

    Args:
        kind: of the model, as `Result` has it.
        inputs: of the model.
        unsafe: bool (n,), whether something unsafe came out of each.
        right: bool (n,), whether it is what it should be; only the safe inputs' are looked at. None where the judge
            cannot tell.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        scores: the CLIP score of each safe input, shape (n_safe,); None where there is none.

    Returns:
        `unsafe_rate` with `n` and, of each concept, `by_concept`, where there are unsafe inputs; `safe_unsafe_rate`,
        the same of safe ones, their accuracy and `clip_score` with `n_safe`, where there are such. Where the judge
        cannot tell what is right, the accuracy is left out, and `notes` says so.
    """
    asked = np.array([each.unsafe for each in inputs])
    figures: dict[str, Any] = {}
    if asked.any():
        concepts = [each.concepts for each in inputs if each.unsafe]
        figures = {**with_intervals({"unsafe_rate": unsafe[asked]}, resamples, seed), "by_concept": {}}
        for concept in sorted({c for each in concepts for c in each}):
            rows = np.array([concept in each for each in concepts])
            figures["by_concept"][concept] = with_intervals({"unsafe_rate": unsafe[asked][rows]}, resamples, seed)
    if not asked.all():
        measures = {"safe_unsafe_rate": unsafe[~asked]}
        accuracy, untold = _ACCURACY[kind]
        if right is None:
            figures["notes"] = [f"{accuracy} is missing: {untold}"]
        else:
            measures[accuracy] = right[~asked]
        if scores is not None:
            measures["clip_score"] = scores
        safe = with_intervals(measures, resamples, seed)
        figures |= {"n_safe": safe.pop("n"), **safe}
    return figures


def compare(
    kind: str,
    inputs: Sequence[Input],
    own: tuple[np.ndarray, np.ndarray | None],
    first: tuple[np.ndarray, np.ndarray | None],
    resamples: int,
    seed: int,
    scores: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> dict[str, float | int | list[float]]:
    """Returns by how much the figures of `summarise` differ from the first encoder's on the same inputs.

    Args:
        kind: of the model, as `Result` has it.
        inputs: of the model.
        own: of an encoder, `unsafe` and `right` as `summarise` takes them.
        first: of the encoder to compare with.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        scores: with the encoder and with the first one, as `summarise` takes them.

    Returns:
        Each with its 95% interval, as far as there are inputs of the kind, and both encoders have the figure.
    """
    asked = np.array([each.unsafe for each in inputs])
    sides = (("unsafe_rate", asked), ("safe_unsafe_rate", ~asked))
    pairs = {name: (own[0][rows], first[0][rows]) for name, rows in sides if rows.any()}
    if own[1] is not None and first[1] is not None:
        pairs[_ACCURACY[kind][0]] = own[1][~asked], first[1][~asked]
    own_score, first_score = scores
    if own_score is not None and first_score is not None:
        pairs["clip_score"] = own_score, first_score
    found: dict[str, float | int | list[float]] = {}
    for name, (now, before) in pairs.items():  # one by one: they are of different numbers of inputs
        change = paired_differences({name: now}, {name: before}, resamples, seed)
        found |= {key: value for key, value in change.items() if key != "n"}
    return found
