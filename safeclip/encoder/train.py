"""The training stage: the teacher's embeddings, then DDP workers on Ray Train, then the exports."""

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest
from safeclip.config import Config, Train
from safeclip.encoder.export import check_exportable, export_encoder
from safeclip.encoder.loop import Plan, Progress, read_progress, train_loop
from safeclip.encoder.lora import add_lora, load_adapter_state, merge_lora, save_adapter
from safeclip.encoder.model import Encoder, load_encoder
from safeclip.encoder.objectives import make_objective
from safeclip.encoder.teacher import SPLITS, embed_teacher
from safeclip.errors import UserError
from safeclip.fitting import fit, remove_training

EXPORTS = ("open_clip", "huggingface", "text_encoder", "lora")


def weights_hash(model: torch.nn.Module) -> str:
    """Returns 16 hexadecimal digits that depend on a model's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_settings(train: Train, counts: dict[str, int]) -> None:
    """Refuses what could only fail once workers run.

    Args:
        train: the settings.
        counts: quadruplets by split.

    Raises:
        UserError: an unknown objective, an empty split, or a batch that does not fit the data or the workers.
    """
    make_objective(train.objective)
    for split in SPLITS:
        if not counts.get(split):
            raise UserError(f"quadruplets: the {split} split is empty; generate more captions")
    if train.batch > counts["train"]:
        raise UserError(
            f"train.batch: {train.batch} is more than the {counts['train']} training quadruplets there are"
        )
    if train.batch % (workers := train.resources.actors):
        raise UserError(
            f"train.batch: {train.batch} does not divide among {workers} workers (train.resources.actors)"
        )


def train_encoder(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage: fine-tunes `train.base` on the run's quadruplets and writes the exports to `encoder/`.

    A Ray must be running. A training that was cut off goes on after its last whole epoch.

    Args:
        config: what to run.
        run: the run's folder, whose `quadruplets/` is complete.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the quadruplets are not complete, a setting does not fit them, or the loss diverged.
    """
    run = Folder(run.path()) if run.is_local else run  # workers may have another working directory
    quadruplets = read_manifest(run / "quadruplets")
    if quadruplets is None:
        raise UserError(f"{run.url}: quadruplets is not complete; run jobs.generate first")
    check_settings(config.train, quadruplets["data"]["quadruplets"])
    base = load_encoder(config.train.base)
    check_exportable(base.model)
    base_hash, content_hash = weights_hash(base.model), quadruplets["content_hash"]
    settings = config.train.model_dump(exclude={"resources", "max_failures"})
    stage = Stage(run / "encoder", hash_of(settings, config.seed, base_hash, content_hash))
    if manifest := stage.manifest():
        print("encoder: complete, skipped")
        return manifest
    began = time.time()
    stage.folder.make()
    teacher = stage.folder / "teacher"
    resources = config.train.resources
    units = embed_teacher(config.train.base, base_hash, run / "quadruplets", content_hash, teacher, resources)
    plan = Plan(config.train, config.seed, stage.key, run / "quadruplets", teacher, units)
    progress, best = _fit(plan, stage)
    hashes = _write_exports(base, best, config, stage.folder)
    remove_training(stage.folder)
    content = {
        "content_hash": hashes,
        "base": {"source": config.train.base, "hash": base_hash},
        "train": {
            "objective": config.train.objective,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": progress.steps,
            "samples_per_second": round(progress.steps * config.train.batch / max(progress.seconds, 1e-9), 1),
            "workers": resources.actors,
        },
        "history": progress.history,
    }
    return stage.finish(began, content)


def _fit(plan: Plan, stage: Stage) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Trains, and returns how it went and the best adapters."""
    result = fit(train_loop, plan, stage, plan.train.resources, plan.train.max_failures)
    if epoch := (result.metrics or {}).get("diverged"):
        raise UserError(
            f"train: the loss is not a finite number in epoch {epoch}; "
            f"lower train.learning_rate ({plan.train.learning_rate}), and start again with --replace or another --run"
        )
    with result.checkpoint.as_directory() as path:
        return read_progress(Path(path)), load_file(Path(path) / "best.safetensors")


def _write_exports(base: Encoder, best: dict[str, torch.Tensor], config: Config, folder: Folder) -> str:
    """Writes the exports and returns the hash of the trained weights."""
    student = add_lora(base.model, config.train.lora, config.seed)
    load_adapter_state(student, best)
    safe = Encoder(merge_lora(student), base.tokenizer, base.preprocess, base.config)
    local = Path(tempfile.mkdtemp(prefix="safeclip-export-"))
    try:
        export_encoder(safe, local)
        save_adapter(student, local / "lora")
        for name in EXPORTS:
            folder.put(name, local / name)
        return hashlib.sha256((local / "open_clip" / "open_clip_model.safetensors").read_bytes()).hexdigest()[:16]
    finally:
        shutil.rmtree(local)
