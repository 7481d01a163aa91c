"""What each training worker does: steps over its share of the batches, validation, a checkpoint an epoch."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file, save_file

from safeclip.artifacts import Folder
from safeclip.config import Train
from safeclip.encoder.data import (
    Batch,
    Quadruplets,
    cache_path,
    epoch_batches,
    map_rows,
    prefetch,
    share_of,
    write_rows,
)
from safeclip.encoder.lora import adapter_state, add_lora, load_adapter_state
from safeclip.encoder.model import Encoder, encode_tokens, load_encoder
from safeclip.encoder.objectives import Embeddings, Objective, make_objective
from safeclip.encoder.teacher import SPLITS, Unit
from safeclip.encoder.validation import recall_sum, validation_losses
from safeclip.records import row_seed

SAY_EVERY = 20  # seconds between lines within an epoch
VALIDATION_BATCH = 64  # rows encoded at once


@dataclass(frozen=True)
class Plan:
    """What the driver tells its workers."""

    train: Train
    seed: int
    key: str
    """Of the training, which names the machine's copies of the rows."""
    quadruplets: Folder
    teacher: Folder
    units: list[Unit]


@dataclass
class Progress:
    """How far a training is. It is saved with each checkpoint, so that a resumed training decides the same."""

    epoch: int = 0
    """Epochs done."""
    steps: int = 0
    seconds: float = 0.0
    """Spent on steps."""
    best_loss: float = math.inf
    best_recall: float = 0.0
    best_epoch: int = 0
    """Whose adapters are kept."""
    waited: int = 0
    """Epochs without a better loss or recall."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def note(self, record: dict[str, Any]) -> bool:
        """Takes in an epoch's record, and returns whether its adapters are the best so far.

        An epoch counts as better if the validation loss or the sum of recalls is (the paper's rule for stopping);
        the adapters kept are those of the lowest loss.
        """
        loss, recall = record["validation"]["total"], record["recall_sum"]
        best = loss < self.best_loss
        self.waited = 0 if best or recall > self.best_recall else self.waited + 1
        self.best_loss, self.best_recall = min(self.best_loss, loss), max(self.best_recall, recall)
        if best:
            self.best_epoch = record["epoch"]
        self.history.append(record)
        return best

    def is_over(self, train: Train) -> bool:
        """Whether the epochs are used up, or patience is."""
        return self.epoch >= train.epochs or self.waited >= train.patience


class TwoTowers(torch.nn.Module):
    """A student as one module, texts and pictures in one pass, as DDP wants it."""

    def __init__(self, student: PeftModel, encoder: Encoder) -> None:
        super().__init__()
        self.student = student
        self.normalize_pixels = encoder.normalize_pixels

    def forward(self, tokens: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings of tokens (n, L) and of uint8 pixels (n, 3, H, W), each (n, d), float32."""
        clip = self.student.get_base_model()
        image = clip.encode_image(self.normalize_pixels(pixels), normalize=True)
        return encode_tokens(clip, tokens).float(), image.float()


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Returns the rate of a step of all steps: constant, or half a cosine down to zero."""
    if train.schedule == "constant":
        return train.learning_rate
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def all_rows(own: torch.Tensor, rank: int, workers: int) -> torch.Tensor:
    """Returns the rows of all workers (workers·B, …), in the order of ranks; only the own ones carry a gradient.

    Every worker computes the loss of the whole batch, so the sum of their gradients is the whole batch's.
    """
    if workers == 1:
        return own
    sent = own.detach().contiguous()
    parts = [torch.empty_like(sent) for _ in range(workers)]
    dist.all_gather(parts, sent)
    parts[rank] = own
    return torch.cat(parts)


class Worker:
    """One worker's model, rows and progress."""

    def __init__(
        self,
        plan: Plan,
        rank: int = 0,
        local_rank: int = 0,
        workers: int = 1,
        device: str = "cpu",
        wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
    ) -> None:
        """Loads the student and the rows.

        Args:
            plan: what to train and on what.
            rank: of this worker, among all.
            local_rank: among those on this machine, which share one copy of the rows.
            workers: how many there are.
            device: where the student is put.
            wrap: makes of a module one that averages its gradients over the workers, such as DDP.
        """
        self.plan, self.train = plan, plan.train
        self.rank, self.workers, self.device = rank, workers, device
        self.encoder = load_encoder(self.train.base, device)
        self.student = add_lora(self.encoder.model, self.train.lora, plan.seed)
        self.encoder.model = torch.nn.Identity()  # the teacher's numbers are at hand, so the teacher need not be
        self.towers = TwoTowers(self.student, self.encoder)
        self.parallel = wrap(self.towers)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.train.learning_rate)
        self.objective: Objective = make_objective(self.train.objective)
        paths = {split: cache_path(plan.key, split) for split in SPLITS}
        if local_rank == 0:
            for split, path in paths.items():
                write_rows(plan.quadruplets, plan.teacher, [u for u in plan.units if u.split == split], path)
        if workers > 1:
            dist.barrier()
        self.rows = {split: Quadruplets(map_rows(path), self.encoder) for split, path in paths.items()}
        self.progress = Progress()
        self.best = adapter_state(self.student)
        self.earlier: list[dict[str, torch.Tensor]] = []
        """Adapters at the end of the epochs before, as many as are averaged with the present one's."""

    def _embed(self, module: Any, batch: Batch) -> torch.Tensor:
        """Returns the embeddings (4, B, d) of S, V, U, G."""
        dtype = torch.bfloat16 if self.train.dtype == "bfloat16" else torch.float32
        with torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=dtype is torch.bfloat16):
            text, image = module(batch.tokens.to(self.device), batch.pixels.to(self.device))
        half = len(text) // 2
        return torch.stack([text[:half], image[:half], text[half:], image[half:]])

    def _whole(self, split: str, embedded: torch.Tensor, rows: np.ndarray) -> Embeddings:
        references = (ref.to(self.device) for ref in self.rows[split].references(rows))
        safe_text, safe_image, unsafe_text, unsafe_image = embedded
        return Embeddings(safe_text, safe_image, unsafe_text, unsafe_image, *references)

    def run_epoch(self) -> dict[str, Any] | None:
        """Trains for an epoch, and returns its record; None where the loss is not a finite number."""
        epoch, rows = self.progress.epoch, self.rows["train"]
        batches = epoch_batches(len(rows), self.train.batch, self.plan.seed, epoch)
        # Dropout is the only chance within a step. Its seed tells workers and epochs apart, and survives a resume.
        torch.manual_seed(row_seed(self.plan.seed, epoch, self.rank, "dropout"))
        self.parallel.train()
        began, said = time.monotonic(), time.monotonic()
        sums: dict[str, float] = {}
        norms = 0.0
        shares = (share_of(batch, self.rank, self.workers) for batch in batches)
        for step, batch in enumerate(prefetch(rows.batch, shares)):
            rate = learning_rate(epoch * len(batches) + step, self.train.epochs * len(batches), self.train)
            losses, norm = self._step(batch, batches[step], rate)
            if not math.isfinite(losses["total"]):
                return None
            norms += norm
            sums = {name: sums.get(name, 0.0) + loss for name, loss in losses.items()}
            if self.rank == 0 and time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                print(f"epoch {epoch + 1:3d} step {step + 1:5d}/{len(batches)}  {_line(losses)}", flush=True)
        seconds = time.monotonic() - began
        self.progress.epoch, self.progress.steps = epoch + 1, self.progress.steps + len(batches)
        self.progress.seconds += seconds
        return {
            "epoch": epoch + 1,
            "loss": {name: total / len(batches) for name, total in sums.items()},
            "gradient_norm": norms / len(batches),
            "samples_per_second": batches.size / seconds,
        }

    def _step(self, batch: Batch, rows: np.ndarray, rate: float) -> tuple[dict[str, float], float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        own = self._embed(self.parallel, batch)
        # (4, B, d) gathered along the rows; see all_rows for why each worker's gradient is its own rows' share.
        embedded = all_rows(own.transpose(0, 1), self.rank, self.workers).transpose(0, 1)
        losses = self.objective.losses(self._whole("train", embedded, rows))
        total = self.objective.total(losses)
        self.optimizer.zero_grad(set_to_none=True)
        (total * self.workers).backward()  # DDP averages over the workers what is a sum
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self.optimizer.step()
        return {"total": total.item(), **{name: loss.item() for name, loss in losses.items()}}, norm.item()

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Returns the validation split's losses and its sum of recalls, the same on every worker."""
        self.towers.eval()
        rows = self.rows["validation"]
        own = np.resize(np.arange(len(rows)), (-(-len(rows) // self.workers)) * self.workers)
        own = share_of(own, self.rank, self.workers)
        pieces = np.split(own, range(VALIDATION_BATCH, len(own), VALIDATION_BATCH))
        embedded = torch.cat([self._embed(self.towers, batch) for batch in prefetch(rows.batch, pieces)], dim=1)
        whole = all_rows(embedded.transpose(0, 1), self.rank, self.workers).transpose(0, 1)[:, : len(rows)]
        embeddings = self._whole("validation", whole, np.arange(len(rows)))
        return {
            "validation": validation_losses(embeddings, self.objective),
            "recall_sum": recall_sum(embeddings),
        }

    def take_epoch(self) -> dict[str, Any] | None:
        """Trains and validates for an epoch, notes and prints its record, and keeps the adapters if they are best."""
        trained = self.run_epoch()
        if trained is None:
            return None
        own = adapter_state(self.student)
        recent = [*self.earlier, own]
        averaged = {name: torch.stack([state[name] for state in recent]).mean(0) for name in own}
        load_adapter_state(self.student, averaged)
        record = {**trained, **self.validate()}
        load_adapter_state(self.student, own)
        self.earlier = recent[max(0, len(recent) - self.train.average + 1) :]
        best = self.progress.note(record)
        if best:
            self.best = averaged
        if self.rank == 0:
            print(
                f"epoch {record['epoch']:3d}/{self.train.epochs}  {_line(record['loss'])}  "
                f"gradient {record['gradient_norm']:6.3f}  {record['samples_per_second']:6.1f} samples/s  | "
                f"validation {record['validation']['total']:.4f}  recall sum {record['recall_sum']:.3f}"
                f"{'  best' if best else ''}",
                flush=True,
            )
        return record

    def save(self, folder: Path) -> None:
        """Writes a checkpoint."""
        save_file(adapter_state(self.student), folder / "adapter.safetensors")
        save_file(self.best, folder / "best.safetensors")
        for number, state in enumerate(self.earlier):
            save_file(state, folder / f"earlier-{number}.safetensors")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint."""
        load_adapter_state(self.student, load_file(folder / "adapter.safetensors"))
        self.best = load_file(folder / "best.safetensors")
        self.earlier = [load_file(path) for path in sorted(folder.glob("earlier-*.safetensors"), key=_number)]
        state = torch.load(folder / "optimizer.pt", weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state)
        self.progress = read_progress(folder)


def read_progress(folder: Path) -> Progress:
    """Returns the progress that a checkpoint holds."""
    return Progress(**json.loads((folder / "progress.json").read_text()))


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _line(losses: dict[str, float]) -> str:
    terms = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if name != "total")
    return f"loss {losses['total']:.4f}  {terms}"


def train_loop(settings: dict[str, Any]) -> None:
    """What Ray Train runs in each worker; `settings` holds a `Plan` as "plan"."""
    import ray.train
    import ray.train.torch

    logging.getLogger().setLevel(logging.WARNING)  # open_clip tells at length how it loads
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), str(ray.train.torch.get_device())
    worker = Worker(
        settings["plan"],
        rank,
        context.get_local_rank(),
        context.get_world_size(),
        device,
        ray.train.torch.prepare_model,
    )
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            worker.load(Path(folder))
        if rank == 0:
            print(f"encoder: training goes on after epoch {worker.progress.epoch}", flush=True)
    while not worker.progress.is_over(worker.train):
        if worker.take_epoch() is None:
            # The same on every worker. An exception would only have Ray try again, to the same end.
            ray.train.report({"diverged": worker.progress.epoch + 1})
            return
        _report(worker)


def _report(worker: Worker) -> None:
    import ray.train

    checkpoint = None
    if worker.rank == 0:
        folder = tempfile.mkdtemp(prefix="safeclip-checkpoint-")
        worker.save(Path(folder))
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(
        {"epoch": worker.progress.epoch}, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True
    )
