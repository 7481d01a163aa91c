"""One worker's share of a training: steps, validation, what a checkpoint holds."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from safeclip.artifacts import Folder
from safeclip.config import Train
from safeclip.encoder.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from safeclip.encoder.data import (
    Batch,
    epoch_batches,
    kept_rows,
    prefetch,
    share_of,
    share_rows,
)
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import is_causal, text_states, trim_tokens
from safeclip.encoder.nearest import NearestSafe
from safeclip.encoder.objectives import Embeddings, Objective, make_objective
from safeclip.encoder.progress import Progress, best_epochs, memory_gib, told
from safeclip.encoder.states import held_tokens
from safeclip.encoder.student import (
    clip_of,
    compile_blocks,
    load_trained_state,
    lower_frozen,
    make_student,
    train_mode,
    trained_state,
)
from safeclip.encoder.teacher import DRAWN, KEPT, Unit
from safeclip.encoder.towers import TwoTowers
from safeclip.encoder.tracker import make_tracker
from safeclip.encoder.validation import recall_sum, validation_losses
from safeclip.encoder.views import choose_views, take_views
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
    folders: dict[str, Folder]
    """Where the rows of each split lie."""
    teacher: Folder
    units: list[Unit]
    student: str = ""
    """Hash of what is trained, kept with its checkpoints."""
    logs: Folder | None = None
    """Where the tracker's files go."""


