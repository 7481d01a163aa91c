"""Trains the toxifier: pairs, SFT, preferences drawn from the SFT model, DPO, and one adapter of the two.

`runs/<run>/toxifier/` holds `pairs.json`, `sft/` (its adapter), `preferences/`, `dpo/` (its adapter, for the model
with the first one merged), `adapter/` (both in one, for the model as it comes) and `merged/` (the model with it).
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from safeclip.artifacts import Folder, Stage, hash_of
from safeclip.config import Config, ToxifierTraining
from safeclip.errors import UserError
from safeclip.fitting import fit, remove_training
from safeclip.generation.captions import make_captions
from safeclip.generation.llm import ADAPTER_FILES, adapter_hash, copy_adapter, model_path, save_merged
from safeclip.generation.toxify import conversation
from safeclip.records import row_share
from safeclip.toxifier.adapters import join_adapters
from safeclip.toxifier.loop import BEST, Plan, train_loop
from safeclip.toxifier.pairs import Pair, Pairs, hold_out, read_pairs, told
from safeclip.toxifier.preferences import make_preferences, read_preferences

# Ray Train's own print would show what dill prints, to nobody, when `datasets` hashes a function.
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def train_toxifier(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage. A Ray must be running; a step that is complete is skipped, one that was cut off goes on.

    Args:
        config: what to run.
        run: the run's folder; the captions that preferences are drawn for are made first if need be.

    Returns:
        The stage's manifest.

    Raises:
        UserError: too few usable pairs or preferences, a batch that does not fit them, or the loss diverged.
    """
    run = run.everywhere()
    folder, settings = run / "toxifier", config.toxifier
    pairs = read_pairs(config)
    if pairs.bad:
        print(f"pairs: {len(pairs.bad)} lines are left out{told(pairs.bad)}")
    check_batch(settings, "sft", len(pairs.train))
    check_batch(settings, "dpo")  # its rows come later
    began = time.time()
    make_captions(config, run)
    folder.make(private=True)
    folder.write("pairs.json", json.dumps(pairs.summary(), indent=2).encode())
    sft = train_step(config, folder / "sft", None, *sft_rows(pairs))
    preferences = make_preferences(config, run, folder / "sft")
    chosen = read_preferences(folder / "preferences")
    dpo = train_step(config, folder / "dpo", folder / "sft", *dpo_rows(chosen, settings, config.seed))
    stage = Stage(folder, hash_of(sft["key"], preferences["key"], dpo["key"]))
    if manifest := stage.manifest():
        print("toxifier: complete, skipped")
        return manifest
    stage.begin()
    _export(config, folder)
    return stage.finish(
        began,
        {
            "content_hash": adapter_hash(folder / "adapter"),
            "model": config.generate.toxify.model,
            "acknowledge_explicit": config.generate.acknowledge_explicit,
            "pairs": {k: v for k, v in pairs.summary().items() if k != "bad"},
            "preferences": {"captions": preferences["rows"], "pairs": len(chosen)},
            "sft": {k: sft[k] for k in ("steps", "loss", "validation_loss", "seconds")},
            "dpo": {k: dpo[k] for k in ("steps", "loss", "validation_loss", "seconds")},
        },
    )


def check_batch(settings: ToxifierTraining, method: str, rows: int | None = None) -> None:
    """Refuses a batch that does not fit the rows, the workers or what they take at once.

    Args:
        settings: of the toxifier.
        method: `sft` or `dpo`.
        rows: to train on; None where they are not known yet.

    Raises:
        UserError: which setting, and what would fit.
    """
    tuning, workers = getattr(settings, method), settings.resources.actors
    batch, micro = tuning.batch, tuning.micro_batch
    if rows is not None and batch > rows:
        raise UserError(f"toxifier.{method}.batch: {batch} is more than the {rows} rows there are to train on")
    if batch % workers:
        raise UserError(
            f"toxifier.{method}.batch: {batch} does not divide among {workers} workers (toxifier.resources.actors)"
        )
    share = batch // workers
    if micro and micro < share and share % micro:
        raise UserError(
            f"toxifier.{method}.micro_batch: {micro} does not divide a worker's share of the batch, which is {share}"
        )


