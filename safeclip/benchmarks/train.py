"""A step of fine-tuning beside the recipe of Safe-CLIP's released code, on an encoder of full size.

Both train ViT-B/32 with random weights on the same rows: batch 16, captions of 12 to 24 tokens, pictures of noise.
The reference's recipe: Hugging Face's CLIPModel with peft's LoRA on the paper's layers, float32, texts padded to 77
tokens, the safe side, the unsafe side and the teacher in passes of their own, six a step. It is written here from
that description, less the code's bugs (the teacher is a model of its own, with its dropout off) and less its loading
of data. Ours is the worker that a training runs, its loading included, with adapters without dropout; a candidate
with the recipe's dropout is beside it.
"""

import copy
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from safeclip.artifacts import Folder
from safeclip.benchmarks.side_by_side import compared
from safeclip.config import Lora, Train
from safeclip.encoder.data import Rows
from safeclip.encoder.export import save_open_clip, to_huggingface
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder
from safeclip.encoder.objectives import Embeddings
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.teacher import SPLITS, embed_rows, plan_units
from safeclip.encoder.worker import Plan, Worker
from safeclip.records import QUADRUPLET

ARCHITECTURE = "ViT-B-32"
BATCH = 16
ROWS = {"train": 64, "validation": 2}
DROPOUT = 0.1  # of the recipe's adapters
TURNS = 20  # of one worker and two, a step each, for each repeat; a core of a shared machine is slow for seconds
TOKENS = (12, 24)  # of a caption, start and end among them
WORDS = ("dog", "cat", "tree", "car", "house", "book", "red", "blue", "big", "old", "on", "with", "near", "and")
_TARGETS = ["k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"]


