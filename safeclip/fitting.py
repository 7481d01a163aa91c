"""Runs a training loop in Ray Train's workers: what the encoder's and the toxifier's trainings share."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import pyarrow.fs

from safeclip.artifacts import Folder, Stage
from safeclip.config import Resources
from safeclip.errors import UserError

_PREFIX = "training-"
_RESIZE_EVERY = 30.0  # seconds between looks for room for more workers


def fit(
    loop: Callable[[Any], Any],
    plan: Any,
    stage: Stage,
    resources: Resources,
    max_failures: int,
    environment: dict[str, str] | None = None,
    min_workers: int | None = None,
) -> Any:
    """Runs a loop in workers that form a process group, and returns Ray Train's result, with what the loop returned.

    Checkpoints lie in the stage's folder until `remove_training`, and a training with the same key goes on from the
    last one. Workers stay in the folder that Ray starts them in, so that relative paths lead where they lead the
    workers of Ray Data.

    Args:
        loop: a module's function that each worker calls with the plan.
        plan: plain data for the workers.
        stage: whose training it is.
        resources: how many workers, and what each reserves.
        max_failures: how often lost workers are replaced before the training fails.
        environment: variables for the workers.
        min_workers: how many are enough to begin with, or to go on with after a loss; more join, up to
            `resources.actors`, when there is room. All of them unless given.

    Raises:
        UserError: a worker raised one.
    """
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    # Else they work in a folder of Ray Train's, and a relative path in the plan, which driver and Ray Data's workers
    # find, would lead nowhere.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    folder = stage.folder
    reserved = {"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.gpus else {})}
    trainer = TorchTrainer(
        _work,
        # As bytes, so that Ray Train's controller, which only hands it on, need not import what workers do.
        train_loop_config={"work": pickle.dumps((loop, plan))},
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # declared as its predecessor
            num_workers=resources.actors if min_workers is None else (min_workers, resources.actors),
            use_gpu=resources.gpus > 0,
            resources_per_worker=reserved,
            elastic_resize_monitor_interval_s=_RESIZE_EVERY,
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # declared as its predecessor
            name=f"{_PREFIX}{stage.key}",
            storage_path=folder.path(),
            storage_filesystem=None
            if folder.is_local
            else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(folder.fs)),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": environment} if environment else None,
        ),
    )
    try:
        return trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(cause := getattr(failure, "cause", failure), UserError):
                raise cause from error
        raise


def _work(settings: dict[str, bytes]) -> Any:
    loop, plan = pickle.loads(settings["work"])
    return loop(plan)


def is_begun(stage: Stage) -> bool:
    """Whether a training of a stage was begun that will go on where it was."""
    return (stage.folder / f"{_PREFIX}{stage.key}").exists()


def remove_training(folder: Folder) -> None:
    """Removes a stage's checkpoints, once what they held is in its results."""
    for name in folder.folders():
        if name.startswith(_PREFIX):
            (folder / name).remove()
