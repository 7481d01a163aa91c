"""The same comparison on a GPU: ViT-L/14, batches of several sizes, and how near to its matrix products a step comes.

The arithmetic of a step is counted by hand, see `arithmetic`: what the mathematics of a step needs, whatever the
program does. It is set beside the rate at which this GPU multiplies large bfloat16 matrices.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from safeclip.artifacts import Folder
from safeclip.benchmarks.side_by_side import compared
from safeclip.benchmarks.train import (
    DROPOUT,
    TOKENS,
    Reference,
    leave_rows,
    plan_training,
    random_encoder,
    write_quadruplets,
)
from safeclip.config import Lora
from safeclip.encoder.progress import Progress
from safeclip.encoder.student import compile_blocks
from safeclip.encoder.worker import Worker
from safeclip.errors import UserError

ARCHITECTURE = "ViT-L-14"
REFERENCE_BATCH = 16
BATCHES = (32, 64)
COMPILED = (64, 96, 128, 192)
LARGE, MICRO = 2048, 128  # a step for its memory, and the texts and pictures of it that pass through a tower at once
DISTINCT = 64  # quadruplets; the rest are copies
STEPS = 12


class GpuTraining:
    """The reference's recipe and ours on one GPU, each measured for as long as it is asked."""

    def __init__(self, folder: Path, device: str, architecture: str = ARCHITECTURE, rows: int = LARGE) -> None:
        """Makes an encoder of random weights and writes quadruplets.

        Args:
            folder: where they go.
            device: the GPU.
            architecture: of the encoder, by open_clip's name.
            rows: quadruplets, the largest batch at least.
        """
        self.folder, self.device, self.rows = folder, device, rows
        self.encoder = random_encoder(folder / "base", architecture, device)
        counts = {"train": rows, "validation": 2}
        write_quadruplets(Folder(str(folder)), self.encoder, counts, DISTINCT)
        self.worker: Worker | None = None

    def reference(self) -> Callable[[], float]:
        """Returns what takes two steps of the reference's recipe, and returns samples a second."""
        recipe = Reference(self.encoder, self.folder, 2 * REFERENCE_BATCH, self.device)
        return lambda: recipe.epoch(REFERENCE_BATCH)

    def ours(self, batch: int, steps: int = STEPS, micro_batch: int | None = None) -> dict[str, Any]:
        """Trains an epoch of a few steps as a training does, its loading of data included, and returns its record.

        Raises:
            torch.OutOfMemoryError: they do not fit into the GPU's memory; others can be tried afterwards.
        """
        if self.worker is None:
            self.encoder.model = torch.nn.Identity()  # the worker has its own
            self.worker = Worker(plan_training(self.folder, "bfloat16", "gpu"), device=self.device)
            self.every = self.worker.rows["train"]
            self.every.batch(np.arange(len(self.every)))  # in a training the first epoch resizes the pictures
        worker = self.worker
        steps = min(steps, self.rows // batch)
        worker.train = worker.train.model_copy(update={"batch": batch, "micro_batch": micro_batch})
        worker.progress = Progress()  # of an epoch that memory cut off, nothing is to go on with
        worker.rows["train"] = self.every
        leave_rows(worker, steps * batch)
        record = worker.run_epoch()
        assert record is not None
        return record

    def compile(self) -> None:
        """Goes on as `train.compile` does."""
        assert self.worker is not None
        compile_blocks(self.worker.towers)

    def arithmetic(self) -> dict[str, float]:
        """Returns the operations of a sample, see the function."""
        return arithmetic(self.encoder.config["model_cfg"], TOKENS[1], Lora().rank)


def compare_training_on_gpu(
    repeats: int,
    device: str = "cuda",
    architecture: str = ARCHITECTURE,
    batches: tuple[int, ...] = BATCHES,
    compiled: tuple[int, ...] = COMPILED,
    large: tuple[int, int] = (LARGE, MICRO),
    matrix: int = 8192,
) -> dict[str, Any]:
    """Measures the reference's recipe, then ours at several batches, then ours with `train.compile` at several.

    Args:
        repeats: epochs of a few steps that each is measured for, after one that is not counted.
        device: the GPU.
        architecture: of the encoder, by open_clip's name.
        batches: quadruplets a step.
        compiled: the same, with `train.compile`.
        large: the batch and the micro-batch of the step whose memory is measured.
        matrix: width of the matrices that are multiplied for comparison.

    Returns:
        The layout of every benchmark, for `reference_recipe`, `ours_<batch>` and `ours_compiled_<batch>`, as far as
        they fit into the GPU's memory; the fastest of ours is `ours`, too. `matrix_share` is the share of the rate of
        matrix products that its arithmetic comes to, `memory_gib` the most memory allocated in its steps, and
        `memory_gib_<batch>` that of a large batch.

    Raises:
        UserError: none of the batches fits.
    """
    with tempfile.TemporaryDirectory(prefix="safeclip-benchmark-") as name:
        rate = matrix_rate(device, matrix)
        training = GpuTraining(Path(name), device, architecture, max(large[0], *batches, *compiled))
        recipe = training.reference()
        recipe()
        each = {"reference_recipe": [recipe() for _ in range(repeats)]}
        del recipe
        gc.collect()
        waits, memory = {}, {}

        def measure(label: str, batch: int) -> None:
            forget_peak(device)
            try:
                training.ours(batch, steps=2)
                records = [training.ours(batch) for _ in range(repeats)]
            except torch.OutOfMemoryError:
                print(f"{label}: does not fit into {device}'s memory, left out", flush=True)
                return
            each[label] = [record["samples_per_second"] for record in records]
            waits[label] = statistics.median(record["data_wait"] for record in records)
            memory[label] = peak_gib(device)

        for batch in batches:
            measure(f"ours_{batch}", batch)
        if compiled:
            training.compile()
        for batch in compiled:
            measure(f"ours_compiled_{batch}", batch)
        if not waits:
            raise UserError(
                f"{architecture}: no batch of {min((*batches, *compiled))} or more fits into {device}'s memory"
            )
        best = max(waits, key=lambda label: statistics.median(each[label]))
        large_gib = _memory_of(lambda: training.ours(large[0], 1, large[1]), device)
        count = training.arithmetic()
        speed = statistics.median(each[best]) * sum(count.values()) / 1e12
        figures = {
            "matrix_tflops": round(rate / 1e12, 4),
            "model_tflops": round(speed, 4),
            "matrix_share": round(speed * 1e12 / rate, 4),
            "data_wait": round(waits[best], 4),
            "batch": int(best.rpartition("_")[2]),
            "memory_gib": memory[best],
        }
        if large_gib is not None:
            figures[f"memory_gib_{large[0]}"] = large_gib
        measured = compared({**each, "ours": each[best]}, "samples/s", [("ours", "reference_recipe")], figures)
    return {
        **measured,
        "compared": {
            "architecture": architecture,
            "tokens": TOKENS,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "ours": best,
            "recipe_dropout": DROPOUT,
            "micro_batch": large[1],
        },
        "arithmetic": {
            "gflop_per_sample": {part: round(value / 1e9, 4) for part, value in count.items()},
            "total": round(sum(count.values()) / 1e9, 4),
        },
    }


def _memory_of(work: Callable[[], object], device: str) -> float | None:
    """Returns the most memory that was allocated for work, GiB, None where there is not so much."""
    forget_peak(device)
    try:
        work()
    except torch.OutOfMemoryError:
        return None
    return peak_gib(device)


def arithmetic(config: dict[str, Any], tokens: int, rank: int) -> dict[str, float]:
    """Counts a step's operations for a sample, which is two pictures and two texts; a multiply-add is two of them.

    Forward, every product of both towers. Backward, the gradients of what goes into frozen weights, and of the
    adapters; nothing of frozen weights themselves. Adapters are merged into the weights, which takes as long for one
    sample as for many and is not counted. Neither the scores of attention that are computed again in the backward
    pass, nor activations, norms, the optimizer and the loss are counted. The first block of the text tower has
    nothing to train before it, so no gradient leaves it.

    Args:
        config: open_clip's `model_cfg`, of a CLIP with a ViT and a causal text tower.
        tokens: length of the texts.
        rank: of the adapters.
    """
    image, text, width = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    patches = (image["image_size"] // image["patch_size"]) ** 2
    pixels = 3 * image["patch_size"] ** 2
    w = image["width"]
    parts = {
        "patch embedding": 2 * patches * pixels * w,
        "patch embedding, adapter": 4 * patches * rank * (pixels + w),
    }
    for name, tower, length in (("image", image, patches + 1), ("text", text, tokens)):
        w, layers = tower["width"], tower["layers"]
        hidden = int(w * tower.get("mlp_ratio", 4.0))
        first = 0 if name == "image" else 1  # blocks whose input needs no gradient
        weights = 4 * w * w + 2 * w * hidden
        adapters = 2 * (4 * w + hidden)  # inputs and outputs of key, value, output and both layers of the MLP
        parts |= {
            f"{name}: layers, forward": 2 * length * weights * layers,
            f"{name}: layers, backward": 2 * length * (weights * layers - 3 * w * w * first),
            f"{name}: attention, forward": 4 * length**2 * w * layers,
            f"{name}: attention, backward": 8 * length**2 * w * layers - 2 * length**2 * w * first,
            f"{name}: adapters": 4 * length * rank * adapters * layers,
            f"{name}: projection": 4 * w * width,
        }
    return {part: 2.0 * value for part, value in parts.items()}


def matrix_rate(device: str, width: int = 8192) -> float:
    """Returns the operations a second of a product of two bfloat16 matrices (width, width), the median.

    They are repeated for two seconds, as long as a few steps take, for the clock to be that of a GPU at work.
    """
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b})
    return 2 * width**3 / timer.blocked_autorange(min_run_time=2).median


def forget_peak(device: str) -> None:
    """Gives memory that nothing uses back, and begins to watch for its peak."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: str) -> float:
    """Returns the most memory that was allocated on a GPU since `forget_peak`, GiB; 0 of a CPU."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.startswith("cuda") else 0.0