def compare_training(repeats: int, architecture: str = ARCHITECTURE) -> dict[str, Any]:
    """Measures the reference's recipe and ours in turn, on one core, then ours by one worker and two, a core each.

    Args:
        repeats: epochs of four steps that each is measured for, after one that is not counted; one worker and two
            take turns of a step, `TURNS` for each repeat.
        architecture: of the encoder, by open_clip's name.

    Returns:
        The layout of every benchmark, for `reference_recipe`, `ours_float32` and `ours_bfloat16`, the faster of which
        is also called `ours`, for `ours_bfloat16_dropout`, and for `one_worker` and `two_workers`, processes that
        train as `ours` does, each bound to a core; `data_wait` is the share of time that ours waits for data.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="safeclip-benchmark-") as name:
        place = Path(name)
        encoder = random_encoder(place / "base", architecture)
        write_quadruplets(Folder(name), encoder, ROWS)
        reference = Reference(encoder, place, ROWS["train"])
        plans = {
            "ours_float32": plan_training(place, "float32", "one"),
            "ours_bfloat16": plan_training(place, "bfloat16", "one"),
            "ours_bfloat16_dropout": plan_training(place, "bfloat16", "one", DROPOUT),
        }
        ours = {label: Worker(plan) for label, plan in plans.items()}
        each: dict[str, list[float]] = {label: [] for label in ("reference_recipe", *ours)}
        waits = []
        for repeat in range(repeats + 1):
            measured = {"reference_recipe": reference.epoch(BATCH)}
            for label, worker in ours.items():
                record = worker.run_epoch()
                assert record is not None
                measured[label] = record["samples_per_second"]
                waits.append(record["data_wait"])
            if repeat:  # the first one warms up
                for label, value in measured.items():
                    each[label].append(value)
        fastest = max(("float32", "bfloat16"), key=lambda dtype: statistics.median(each[f"ours_{dtype}"]))
        del reference, ours
        each |= _speed_of_workers(place, fastest, TURNS * repeats)
    measured = compared(
        {**each, "ours": each[f"ours_{fastest}"]},
        "samples/s",
        [
            ("ours", "reference_recipe"),
            ("ours_float32", "reference_recipe"),
            ("ours_bfloat16_dropout", "reference_recipe"),
            ("two_workers", "one_worker"),
        ],
        {"data_wait": round(statistics.median(waits), 4), "batch": BATCH, "threads": 1},
    )
    return {
        **measured,
        "compared": {
            "architecture": architecture,
            "tokens": TOKENS,
            "device": "cpu",
            "ours": fastest,
            "recipe_dropout": DROPOUT,
        },
    }


def random_encoder(folder: Path, architecture: str, device: str = "cpu") -> Encoder:
    """Writes an encoder of random weights, and returns it.

    Args:
        folder: where it goes.
        architecture: by open_clip's name.
        device: where it is put.
    """
    torch.manual_seed(0)
    with torch.device(device):  # large weights are drawn much faster on a GPU
        model = open_clip.create_model(architecture, pretrained=None, device=device)
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": model.visual.preprocess_cfg}
    save_open_clip(model, json.loads(json.dumps(config)), folder)
    return load_encoder(str(folder), device)


def write_quadruplets(place: Folder, encoder: Encoder, rows: dict[str, int], distinct: int | None = None) -> None:
    """Writes quadruplets and the teacher's embeddings, as a run holds them.

    Args:
        place: the run.
        encoder: the teacher.
        rows: how many, by split.
        distinct: how many of a split differ, the rest being copies; all unless given.
    """
    random = np.random.default_rng(0)

    def caption() -> str:
        return " ".join(random.choice(WORDS, random.integers(TOKENS[0] - 2, TOKENS[1] - 1)))

    def picture() -> bytes:
        sink = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (224, 224, 3), np.uint8)).save(sink, "JPEG", quality=80)
        return sink.getvalue()

    for split, total in rows.items():
        count = min(total, distinct or total)
        sides = {f"{side}_{k}": [make() for _ in range(count)] for side in ("safe", "unsafe") for k, make in
                 (("caption", caption), ("image", picture))}  # fmt: skip
        others = {"concept": ["weapons"] * count, "text_score": [1.0] * count, "image_score": [1.0] * count}
        columns = {"id": [""] * count, "split": [split] * count, **others, **sides}
        table = pa.table({field.name: pa.array(columns[field.name], field.type) for field in QUADRUPLET})
        ids = pa.array([f"{split}-{n:04d}" for n in range(total)])

        def repeat(few: pa.Table, count: int = count, ids: pa.Array = ids) -> pa.Table:
            return few.take(np.arange(len(ids)) % count).set_column(0, "id", ids)

        (place / split).make()
        (place / split).write_table("rows.parquet", repeat(table))
        (place / "teacher").make()
        for unit in plan_units({split: place / split}):
            (place / "teacher").write_table(unit.target, repeat(embed_rows(encoder, table, split)))


def plan_training(place: Path, dtype: str, key: str, dropout: float = 0.0) -> Plan:
    """Returns what a worker is told to train on what `write_quadruplets` wrote.

    Args:
        place: where that and the base encoder lie.
        dtype: of `train`.
        key: tells trainings apart.
        dropout: of the adapters.
    """
    folder = Folder(str(place))
    folders = {split: folder / split for split in SPLITS}
    train = Train(
        base=str(place / "base"), objective="safe-clip", epochs=1000, batch=BATCH, learning_rate=1e-4, dtype=dtype,
        tracker=None, lora=Lora(dropout=dropout),
    )  # fmt: skip
    return Plan(train, 0, f"benchmark-{time.time_ns()}-{key}", folders, folder / "teacher", plan_units(folders))


def leave_rows(worker: Worker, count: int) -> None:
    """Leaves a worker the first of its rows for training, so that an epoch is as many steps as they give.

    Args:
        worker: whose rows to take away.
        count: how many are left.
    """
    every = worker.rows["train"]
    worker.rows["train"] = Rows(every.table.slice(0, count), every.encoder, every.resized)


class Reference:
    """The reference's recipe, with its rows in memory."""

    def __init__(self, encoder: Encoder, place: Path, rows: int, device: str = "cpu") -> None:
        """Makes teacher and student and reads rows.

        Args:
            encoder: that they start from.
            place: where `write_quadruplets` wrote.
            rows: how many are taken.
            device: where all of it is put.
        """
        self.device = device
        with torch.device(device):
            self.teacher = to_huggingface(encoder.model).to(device).requires_grad_(False)
        lora = LoraConfig(r=16, lora_alpha=1, lora_dropout=DROPOUT, target_modules=_TARGETS, bias="none")
        self.student = get_peft_model(copy.deepcopy(self.teacher), lora).train()
        self.optimizer = torch.optim.Adam([p for p in self.student.parameters() if p.requires_grad], lr=1e-4)
        table = Folder(str(place / "train")).read_table("rows.parquet").slice(0, rows)
        self.tokens, self.pixels = {}, {}
        for side in ("safe", "unsafe"):
            self.tokens[side] = encoder.tokenizer(table[f"{side}_caption"].to_pylist())
            images = [Image.open(io.BytesIO(data)) for data in table[f"{side}_image"].to_pylist()]
            pixels = torch.from_numpy(np.stack([encoder.resize_image(image) for image in images]))
            self.pixels[side] = encoder.normalize_pixels(pixels)

    def epoch(self, batch: int) -> float:
        """Takes an epoch's steps, and returns samples a second."""
        began = time.monotonic()
        total = len(self.tokens["safe"])
        for start in range(0, total, batch):
            loss = self._step(slice(start, start + batch))
        loss.item()  # a GPU is done only then
        return total / (time.monotonic() - began)

    def _step(self, rows: slice) -> torch.Tensor:
        found = {}
        tokens = {side: every[rows].to(self.device) for side, every in self.tokens.items()}
        pixels = {side: every[rows].to(self.device) for side, every in self.pixels.items()}
        for side in ("safe", "unsafe"):
            found[f"{side}_text"] = _text(self.student, tokens[side])
            found[f"{side}_image"] = _image(self.student, pixels[side])
        with torch.no_grad():
            text = _text(self.teacher, tokens["safe"])
            image = _image(self.teacher, pixels["safe"])
        none, labels = text[:0], torch.ones(len(text), dtype=torch.bool, device=self.device)
        batch = Embeddings(
            **found, safe_text_ref=text, safe_image_ref=image, unsafe_text_ref=text, unsafe_image_ref=image,
            preserved_text=none, preserved_image=none, preserved_text_ref=none, preserved_image_ref=none,
            text_unsafe=labels, image_unsafe=labels,
        )  # fmt: skip
        objective = SafeClip()
        self.optimizer.zero_grad()
        total = objective.total(objective.losses(batch))
        total.backward()
        self.optimizer.step()
        return total.detach()


