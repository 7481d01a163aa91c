"""Checkpoints: what a training needs to go on, as safetensors and JSON; nothing of what is frozen."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save_file

from safeclip.artifacts import Folder
from safeclip.encoder.progress import Progress

PROGRESS = "progress.json"
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a training has made so far."""

    progress: Progress
    trained: State
    """The weights as they are."""
    best_weights: dict[int, State]
    """Those of the best epochs, by epoch, `progress.best_epoch` among them."""
    earlier: list[State]
    """Those at the end of the epochs before, which are averaged with the next one's."""
    moments: dict[int, State]
    """Of the optimizer, by number of the parameter."""


def epoch_name(epoch: int) -> str:
    """Returns what an epoch's weights are called in `encoder/best/`."""
    return f"epoch-{epoch:04d}"


def _weights_of(epoch: int) -> str:
    return f"{epoch_name(epoch)}.safetensors"


def write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes a checkpoint's files into a folder that is there."""
    save_file(checkpoint.trained, folder / "trained.safetensors")
    for epoch, state in checkpoint.best_weights.items():
        save_file(state, folder / _weights_of(epoch))
    for number, state in enumerate(checkpoint.earlier):
        save_file(state, folder / f"earlier-{number}.safetensors")
    moments = {
        f"{number}.{name}": value.detach().cpu()
        for number, state in checkpoint.moments.items()
        for name, value in state.items()
    }
    save_file(moments, folder / "optimizer.safetensors")
    (folder / PROGRESS).write_text(_to_json(checkpoint.progress))


def read_checkpoint(folder: Path, device: str = "cpu") -> Checkpoint:
    """Returns the checkpoint that a folder holds.

    Args:
        folder: where `write_checkpoint` wrote.
        device: where the optimizer's moments are put.
    """
    best_weights = {_number(path): load_file(path) for path in folder.glob("epoch-*.safetensors")}
    moments: dict[int, State] = {}
    for key, value in load_file(folder / "optimizer.safetensors", device=device).items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    return Checkpoint(
        _read_progress(Folder(str(folder))),
        load_file(folder / "trained.safetensors"),
        best_weights,
        [load_file(path) for path in sorted(folder.glob("earlier-*.safetensors"), key=_number)],
        moments,
    )


def read_best(checkpoint: Folder) -> tuple[Progress, State]:
    """Returns how far a checkpoint is, and its best weights; the fresh ones where no epoch is the best yet."""
    progress = _read_progress(checkpoint)
    return progress, load(checkpoint.read(_weights_of(progress.best_epoch)))


def write_best_epochs(checkpoint: Path, epochs: list[int], folder: Folder) -> None:
    """Writes for each of several epochs a folder that can be exported as a checkpoint can; others there go.

    Args:
        checkpoint: the training's last one.
        epochs: whose weights it holds.
        folder: where theirs go.
    """
    folder.remove()
    progress = _read_progress(Folder(str(checkpoint)))
    for epoch in epochs:
        target = folder / epoch_name(epoch)
        target.make()
        target.write(PROGRESS, _to_json(dataclasses.replace(progress, best_epoch=epoch)).encode())
        target.put(_weights_of(epoch), checkpoint / _weights_of(epoch))


def _read_progress(folder: Folder) -> Progress:
    return Progress(**json.loads(folder.read(PROGRESS)))


def _to_json(progress: Progress) -> str:
    return json.dumps(dataclasses.asdict(progress))


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
