"""One worker's share of a training: steps, validation, what a checkpoint holds."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safeclip.artifacts import Folder
from safeclip.config import Train
from safeclip.encoder.checkpoint import Checkpoint, State, read_checkpoint, write_checkpoint
from safeclip.encoder.data import Batch, share_rows
from safeclip.encoder.gradients import backward
from safeclip.encoder.group import Group
from safeclip.encoder.live_teacher import LiveTeacher
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import is_causal, trim_tokens
from safeclip.encoder.nearest import NearestSafe
from safeclip.encoder.objectives import Embeddings, Objective, make_objective
from safeclip.encoder.placement import Placement
from safeclip.encoder.progress import Progress, best_epochs, measures, memory_gib, told
from safeclip.encoder.steps import Step, epoch_steps, load_share, prefetch
from safeclip.encoder.student import (
    clip_of,
    compile_blocks,
    load_trained_state,
    lower_frozen,
    make_student,
    train_mode,
    trained_state,
)
from safeclip.encoder.teacher import DRAWN, PRESERVED, Unit
from safeclip.encoder.towers import TwoTowers, by_name
from safeclip.encoder.tracker import make_tracker
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
        self.group, self.placement = Group(rank, workers), Placement(device, self.train.dtype)
        self.encoder = load_encoder(self.train.base, device)
        self.student = make_student(self.encoder.model, self.train.lora, plan.seed)
        self.objective: Objective = make_objective(self.train.objective, self.train.weights)
        live = self.train.views or self.objective.uses_states
        self.teacher = LiveTeacher(self.encoder, self.placement) if live else None
        self.encoder.model = torch.nn.Identity()  # else the teacher's weights would be held where nobody needs them
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
        parts = {name: (PRESERVED, DRAWN) if name == PRESERVED else (name,) for name in plan.folders if name != DRAWN}
        units = {name: [unit for unit in plan.units if unit.split in splits] for name, splits in parts.items()}
        self.rows = share_rows(plan.folders, plan.teacher, units, plan.key, self.encoder, local_rank, workers)
        self.nearest = self._find_nearest() if self.objective.uses_nearest else {}
        self.progress = Progress(student=plan.student)
        self.best_weights: dict[int, State] = {0: trained_state(self.student)}
        """Of the best epochs, by epoch; of none (0) as long as there is no best one."""
        self.earlier: list[State] = []
        """Weights at the end of the epochs before, as many as are averaged with the present one's."""
        self.tracker = make_tracker(self.train.tracker, plan.logs, plan.key) if rank == 0 and plan.logs else None

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.rows["train"]) // self.train.batch

    @property
    def best(self) -> State:
        """The weights that are exported."""
        return self.best_weights[self.progress.best_epoch]

    def _find_nearest(self) -> dict[str, NearestSafe]:
        references = {s: self.rows[s].references(np.arange(len(self.rows[s]))) for s in ("train", "validation")}
        return {split: NearestSafe(found, references["train"]) for split, found in references.items()}

    def embed(self, module: Any, batch: Batch) -> torch.Tensor:
        """Returns what towers make of texts and pictures, see `TwoTowers.forward`.

        Args:
            module: the towers, or what they are wrapped in.
            batch: N texts and pictures.
        """
        with self.placement.autocast():
            return module(self.placement.put(batch.tokens), self.placement.put(batch.pixels), batch.wanted)

    def _ready(self, batch: Batch) -> Batch:
        """Returns a batch in the form that costs least to put on the device and to embed."""
        tokens = batch.tokens
        if is_causal(clip_of(self.student)) and not self.objective.uses_states:
            tokens = trim_tokens(tokens)
        return Batch(tokens, self.placement.pin(batch.pixels))

    def loaded_steps(self) -> Iterator[tuple[Step, Batch]]:
        """Yields the steps that are left of the epoch, each with the worker's share of it, loaded ahead."""
        preserved = len(self.rows[PRESERVED]) if PRESERVED in self.rows else 0
        steps = epoch_steps(len(self.rows["train"]), preserved, self.train, self.plan.seed, self.progress.epoch)
        left = steps[self.progress.step :]

        def load(step: Step) -> Batch:
            return self._ready(load_share(step, self.rows, self.group, self.train.views, self.plan.seed))

        return zip(left, prefetch(load, left), strict=True)

    def _whole(
        self,
        split: str,
        own: torch.Tensor,
        rows: np.ndarray,
        preserved: np.ndarray,
        taught: torch.Tensor | None = None,
    ) -> Embeddings:
        """Returns what the objective sees: what all workers embedded, by name, and what is known of the rows.

        Args:
            split: of the quadruplets.
            own: what this worker's towers made of its share (N, 2, …): of safe items, unsafe ones, safe pairs.
            rows: numbers of the quadruplets (B,), of all workers.
            preserved: numbers of the safe pairs (P,), of all workers.
            taught: the teacher's embeddings of the share's safe pictures, where those at hand are of other views.
        """
        count = len(rows) // self.group.workers
        found = by_name(self.group.gather(own), count, self.objective.uses_states)
        found |= self.rows[split].references(rows) | self.rows[split].labels(rows)
        if len(preserved):
            for name, value in self.rows[PRESERVED].references(preserved).items():
                found[name.replace("safe", "preserved")] = value
        else:
            found |= {f"preserved_{kind}_ref": found[f"preserved_{kind}"].detach() for kind in ("text", "image")}
        if taught is not None:
            every = self.group.gather(taught)
            found["safe_image_ref"] = every[:, :count].flatten(0, 1)
            found["preserved_image_ref"] = every[:, count:].flatten(0, 1)
        return Embeddings(
            **{name: self.placement.put(value) for name, value in found.items()},
            # Validation is compared between epochs, so an objective that changes on the way does not change there.
            progress=self._share_done() if split == "train" else 1.0,
            nearest=self.nearest[split].of(torch.as_tensor(rows), self.placement.device) if self.nearest else None,
        )

    def _share_done(self) -> float:
        """Returns which share of all steps is done."""
        done = self.progress.epoch * self.steps + self.progress.step
        return min(1.0, done / max(1, self.train.epochs * self.steps))

    def take_step(self, step: Step, batch: Batch) -> dict[str, float]:
        """Takes a step, and returns its losses, `total` among them, and its `gradient_norm`.

        Args:
            step: which rows.
            batch: this worker's share of them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step.number, self.train.epochs * self.steps, self.train)
        self.optimizer.zero_grad(set_to_none=True)
        rows, size, taught = len(step.rows) // self.group.workers, self.train.micro_batch or len(batch), None
        batch = self._held(batch, rows)
        if self.teacher and self.train.views:
            taught = self.teacher.embed_safe_pictures(batch, rows, self.train.micro_batch)

        def losses_of(own: torch.Tensor) -> dict[str, torch.Tensor]:
            losses = self.objective.losses(self._whole("train", own, step.rows, step.preserved, taught))
            return {"total": self.objective.total(losses), **losses}

        def seed(part: int) -> None:
            """Dropout is the only chance within a step. Its seed tells workers apart, and survives a resume."""
            torch.manual_seed(row_seed(self.plan.seed, step.number, part, self.group.rank, "dropout"))

        parts = [batch.part(start, start + size) for start in range(0, len(batch), size)]
        losses = backward(parts, self.embed, self.towers, self.parallel, losses_of, self.group.workers, seed)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.train.max_gradient or math.inf)
        self.optimizer.step()
        numbers = {**losses, "gradient_norm": norm}
        # All at once, at the end: a GPU that is asked for a number runs out of work until it is told what comes next.
        return dict(zip(numbers, torch.stack([value.detach() for value in numbers.values()]).tolist(), strict=True))

    def _held(self, batch: Batch, rows: int) -> Batch:
        """Returns a batch of `rows` quadruplets with the states that its texts are held to, if any are wanted."""
        if not self.objective.uses_states:
            return batch
        assert self.teacher is not None
        return self.teacher.hold_texts(batch, rows, self.train.micro_batch)

    def run_epoch(self, checkpoint: Callable[[], None] = lambda: None) -> dict[str, Any] | None:
        """Trains until the epoch's end, and returns its record; None where the loss is not a finite number.

        Args:
            checkpoint: called after each `train.checkpoint_steps` steps.
        """
        progress = self.progress
        train_mode(self.parallel)
        clock, said = time.monotonic(), time.monotonic()
        for step, batch in self.loaded_steps():
            waited = time.monotonic() - clock
            numbers = self.take_step(step, batch)
            if not math.isfinite(numbers["total"]):
                return None
            now = time.monotonic()
            numbers |= {"seconds": now - clock, "waiting": waited}
            clock = now
            progress.note_step(numbers)
            record = measures(numbers, self.train.batch)
            if self.tracker:
                memory = {"memory_gib": memory_gib(self.placement.device)}
                self.tracker.note(step.number + 1, {**record, **memory})
            if self.group.rank == 0 and now - said > SAY_EVERY:
                said = now
                place = f"epoch {progress.epoch + 1:3d} step {progress.step:5d}/{self.steps}"
                print(f"{place}  {told(record)}  memory {memory_gib(self.placement.device):.1f} GiB", flush=True)
            if (every := self.train.checkpoint_steps) and progress.step % every == 0 and progress.step < self.steps:
                checkpoint()
                clock = time.monotonic()
        means = progress.end_epoch(self.steps)
        return {"epoch": progress.epoch, **measures(means, self.train.batch)}

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Returns the validation split's losses and its sum of recalls, the same on every worker."""
        self.towers.eval()
        rows, workers = self.rows["validation"], self.group.workers
        numbers = np.resize(np.arange(len(rows)), -(-len(rows) // workers) * workers)
        own = self.group.share(numbers)
        sides: list[list[torch.Tensor]] = [[], []]
        pieces = np.split(own, range(VALIDATION_BATCH, len(own), VALIDATION_BATCH))
        for batch in prefetch(lambda piece: self._ready(rows.batch(piece)), pieces):
            held = self._held(batch, len(batch) // 2)
            for side, part in zip(sides, self.embed(self.towers, held).chunk(2), strict=True):
                side.append(part)
        embedded = torch.cat([*sides[0], *sides[1]])
        embeddings = self._whole("validation", embedded, numbers, np.zeros(0, np.int64)).part(0, len(rows))
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
        is_best = self.progress.note(record, self.train.select)
        self.best_weights[record["epoch"]] = averaged
        stay = best_epochs(self.progress.history, self.train.select, self.train.keep_best)
        self.best_weights = {epoch: self.best_weights[epoch] for epoch in stay or [0]}
        if self.tracker:
            found = {"validation": record["validation"], "recall_sum": record["recall_sum"]}
            self.tracker.note(self.progress.epoch * self.steps, found)
        if self.group.rank == 0:
            print(
                f"epoch {record['epoch']:3d}/{self.train.epochs}  {told(record)}  | "
                f"validation {record['validation']['total']:.4f}  recall sum {record['recall_sum']:.3f}"
                f"{'  best' if is_best else ''}",
                flush=True,
            )
        return record

    def save(self, folder: Path) -> None:
        """Writes a checkpoint."""
        moments, own = self.optimizer.state_dict()["state"], trained_state(self.student)
        write_checkpoint(Checkpoint(self.progress, own, self.best_weights, self.earlier, moments), folder)

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint."""
        found = read_checkpoint(folder, self.placement.device)
        load_trained_state(self.student, found.trained)
        self.progress, self.best_weights, self.earlier = found.progress, found.best_weights, found.earlier
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found.moments})
