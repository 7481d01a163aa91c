"""The training stage: the teacher's embeddings, then DDP workers on Ray Train, then the exports."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest
from safeclip.config import Config, Train
from safeclip.encoder.card import model_card
from safeclip.encoder.checkpoint import read_best, write_best_epochs
from safeclip.encoder.data import Rows
from safeclip.encoder.load import load_encoder
from safeclip.encoder.loop import Ended, train_loop
from safeclip.encoder.model import Encoder, is_causal
from safeclip.encoder.negation import negate_unsafe_weights
from safeclip.encoder.objectives import NEGATION, Objective, make_objective
from safeclip.encoder.progress import Progress, best_epochs, figure
from safeclip.encoder.publish import (
    encoder_hash,
    merged,
    remove_exports,
    student_hash,
    trained_student,
    write_exports,
)
from safeclip.encoder.teacher import DRAWN, PRESERVED, SPLITS, embed_teacher
from safeclip.encoder.tracker import check_tracker
from safeclip.encoder.worker import Plan
from safeclip.errors import UserError
from safeclip.fitting import fit, is_begun, remove_training
from safeclip.generation.captions import collect
from safeclip.generation.redraw import redraw
from safeclip.generation.sources import identity
from safeclip.records import row_seed

BEST = "best"  # the folder of the best epochs
CALIBRATION = 512  # quadruplets that the training-free baseline looks at


def check_settings(train: Train) -> None:
    """Refuses settings that could only fail once workers run.

    Raises:
        UserError: an unknown objective or term, a batch that does not divide among the workers, or a tracker that is
            not installed.
    """
    check_tracker(train.tracker)
    if train.objective != NEGATION:
        make_objective(train.objective, train.weights)
    elif train.weights:
        raise UserError(f"train.weights: {NEGATION} has no terms")
    workers = train.resources.actors
    if train.min_workers is not None and train.min_workers > workers:
        raise UserError(
            f"train.min_workers: {train.min_workers} is more than train.resources.actors, which is {workers}"
        )
    together = {"batch": train.batch, **({"preserve.per_step": train.preserve.per_step} if train.preserve else {})}
    for name, rows in together.items():
        for count in range(train.min_workers or workers, workers + 1):
            if rows % count:
                raise UserError(
                    f"train.{name}: {rows} does not divide among {count} workers (train.resources.actors)"
                )


def check_counts(train: Train, counts: dict[str, int]) -> None:
    """Refuses quadruplets that do not do for the settings.

    Args:
        train: the settings.
        counts: quadruplets by split.

    Raises:
        UserError: an empty split, or a batch that is larger than the training split.
    """
    for split in SPLITS:
        if not counts.get(split):
            raise UserError(f"quadruplets: the {split} split is empty; generate more captions")
    if train.batch > counts["train"]:
        raise UserError(
            f"train.batch: {train.batch} is more than the {counts['train']} training quadruplets there are"
        )


def load_base(train: Train) -> Encoder:
    """Returns the encoder to make safe.

    Raises:
        UserError: it cannot be loaded, or the objective and it do not go together.
    """
    base = load_encoder(train.base)
    if train.objective != NEGATION:
        check_states(make_objective(train.objective, train.weights), base)
    return base


def check_states(objective: Objective, base: Encoder) -> None:
    """Refuses an objective that wants the states of texts where the text tower has none to compare.

    Raises:
        UserError: the objective and the encoder do not go together.
    """
    if objective.uses_states and not is_causal(base.model):
        terms = ", ".join(f"{term}: 0" for term in objective.state_terms)
        raise UserError(
            f"train.objective: {'; '.join(objective.state_terms)} hold the states of a causal text tower, which "
            f"{type(base.model).__name__} has not; leave them out with --set 'train.weights={{{terms}}}'"
        )


def train_encoder(
    config: Config, run: Folder, folder: Folder | None = None, shared: Folder | None = None
) -> dict[str, Any]:
    """Runs the stage: fine-tunes `train.base` on the run's quadruplets and writes the exports to `encoder/`.

    A Ray must be running. A training that was cut off goes on after its last checkpoint.

    Args:
        config: what to run.
        run: the run's folder, whose `quadruplets/` is complete.
        folder: where the output goes, instead of the run's `encoder/`.
        shared: where the safe pairs and the teacher's embeddings lie, instead of beside the output, for trainings
            of the same seed that use the same ones.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the quadruplets are not complete, a setting does not fit them, or the loss diverged.
    """
    run = run.everywhere()
    quadruplets = read_manifest(run / "quadruplets")
    if quadruplets is None:
        raise UserError(f"{run.url}: quadruplets is not complete; run jobs.generate first")
    train = config.train
    check_settings(train)
    check_counts(train, quadruplets["data"]["quadruplets"])
    base = load_base(train)
    base_hash, content_hash = encoder_hash(base), quadruplets["content_hash"]
    folder = (folder or run / "encoder").everywhere()
    shared = (shared or folder).everywhere()
    pairs = identity(train.preserve) if train.preserve else None
    stage = Stage(folder, hash_of(config.results()["train"], config.seed, base_hash, content_hash, pairs))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = stage.begin()
    content: dict[str, Any] = {
        "base": {"source": train.base, "hash": base_hash},
        "quadruplets": quadruplets["content_hash"],
    }
    if train.objective == NEGATION:
        safe, content["train"] = _negate(base, train, run / "quadruplets" / "train")
        content["history"] = []
        (stage.folder / BEST).remove()
        remove_exports(stage.folder)
        content["content_hash"] = write_exports(safe, None, stage.folder, model_card(config, content))
        return stage.finish(began, content)
    folders = {split: run / "quadruplets" / split for split in SPLITS}
    if train.preserve:
        folders[PRESERVED] = shared / PRESERVED
        preserved = [collect(config, train.preserve, folders[PRESERVED], row_seed(config.seed, PRESERVED))]
        if train.preserve.drawn:
            folders[DRAWN] = shared / DRAWN
            preserved.append(redraw(config, shared, DRAWN, PRESERVED, train.preserve.drawn))
        content_hash = hash_of(content_hash, [unit["hash"] for each in preserved for unit in each["units"]])
    teacher = shared / "teacher"
    units = embed_teacher(train.base, base_hash, folders, content_hash, teacher, train.resources)
    student = student_hash(base_hash, train.lora)
    plan = Plan(train, config.seed, stage.key, folders, teacher, units, student, stage.folder / "tracker")
    progress, best, workers = _fit(plan, stage)
    content["train"] = {
        "objective": train.objective,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_epochs": [
            {"epoch": epoch, train.select: figure(progress.history[epoch - 1], train.select)}
            for epoch in best_epochs(progress.history, train.select, train.keep_best)
        ],
        "steps": progress.steps,
        "samples_per_second": round(progress.steps * train.batch / max(progress.seconds, 1e-9), 1),
        "data_wait": round(progress.waiting / max(progress.seconds, 1e-9), 4),
        "workers": workers,
        "preserved": sum(each["accepted"] for each in preserved) if train.preserve else 0,
    }
    content["history"] = progress.history
    model = trained_student(base, best, config)
    remove_exports(stage.folder)
    content["content_hash"] = write_exports(merged(base, model), model, stage.folder, model_card(config, content))
    remove_training(stage.folder)
    return stage.finish(began, content)


def _negate(base: Encoder, train: Train, rows: Folder) -> tuple[Encoder, dict[str, Any]]:
    """Returns the training-free baseline's encoder, and what the manifest says of it."""
    table = _first_rows(rows, CALIBRATION)
    batch = Rows(table, base).batch(np.arange(len(table)))
    half = len(batch) // 2
    model, negated = negate_unsafe_weights(
        base, batch.part(0, half), batch.part(half, 2 * half), train.negation_share
    )
    print(f"encoder: {negated} weights negated, by {half} quadruplets; nothing was trained")
    numbers = {"epochs": 0, "best_epoch": 0, "steps": 0, "samples_per_second": 0.0, "workers": 0, "preserved": 0}
    return dataclasses.replace(base, model=model), {
        "objective": NEGATION,
        "negated": negated,
        "best_epochs": [],
        **numbers,
    }


