"""How far a training is, and what is said of it."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from safeclip.config import Train


@dataclass
class Progress:
    """How far a training is. It is saved with each checkpoint, so that a resumed training decides the same."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch that is under way."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of these steps' losses, by name, and of their gradient norms, seconds, and seconds spent waiting for data."""
    steps: int = 0
    seconds: float = 0.0
    """Spent on steps."""
    waiting: float = 0.0
    """Of these seconds, those spent waiting for data."""
    best_loss: float = math.inf
    best_recall: float = 0.0
    best_epoch: int = 0
    """Whose weights are exported."""
    waited: int = 0
    """Epochs without a better loss or recall."""
    history: list[dict[str, Any]] = field(default_factory=list)
    student: str = ""
    """`student_hash` of what is trained."""

    def note_step(self, numbers: dict[str, float]) -> None:
        """Takes in a step's numbers, as they are in `sums`."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in numbers.items()}
        self.step += 1

    def end_epoch(self, steps: int) -> dict[str, float]:
        """Begins the next epoch, and returns the means of the numbers of this one's steps.

        Args:
            steps: how many an epoch has.
        """
        means = {name: value / steps for name, value in self.sums.items()}
        self.steps += steps
        self.seconds += self.sums["seconds"]
        self.waiting += self.sums["waiting"]
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        return means

    def note(self, record: dict[str, Any], select: str = "loss") -> bool:
        """Takes in an epoch's record, and returns whether its weights are the best so far.

        For stopping an epoch counts as better if the validation loss or the sum of recalls is (the paper's rule).

        Args:
            record: of the epoch.
            select: `train.select`, which of the two tells the best.
        """
        loss, recall = record["validation"]["total"], record["recall_sum"]
        self.waited = 0 if loss < self.best_loss or recall > self.best_recall else self.waited + 1
        self.best_loss, self.best_recall = min(self.best_loss, loss), max(self.best_recall, recall)
        self.history.append(record)
        best = best_epochs(self.history, select, 1) == [record["epoch"]]
        if best:
            self.best_epoch = record["epoch"]
        return best

    def is_over(self, train: Train) -> bool:
        """Whether the epochs are used up, or patience is."""
        return self.epoch >= train.epochs or self.waited >= train.patience


def figure(record: dict[str, Any], select: str) -> float:
    """Returns what tells how good an epoch is: its validation loss, or its sum of recalls."""
    return record["validation"]["total"] if select == "loss" else record["recall_sum"]


def best_epochs(history: list[dict[str, Any]], select: str, count: int) -> list[int]:
    """Returns the epochs whose weights stay, best first; none whose figure is not a finite number.

    An epoch that is left out is never among the best of a longer history, so its weights can be dropped.

    Args:
        history: records of the epochs, in their order.
        select: `train.select`: lowest loss first, the earlier of equals, or highest recall, the later of equals.
        count: how many epochs, at most.
    """
    found = [record for record in history if math.isfinite(figure(record, select))]
    if select == "loss":
        found.sort(key=lambda record: figure(record, select))
    else:
        found.sort(key=lambda record: (figure(record, select), record["epoch"]), reverse=True)
    return [record["epoch"] for record in found[:count]]


def measures(numbers: dict[str, float], batch: int) -> dict[str, Any]:
    """Returns a step's, or a mean step's, numbers as records have them.

    Args:
        numbers: losses by name, `gradient_norm`, `seconds`, and `waiting`, the seconds of these spent on data.
        batch: quadruplets in a step.
    """
    others = ("gradient_norm", "seconds", "waiting")
    return {
        "loss": {name: value for name, value in numbers.items() if name not in others},
        "gradient_norm": numbers["gradient_norm"],
        "samples_per_second": batch / max(numbers["seconds"], 1e-9),
        "data_wait": numbers["waiting"] / max(numbers["seconds"], 1e-9),
    }


def told(record: dict[str, Any]) -> str:
    """Returns an epoch's or a step's numbers as part of a line, aligned with others."""
    losses = record["loss"]
    terms = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if name != "total")
    return (
        f"loss {losses['total']:8.4f}  {terms}  gradient {record['gradient_norm']:7.3f}  "
        f"{record['samples_per_second']:7.1f} samples/s  waiting {100 * record['data_wait']:4.1f}%"
    )


def memory_gib(device: str) -> float:
    """Returns the GPU's peak, or the process's present memory on a CPU, GiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    import psutil

    return psutil.Process().memory_info().rss / 2**30
