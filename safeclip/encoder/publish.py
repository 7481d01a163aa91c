"""From trained weights to what others load: the exports and the model card, of a training or of a checkpoint."""

import dataclasses
import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

from safeclip.artifacts import Folder, hash_of
from safeclip.config import Config, Lora
from safeclip.encoder.card import model_card
from safeclip.encoder.checkpoint import PROGRESS, read_best
from safeclip.encoder.export import EXPORTS, export_encoder, oddities
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder
from safeclip.encoder.student import load_trained_state, make_student, merge_student, save_adapter
from safeclip.errors import UserError


def weights_hash(model: torch.nn.Module) -> str:
    """Returns 16 hexadecimal digits that depend on a model's weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def encoder_hash(encoder: Encoder) -> str:
    """Returns 16 hexadecimal digits that depend on an encoder's weights, activation and preprocessing alone."""
    return hash_of(weights_hash(encoder.model), encoder.config)


def student_hash(base_hash: str, lora: Lora | None) -> str:
    """Returns a hash that identifies an untrained student: its base's weights and LoRA's settings.

    The first values of adapters, which are random, are left out.

    Args:
        base_hash: `encoder_hash` of the base.
        lora: the adapters; None where all weights are trained.
    """
    return hash_of(base_hash, lora.model_dump() if lora else None)


def trained_student(base: Encoder, trained: dict[str, torch.Tensor], config: Config) -> torch.nn.Module:
    """Returns a student of the base with weights that training left.

    Raises:
        UserError: the weights are of another student.
    """
    student = make_student(base.model, config.train.lora, config.seed)
    load_trained_state(student, trained)
    return student


def merged(base: Encoder, student: torch.nn.Module) -> Encoder:
    """Returns a student as an encoder."""
    return dataclasses.replace(base, model=merge_student(student))


def write_exports(safe: Encoder, student: torch.nn.Module | None, folder: Folder, card: str) -> str:
    """Writes the exports and the model card, and returns the hash of the encoder's weights.

    Args:
        safe: the encoder.
        student: whose adapters are written, too, where it has some.
        folder: where they go.
        card: the model card.
    """
    local = Path(tempfile.mkdtemp(prefix="safeclip-export-"))
    try:
        export_encoder(safe, local)
        if isinstance(student, PeftModel) and not oddities(safe.model):
            save_adapter(student, local / "lora")
        folder.make()
        folder.write("README.md", card.encode())
        for path in sorted(local.iterdir()):
            folder.put(path.name, path)
        return hashlib.sha256((local / "open_clip" / "open_clip_model.safetensors").read_bytes()).hexdigest()[:16]
    finally:
        shutil.rmtree(local)


def remove_exports(folder: Folder) -> None:
    """Removes the exports of a stage's folder: the next encoder may have fewer."""
    for name in EXPORTS:
        (folder / name).remove()


def export_checkpoint(config: Config, checkpoint: Folder, target: Folder) -> None:
    """Writes the exports of a training's checkpoint, of the best weights up to it.

    Args:
        config: of the training.
        checkpoint: a folder `checkpoint_…` below `encoder/training-…`, or `epoch-…` below `encoder/best`.
        target: where the exports go.

    Raises:
        UserError: the checkpoint is missing, of no whole epoch yet, or of another base or other adapters than the
            config's.
    """
    if not checkpoint.exists(PROGRESS):
        raise UserError(f"--export {checkpoint.url}: no checkpoint lies here (no {PROGRESS})")
    try:
        progress, best = read_best(checkpoint)
    except FileNotFoundError as error:
        raise UserError(f"--export {checkpoint.url}: the weights of its best epoch are missing") from error
    if not progress.best_epoch:
        raise UserError(f"--export {checkpoint.url}: the training was not yet through an epoch")
    base = load_encoder(config.train.base)
    base_hash = encoder_hash(base)
    if progress.student != student_hash(base_hash, config.train.lora):
        raise UserError(
            f"--export {checkpoint.url}: of another base or other adapters than train.base and train.lora say"
        )
    student = trained_student(base, best, config)
    trained = {"objective": config.train.objective, "epochs": progress.epoch, "best_epoch": progress.best_epoch}
    content = {"base": {"source": config.train.base, "hash": base_hash}, "train": trained}
    card = model_card(config, {**content, "history": progress.history})
    write_exports(merged(base, student), student, target, card)