def learning_rate(step: int, steps: int, train: Train) -> float:
    """Returns the rate of a step of all steps: constant, or half a cosine down to zero; rising in the warm-up."""
    rate = train.learning_rate * min(1.0, (step + 1) / (train.warmup + 1))
    return rate if train.schedule == "constant" else rate * 0.5 * (1 + math.cos(math.pi * step / steps))


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
        self.student = make_student(self.encoder.model, self.train.lora, plan.seed)
        self.objective: Objective = make_objective(self.train.objective, self.train.weights)
        # The teacher's embeddings are at hand, so the teacher need not be, unless pictures change from step to step,
        # or its states are wanted, which are too many to keep.
        self.teacher = self.encoder.model if self.train.views or self.objective.uses_states else None
        self.encoder.model = torch.nn.Identity()
        if self.train.dtype == "bfloat16":
            lower_frozen(self.student, torch.bfloat16)
        if self.train.gradient_checkpointing:
            clip_of(self.student).set_grad_checkpointing(True)
        self.towers = TwoTowers(self.student, self.encoder)
        if self.train.compile:
            compile_blocks(self.towers)
        self.parallel = wrap(self.towers)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.train.learning_rate, fused=True)
        parts = {split: (KEPT, DRAWN) if split == KEPT else (split,) for split in plan.folders if split != DRAWN}
        units = {split: [unit for unit in plan.units if unit.split in parts[split]] for split in parts}
        self.rows = share_rows(plan.folders, plan.teacher, units, plan.key, self.encoder, local_rank, workers)
        self.nearest = self._find_nearest() if self.objective.uses_nearest else {}
        self.batches = len(self.rows["train"]) // self.train.batch
        """Steps in an epoch."""
        self.progress = Progress(student=plan.student)
        self.kept = {0: trained_state(self.student)}
        """Weights of the best epochs, by epoch; of none (0) as long as there is no best one."""
        self.earlier: list[dict[str, torch.Tensor]] = []
        """Weights at the end of the epochs before, as many as are averaged with the present one's."""
        self.tracker = make_tracker(self.train.tracker, plan.logs, plan.key) if rank == 0 and plan.logs else None

    @property
    def best(self) -> dict[str, torch.Tensor]:
        """The weights that are exported."""
        return self.kept[self.progress.best_epoch]

    def _find_nearest(self) -> dict[str, NearestSafe]:
        references = {s: self.rows[s].references(np.arange(len(self.rows[s]))) for s in ("train", "validation")}
        return {split: NearestSafe(found, references["train"]) for split, found in references.items()}

    def _embed(self, module: Any, batch: Batch) -> torch.Tensor:
        """Returns what the towers make of texts and pictures, see `TwoTowers.forward`."""
        with self._autocast():
            return module(self._put(batch.tokens), self._put(batch.pixels), batch.wanted)

    def _put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor on the worker's device, without waiting for the device to be done with what it has."""
        if self.device.startswith("cuda") and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _ready(self, batch: Batch) -> Batch:
        """Returns a batch in the form that costs least to put on the device and to embed."""
        tokens, pixels = batch.tokens, batch.pixels
        if is_causal(clip_of(self.student)) and not self.objective.uses_states:
            tokens = trim_tokens(tokens)
        return Batch(tokens, pixels.pin_memory() if self.device.startswith("cuda") else pixels)

    def _autocast(self) -> torch.autocast:
        lower = self.train.dtype == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=lower)

    def _whole(
        self,
        split: str,
        gathered: torch.Tensor,
        rows: np.ndarray,
        kept: np.ndarray,
        taught: dict[str, torch.Tensor] | None = None,
    ) -> Embeddings:
        """Returns what the objective sees.

        Args:
            split: of the quadruplets.
            gathered: what the workers' towers made (workers, N, 2, …), of each its safe, unsafe and kept items.
            rows: numbers of the quadruplets, in the order of workers.
            kept: numbers of the safe pairs.
            taught: what `_teach` returned.
        """
        own = len(rows) // self.workers
        sides = {"safe": gathered[:, :own], "unsafe": gathered[:, own : 2 * own], "kept": gathered[:, 2 * own :]}
        width = gathered.shape[-1] - self.objective.uses_states
        found = {
            f"{side}_{kind}": part.flatten(0, 1)[:, place, :width]
            for side, part in sides.items()
            for place, kind in enumerate(("text", "image"))
        }
        if self.objective.uses_states:
            found |= {f"{side}_drift": part.flatten(0, 1)[:, 0, width] for side, part in sides.items()}
        found |= self.rows[split].references(rows) | self.rows[split].labels(rows)
        if len(kept):
            for name, value in self.rows[KEPT].references(kept).items():
                found[name.replace("safe", "kept")] = value
        else:
            found |= {f"kept_{kind}_ref": found[f"kept_{kind}"].detach() for kind in ("text", "image")}
        found |= taught or {}
        # Losses of validation are compared between epochs, so an objective that changes on the way does not there.
        steps = max(1, self.train.epochs * self.batches)
        done = self.progress.epoch * self.batches + self.progress.step if split == "train" else steps
        return Embeddings(
            **{name: self._put(value) for name, value in found.items()},
            progress=min(1.0, done / steps),
            nearest=self.nearest[split].of(torch.as_tensor(rows), self.device) if self.nearest else None,
        )

    def _steps(self) -> Iterator[tuple[np.ndarray, np.ndarray, Batch]]:
        """Yields for each step that is left of the epoch its quadruplets, its safe pairs, and the worker's share."""
        progress, rows, kept = self.progress, self.rows["train"], self.rows.get(KEPT)
        batches = epoch_batches(len(rows), self.train.batch, self.plan.seed, progress.epoch)
        count = self.train.preserve.per_step if self.train.preserve else 0
        steps = []
        for number in range(progress.step, len(batches)):
            step = progress.epoch * len(batches) + number
            steps.append((step, batches[number], kept_rows(len(kept) if kept else 0, count, self.plan.seed, step)))

        def load(step: tuple[int, np.ndarray, np.ndarray]) -> Batch:
            number, *numbers = step
            own, pairs = (share_of(each, self.rank, self.workers) for each in numbers)
            parts = [rows.batch(own)]
            if kept and len(pairs):
                parts.append(kept.batch(pairs))
            return self._ready(self._seen(Batch.join(parts), number, own, pairs))

        for (_, quadruplets, pairs), batch in zip(steps, prefetch(load, steps), strict=True):
            yield quadruplets, pairs, batch

    def _seen(self, batch: Batch, step: int, rows: np.ndarray, kept: np.ndarray) -> Batch:
        """Returns a worker's share of a step as it is seen: by views of its pictures, if there are to be views."""
        if (views := self.train.views) is None:
            return batch
        sides = ((rows, "safe"), (rows, "unsafe"), (kept, KEPT))
        chosen = [choose_views(numbers, views, self.plan.seed, step, side) for numbers, side in sides]
        return Batch(batch.tokens, take_views(batch.pixels, np.concatenate(chosen)))

    @torch.no_grad()
    def _with_states(self, batch: Batch, rows: int) -> Batch:
        """Returns a batch with the teacher's states that its texts are held to, if the objective wants them.

        Args:
            batch: safe, unsafe and kept items.
            rows: how many quadruplets are in it.
        """
        if not self.objective.uses_states:
            return batch
        assert self.teacher is not None
        tokens = batch.tokens
        safe = torch.cat([tokens[:rows], tokens[:rows], tokens[2 * rows :]])
        tokens, safe, read = held_tokens(tokens, safe)
        once = self._put(torch.cat([safe[:rows], safe[2 * rows :]]))
        with self._autocast():
            parts = [
                text_states(self.teacher, part).float() for part in once.split(self.train.micro_batch or len(once))
            ]
        states = torch.cat(parts)
        wanted = torch.cat([states[:rows], states]) * self._put(read).unsqueeze(-1)
        return Batch(tokens, batch.pixels, wanted)

    @torch.no_grad()
    def _teach(self, batch: Batch, rows: int) -> dict[str, torch.Tensor]:
        """Returns the teacher's embeddings of the safe pictures as they are seen in this step, where there are views.

        Args:
            batch: the worker's share of the step.
            rows: how many quadruplets are in it.

        Returns:
            Of all workers, `safe_image_ref` (B, d) and `kept_image_ref` (P, d); nothing where pictures are as they
            always are, so that the numbers at hand hold.
        """
        if self.teacher is None or self.train.views is None:
            return {}
        safe = self._put(torch.cat([batch.pixels[:rows], batch.pixels[2 * rows :]]))
        parts = safe.split(self.train.micro_batch or len(safe))
        with self._autocast():
            found = [self.teacher.encode_image(self.encoder.normalize_pixels(part), normalize=True) for part in parts]
        every = all_rows(torch.cat(found).float(), self.rank, self.workers).unflatten(0, (self.workers, len(safe)))
        return {
            "safe_image_ref": every[:, :rows].flatten(0, 1),
            "kept_image_ref": every[:, rows:].flatten(0, 1),
        }

    def run_epoch(self, checkpoint: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
        """Trains until the epoch's end, and returns its record; None where the loss is not a finite number.

        Args:
            checkpoint: called after each `train.checkpoint_steps` steps.
        """
        progress = self.progress
        train_mode(self.parallel)
        clock, said = time.monotonic(), time.monotonic()
        for rows, kept, batch in self._steps():
            waited = time.monotonic() - clock
            losses = self._step(batch, rows, kept)
            if not math.isfinite(losses["total"]):
                return None
            now = time.monotonic()
            losses |= {"seconds": now - clock, "waiting": waited}
            clock = now
            progress.sums = {name: progress.sums.get(name, 0.0) + value for name, value in losses.items()}
            progress.step += 1
            if self.tracker:
                self.tracker.note(progress.epoch * self.batches + progress.step, self._measures(losses))
            if self.rank == 0 and now - said > SAY_EVERY:
                said = now
                print(self._line(losses), flush=True)
            if (every := self.train.checkpoint_steps) and progress.step % every == 0 and progress.step < self.batches:
                checkpoint()
                clock = time.monotonic()
        means = {name: value / self.batches for name, value in progress.sums.items()}
        progress.steps += self.batches
        progress.seconds += progress.sums["seconds"]
        progress.waiting += progress.sums["waiting"]
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        return {"epoch": progress.epoch, **self._measures(means)}

    def _measures(self, sums: dict[str, float]) -> dict[str, Any]:
        """Returns a step's, or a mean step's, numbers as records have them."""
        others = ("gradient_norm", "seconds", "waiting")
        return {
            "loss": {name: value for name, value in sums.items() if name not in others},
            "gradient_norm": sums["gradient_norm"],
            "samples_per_second": self.train.batch / max(sums["seconds"], 1e-9),
            "data_wait": sums["waiting"] / max(sums["seconds"], 1e-9),
        }

    def _line(self, losses: dict[str, float]) -> str:
        place = f"epoch {self.progress.epoch + 1:3d} step {self.progress.step:5d}/{self.batches}"
        return f"{place}  {told(self._measures(losses))}  memory {memory_gib(self.device):.1f} GiB"

    def _step(self, batch: Batch, rows: np.ndarray, kept: np.ndarray) -> dict[str, float]:
        """Takes a step, and returns its losses and its `gradient_norm`."""
        step = self.progress.epoch * self.batches + self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.train.epochs * self.batches, self.train)
        self.optimizer.zero_grad(set_to_none=True)
        batch = self._with_states(batch, len(rows) // self.workers)
        size = self.train.micro_batch or len(batch)
        parts = [batch.part(start, start + size) for start in range(0, len(batch), size)]
        taught = self._teach(batch, len(rows) // self.workers)
        if len(parts) == 1:
            self._seed(step, 0)
            losses = self._backward(self._embed(self.parallel, batch), rows, kept, taught)
        else:
            losses = self._backward_in_parts(parts, step, rows, kept, taught)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.train.max_gradient or math.inf)
        self.optimizer.step()
        numbers = {**losses, "gradient_norm": norm}
        # All at once, at the end: a GPU that is asked for a number runs out of work until it is told what comes next.
        return dict(zip(numbers, torch.stack([value.detach() for value in numbers.values()]).tolist(), strict=True))

    def _seed(self, step: int, part: int) -> None:
        """Dropout is the only chance within a step. Its seed tells workers apart, and survives a resume."""
        torch.manual_seed(row_seed(self.plan.seed, step, part, self.rank, "dropout"))

    def _backward(
        self, own: torch.Tensor, rows: np.ndarray, kept: np.ndarray, taught: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Computes the losses of the whole step and their gradients for the worker's own embeddings (N, 2, d)."""
        gathered = all_rows(own, self.rank, self.workers).unflatten(0, (self.workers, len(own)))
        losses = self.objective.losses(self._whole("train", gathered, rows, kept, taught))
        total = self.objective.total(losses)
        (total * self.workers).backward()  # DDP averages over the workers what is a sum
        return {"total": total, **losses}

    def _backward_in_parts(
        self, parts: list[Batch], step: int, rows: np.ndarray, kept: np.ndarray, taught: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Does the same with the activations of one part at a time (GradCache; Gao et al., 2021).

        All parts are embedded without activations, the loss gives the gradient of each embedding, and each part is
        embedded again to pass it on.
        """
        embedded = []
        with torch.no_grad():
            for number, part in enumerate(parts):
                self._seed(step, number)
                embedded.append(self._embed(self.towers, part))
        own = torch.cat(embedded).requires_grad_()
        losses = self._backward(own, rows, kept, taught)
        assert own.grad is not None
        start = 0
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last or self.workers == 1 else self.parallel.no_sync():  # type: ignore[operator]
                self._seed(step, number)
                self._embed(self.parallel, part).backward(own.grad[start : start + len(part)])
            start += len(part)
        return losses

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Returns the validation split's losses and its sum of recalls, the same on every worker."""
        self.towers.eval()
        rows = self.rows["validation"]
        numbers = np.resize(np.arange(len(rows)), (-(-len(rows) // self.workers)) * self.workers)
        own = share_of(numbers, self.rank, self.workers)
        sides: list[list[torch.Tensor]] = [[], []]
        pieces = np.split(own, range(VALIDATION_BATCH, len(own), VALIDATION_BATCH))
        for batch in prefetch(lambda piece: self._ready(rows.batch(piece)), pieces):
            held = self._with_states(batch, len(batch) // 2)
            for side, part in zip(sides, self._embed(self.towers, held).chunk(2), strict=True):
                side.append(part)
        embedded = torch.cat([*sides[0], *sides[1]])
        gathered = all_rows(embedded, self.rank, self.workers).unflatten(0, (self.workers, len(embedded)))
        none = np.zeros(0, np.int64)
        embeddings = self._whole("validation", gathered, numbers, none).part(0, len(rows))
        return {
            "validation": validation_losses(embeddings, self.objective),
            "recall_sum": recall_sum(embeddings),
        }

    def take_epoch(self, checkpoint: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
        """Trains and validates for an epoch, notes and prints its record, and keeps its weights if they are good.

        Args:
            checkpoint: as for `run_epoch`.
        """
        trained = self.run_epoch(checkpoint)
        if trained is None:
            return None
        own = trained_state(self.student)
        recent = [*self.earlier, own]
        averaged = {name: torch.stack([state[name] for state in recent]).mean(0) for name in own}
        load_trained_state(self.student, averaged)
        record = {**trained, **self.validate()}
        load_trained_state(self.student, own)
        self.earlier = recent[max(0, len(recent) - self.train.average + 1) :]
        best = self.progress.note(record, self.train.select)
        self.kept[record["epoch"]] = averaged
        stay = best_epochs(self.progress.history, self.train.select, self.train.keep_best)
        self.kept = {epoch: self.kept[epoch] for epoch in stay or [0]}
        if self.tracker:
            found = {"validation": record["validation"], "recall_sum": record["recall_sum"]}
            self.tracker.note(self.progress.epoch * self.batches, found)
        if self.rank == 0:
            print(
                f"epoch {record['epoch']:3d}/{self.train.epochs}  {told(record)}  | "
                f"validation {record['validation']['total']:.4f}  recall sum {record['recall_sum']:.3f}"
                f"{'  best' if best else ''}",
                flush=True,
            )
        return record

    def save(self, folder: Path) -> None:
        """Writes a checkpoint."""
        moments = self.optimizer.state_dict()["state"]
        write_checkpoint(
            Checkpoint(self.progress, trained_state(self.student), self.kept, self.earlier, moments), folder
        )

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint."""
        found = read_checkpoint(folder, self.device)
        load_trained_state(self.student, found.trained)
        self.progress, self.kept, self.earlier = found.progress, found.kept, found.earlier
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found.moments})
