"""What metrics.json holds: the part that each kind of measurement adds, and the whole."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from safeclip.artifacts import versions
from safeclip.config import Config


@dataclass(frozen=True)
class Measured:
    """What one kind of measurement found of all encoders."""

    figures: dict[str, dict[str, Any]]
    """For each encoder, by its label, what joins its figures."""
    differences: dict[str, dict[str, Any]]
    """For each encoder after the first, by how much its figures differ from the first's on the same queries."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What the figures of all encoders have in common, such as their judge; joins the whole."""
    missing: dict[str, str] = field(default_factory=dict)
    """What could not be measured, by its name, and why: a line each."""
    notes: list[str] = field(default_factory=list)
    """What was measured in part only, a sentence each."""


def assemble(header: dict[str, Any], labels: Sequence[str], parts: Sequence[Measured]) -> dict[str, Any]:
    """Returns what metrics.json holds.

    Args:
        header: of `header_of`, and whatever else stands for itself.
        labels: of the encoders, the first of which the others are compared with.
        parts: of each kind of measurement; their keys are different.
    """
    first, *others = labels
    return {
        **header,
        **_joined([part.shared for part in parts]),
        "missing": _joined([part.missing for part in parts]),
        "notes": [note for part in parts for note in part.notes],
        "encoders": {label: _joined([part.figures.get(label, {}) for part in parts]) for label in labels},
        "paired_differences": {
            "from": first,
            "encoders": {label: _joined([part.differences.get(label, {}) for part in parts]) for label in others},
        },
    }


def _joined(trees: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for tree in trees for key, value in tree.items()}


def header_of(config: Config, manifests: dict[str, Any]) -> dict[str, Any]:
    """Returns what metrics.json says of the run itself.

    Args:
        config: of the run.
        manifests: of its stages, by name, None where one is not complete; that of the quadruplets is. That of the
            encoder is left out where other encoders are compared.
    """
    return {
        "run": config.run,
        "profile": config.profile,
        "versions": versions(),
        "seconds": {name: m["seconds"] for name, m in manifests.items() if m is not None},
        "data": manifests["quadruplets"]["data"],
        "train": manifests["encoder"]["train"] if "encoder" in manifests else {},
    }
