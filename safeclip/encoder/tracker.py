"""Where the numbers of each step go, for charts: TensorBoard's files, MLflow or Weights & Biases.

A training has one run there, however often it is cut off: the run's id lies in the training's folder. That they are
not to be had stops a training only where it begins.
"""

import importlib.util
import itertools
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeclip.artifacts import Folder
from safeclip.errors import UserError

Log = Callable[[int, dict[str, float]], None]
_SEND_EVERY = 10.0  # seconds between requests to MLflow
_SENT_AT_ONCE, _KEPT = 1000, 100_000  # numbers, of which MLflow takes a thousand a request


class Tracker:
    """Takes in the numbers of steps; what goes wrong with them is told once, and is no reason to stop."""

    def __init__(self, log: Log, flush: Callable[[], None], end: Callable[[bool], None], run: str = "") -> None:
        """Sets what is done with numbers.

        Args:
            log: takes in a step's.
            flush: hands on what was taken in.
            end: of the training; takes whether it is done, or has failed.
            run: the id of its run.
        """
        self._log, self._flush, self._end, self.run = log, flush, end, run
        self._told = False

    def note(self, step: int, numbers: dict[str, Any]) -> None:
        """Takes in a step's numbers; those in a dictionary within go by `name/key`.

        Names have no parentheses or commas, which not every tracker takes: "d(U,S_ref)" becomes "d_U_S_ref".
        """
        flat: dict[str, float] = {}
        for name, value in numbers.items():
            flat |= {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        self._attempt(lambda: self._log(step, {_tag(name): value for name, value in flat.items()}))

    def flush(self) -> None:
        """Hands on what was taken in."""
        self._attempt(self._flush)

    def end(self, done: bool) -> None:
        """Hands on the rest, and says how the training ended; a run that failed may still go on."""
        self._attempt(lambda: self._end(done))

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is: charts are not worth a training
            if not self._told:
                print(f"train.tracker: {_line(error)}; the training goes on, its charts may have gaps", flush=True)
            self._told = True


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
    """Returns a tracker, None where there is none, or none to be had for a training that goes on.

    Args:
        kind: `train.tracker`.
        folder: where TensorBoard's files go, each time the tracker is flushed, or the id of the run; it need not be
            local.
        name: of the training, for the others.

    Raises:
        UserError: its package is not installed, or the tracker of a training that begins cannot be reached.
    """
    check_tracker(kind)
    if kind is None:
        return None
    file = f"{kind}.run"
    known = folder.read(file).decode() if folder.exists(file) else None
    try:
        tracker = _MAKERS[kind](folder, name, known)
    except Exception as error:  # each program, and what lies between, has errors of its own
        if known is None:
            raise UserError(f"train.tracker: {kind} cannot be had: {_line(error)}") from error
        print(f"train.tracker: {kind} cannot be had: {_line(error)}; the training goes on without", flush=True)
        return None
    if tracker.run != (known or ""):
        folder.make()
        folder.write(file, tracker.run.encode())
    return tracker


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _tag(name: str) -> str:
    return re.sub(r"[^-/\w.]+", "_", name).strip("_")


def _tensorboard(folder: Folder, name: str, known: str | None) -> Tracker:
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
            writer.add_scalar(key, value, step)

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

    return Tracker(log, flush, lambda done: flush())


def _mlflow(folder: Folder, name: str, known: str | None) -> Tracker:
    # MLflow's own patience, minutes, would be that of every step.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    if known is None:
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "safeclip"))
        known = client.create_run(experiment.experiment_id, run_name=name).info.run_id
    run, runs, due = known, False, 0.0
    unsent: list[Metric] = []

    def send() -> None:
        nonlocal due, runs
        due = math.inf  # where this fails, steps do not wait for another try, and flushes do
        if not runs:
            client.update_run(run, status="RUNNING")  # it may have ended as failed before
            runs = True
        while unsent:
            client.log_batch(run, metrics=unsent[:_SENT_AT_ONCE])
            del unsent[:_SENT_AT_ONCE]
        due = time.monotonic() + _SEND_EVERY

    def log(step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        unsent.extend(Metric(key, value, now, step) for key, value in values.items())
        del unsent[:-_KEPT]
        if time.monotonic() > due:
            send()

    def end(done: bool) -> None:
        send()
        client.set_terminated(run, "FINISHED" if done else "FAILED")

    return Tracker(log, send, end, run)


def _wandb(folder: Folder, name: str, known: str | None) -> Tracker:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "safeclip"),
        id=known or f"{name}-{uuid.uuid4().hex[:8]}",  # an id is never given twice, not even that of a deleted run
        name=name,
        resume="allow",
        settings=wandb.Settings(console="off", disable_code=True, disable_git=True, finish_timeout=60),
    )

    def log(step: int, values: dict[str, float]) -> None:
        if step >= run.step:  # it has those that are taken again after a checkpoint, and refuses them with a warning
            run.log(values, step=step)

    return Tracker(log, lambda: None, lambda done: run.finish(exit_code=int(not done)), run.id)


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_MAKERS: dict[str, Callable[[Folder, str, str | None], Tracker]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