def _text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(model.get_text_features(tokens).pooler_output, dim=-1)


def _image(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)


def _speed_of_workers(place: Path, dtype: str, turns: int) -> dict[str, list[float]]:
    """Returns the samples a second of one worker and of two, step by step in turn."""
    plans = [plan_training(place, dtype, f"by-{count}") for count in (1, 2)]
    with tempfile.TemporaryDirectory(dir=place) as meeting:
        torch.multiprocessing.spawn(_one_of, (plans, turns, meeting), nprocs=2)
        return json.loads(Path(meeting, "speed.json").read_text())


def _one_of(rank: int, plans: list[Plan], turns: int, meeting: str) -> None:
    """Trains as one of two workers, on a core of its own; the first of them also alone, while the other waits."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}/meet", rank=rank, world_size=2)
    alone = Worker(plans[0]) if rank == 0 else None
    together = Worker(plans[1], rank, rank, 2, wrap=torch.nn.parallel.DistributedDataParallel)
    speeds: dict[str, list[float]] = {"one_worker": [], "two_workers": []}
    for turn in range(turns + 1):
        for name, worker in zip(speeds, (alone, together), strict=True):
            torch.distributed.barrier()
            if worker is None:
                continue
            leave_rows(worker, BATCH)
            record = worker.run_epoch()
            if record and turn:  # the first one warms up
                speeds[name].append(record["samples_per_second"])
    if rank == 0:
        Path(meeting, "speed.json").write_text(json.dumps(speeds))
    torch.distributed.destroy_process_group()