def sft_rows(pairs: Pairs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the training and validation rows of the supervised training, as TRL takes them."""

    def row(pair: Pair) -> dict[str, Any]:
        answer = [{"role": "assistant", "content": pair.unsafe}]
        return {"prompt": conversation(pair.safe, pair.asked, []), "completion": answer}

    return [row(p) for p in pairs.train], [row(p) for p in pairs.validation]


def dpo_rows(
    preferences: list[dict[str, Any]], settings: ToxifierTraining, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the training and validation rows of DPO, as TRL takes them; a hash of the id splits them.

    Raises:
        UserError: the batch does not fit them.
    """

    def row(preference: dict[str, Any]) -> dict[str, Any]:
        sides = {side: [{"role": "assistant", "content": preference[side]}] for side in ("chosen", "rejected")}
        return {"prompt": conversation(preference["safe_caption"], preference["asked"], []), **sides}

    train, validation = hold_out(preferences, settings.validation, lambda p: row_share(seed, "toxifier", p["id"]))
    check_batch(settings, "dpo", len(train))
    return [row(p) for p in train], [row(p) for p in validation]


def train_step(
    config: Config,
    folder: Folder,
    start: Folder | None,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]],
) -> dict[str, Any]:
    """Runs one training and writes the adapter of the lowest validation loss; a complete one is skipped.

    Args:
        config: what to run.
        folder: of the training; its name, `sft` or `dpo`, is the method.
        start: the adapter that is merged into the model first, None for the model as it comes.
        train: rows, as `sft_rows` and `dpo_rows` give them.
        validation: rows that only measure.

    Returns:
        The training's manifest, with the losses of all steps and epochs.

    Raises:
        UserError: the loss diverged.
    """
    method: Any = folder.url.rsplit("/", 1)[-1]
    plan = Plan(method, config.generate.toxify.model, start, train, validation, config.toxifier, config.seed)
    settings = config.toxifier.model_dump(include={method, "lora", "dtype", "max_length"})
    stage = Stage(folder, hash_of(settings, config.seed, plan.model, adapter_hash(start), train, validation))
    if manifest := stage.manifest():
        print(f"{method}: complete, skipped")
        return manifest
    began = stage.begin()
    result = fit(train_loop, plan, stage, config.toxifier.resources, config.toxifier.max_failures, _QUIET)
    history = result.metrics["history"]
    check_losses(method, plan.tuning.learning_rate, history)
    with result.checkpoint.as_directory() as checkpoint:
        for name in ADAPTER_FILES:
            folder.write(name, (Path(checkpoint) / BEST / name).read_bytes())
    remove_training(folder)
    losses = [log["eval_loss"] for log in history if "eval_loss" in log]
    return stage.finish(
        began,
        {
            "rows": {"train": len(train), "validation": len(validation)},
            "steps": result.metrics["steps"],
            "loss": [round(log["loss"], 6) for log in history if "loss" in log],
            "validation_loss": [round(loss, 6) for loss in losses],
            "workers": config.toxifier.resources.actors,
        },
    )


def check_losses(method: str, rate: float, history: list[dict[str, Any]]) -> None:
    """Refuses a training whose loss diverged.

    Raises:
        UserError: a loss is not a finite number.
    """
    losses = [float(log[name]) for log in history for name in ("loss", "eval_loss") if name in log]
    if not all(map(math.isfinite, losses)):
        raise UserError(
            f"toxifier.{method}: the loss is not a finite number; "
            f"lower toxifier.{method}.learning_rate ({rate:g}), and start again with --replace or another --run"
        )


def _export(config: Config, folder: Folder) -> None:
    """Writes `adapter/` and `merged/`, in a task, since the driver's machine may be too small for the model."""
    import ray

    resources = config.toxifier.resources
    task = ray.remote(num_cpus=resources.cpus)(_write_exports)
    ray.get(task.remote(config.generate.toxify.model, folder))


def _write_exports(model: str, folder: Folder) -> None:
    with tempfile.TemporaryDirectory(prefix="safeclip-export-") as name:
        place = Path(name)
        for step in ("sft", "dpo"):
            (place / step).mkdir()
            copy_adapter(folder / step, place / step)
        join_adapters(place / "sft", place / "dpo", place / "adapter")
        folder.put("adapter", place / "adapter")
        save_merged(model_path(model), folder / "adapter", place / "merged")
        folder.put("merged", place / "merged")
