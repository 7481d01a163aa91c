"""Where the numbers of each step go, for charts: TensorBoard's files, MLflow or Weights & Biases."""

import importlib.util
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeclip.artifacts import Folder
from safeclip.errors import UserError

Log = Callable[[int, dict[str, float]], None]


class Tracker:
    """Takes in the numbers of steps."""

    def __init__(self, log: Log, flush: Callable[[], None]) -> None:
        self.log, self.flush = log, flush

    def note(self, step: int, numbers: dict[str, Any]) -> None:
        """Takes in a step's numbers; those in a dictionary within go by `name/key`."""
        flat: dict[str, float] = {}
        for name, value in numbers.items():
            flat |= {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        self.log(step, flat)


def check_tracker(kind: str | None) -> None:
    """Refuses a tracker whose package is not installed.

    Args:
        kind: `train.tracker`.

    Raises:
        UserError: what to do.
    """
    if kind is not None and importlib.util.find_spec(_PACKAGES[kind]) is None:
        raise UserError(f"train.tracker: {kind} is not installed here; pip install it, or set tensorboard")


def make_tracker(kind: str | None, folder: Folder, name: str) -> Tracker | None:
    """Returns a tracker.

    Args:
        kind: `train.tracker`.
        folder: where TensorBoard's files go, each time the tracker is flushed; they need not be local.
        name: of the training, for the others.

    Raises:
        UserError: its package is not installed.
    """
    check_tracker(kind)
    return None if kind is None else _MAKERS[kind](folder, name)


def _tensorboard(folder: Folder, name: str) -> Tracker:
    from tensorboardX import SummaryWriter

    numbers = itertools.count()
    writer: Any = None

    def log(step: int, values: dict[str, float]) -> None:
        nonlocal writer
        if writer is None:
            place = tempfile.mkdtemp(
                prefix="safeclip-tensorboard-"
            )  # until the flush; a worker's end is no clean one
            writer = SummaryWriter(place, filename_suffix=f".{next(numbers)}")
        for key, value in values.items():
            writer.add_scalar(_tag(key), value, step)

    def flush() -> None:
        nonlocal writer
        if writer is None:
            return
        writer.close()  # its own flush does not wait for what its thread has yet to write
        folder.make()
        for path in Path(writer.logdir).iterdir():
            folder.write(path.name, path.read_bytes())
        shutil.rmtree(writer.logdir)
        writer = None

    return Tracker(log, flush)


def _tag(name: str) -> str:
    """TensorBoard's names have no parentheses or commas: "d(U,S_ref)" becomes "d_U_S_ref"."""
    return re.sub(r"[^-/\w.]+", "_", name).strip("_")


def _mlflow(folder: Folder, name: str) -> Tracker:
    import mlflow

    mlflow.start_run(run_name=name)
    return Tracker(lambda step, numbers: mlflow.log_metrics(numbers, step=step), lambda: None)


def _wandb(folder: Folder, name: str) -> Tracker:
    import wandb

    run = wandb.init(project="safeclip", id=name, resume="allow")
    return Tracker(lambda step, numbers: run.log(numbers, step=step), lambda: None)


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_MAKERS: dict[str, Callable[[Folder, str], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