def _first_rows(folder: Folder, count: int) -> pa.Table:
    """Returns as many rows as there are, from the start; files behind them are not read."""
    tables: list[pa.Table] = []
    for name in folder.files(".parquet"):
        if (left := count - sum(map(len, tables))) > 0:
            tables.append(folder.read_table(name).slice(0, left))
    return pa.concat_tables(tables)


def _fit(plan: Plan, stage: Stage) -> tuple[Progress, dict[str, torch.Tensor], int]:
    """Trains, writes the best epochs if several are kept, and returns how it went, the best weights, and workers."""
    train = plan.train
    if plan.logs and not is_begun(stage):
        plan.logs.remove()  # an earlier training's curves
    result = fit(train_loop, plan, stage, train.resources, train.max_failures, min_workers=train.min_workers)
    ended: Ended = result.return_value
    again = f"lower train.learning_rate ({train.learning_rate}), and start again with --replace or another --run"
    if ended.diverged:
        raise UserError(f"train: the loss is not a finite number in epoch {ended.diverged}; {again}")
    with result.checkpoint.as_directory() as path:
        progress, best = read_best(Folder(path))
        if not progress.best_epoch:
            raise UserError(f"train: the {train.select} of no epoch's validation is a finite number; {again}")
        epochs = best_epochs(progress.history, train.select, train.keep_best) if train.keep_best > 1 else []
        write_best_epochs(Path(path), epochs, stage.folder / BEST)
        return progress, best, ended.workers
