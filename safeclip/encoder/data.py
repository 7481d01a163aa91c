"""Quadruplets for training: which rows make which batch, and their tokens and pixels.

The rows of a split lie in one memory-mapped Arrow file a machine, so their number is not bound by memory. They are
numbered in the order of their ids, whatever files they came in. A batch is a function of seed, epoch and step alone;
workers share it in equal slices, so the order of rows does not depend on how many workers there are.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from safeclip.artifacts import Folder
from safeclip.encoder.model import Encoder, decode_image
from safeclip.encoder.teacher import Unit
from safeclip.errors import UserError

COLUMNS = ("id", "safe_caption", "safe_image", "unsafe_caption", "unsafe_image")
Item = TypeVar("Item")
Result = TypeVar("Result")


def epoch_batches(rows: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the row numbers (steps, batch) of an epoch's batches; the rows left over wait for another epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    steps = rows // batch
    return order[: steps * batch].reshape(steps, batch)


def share_of(batch: np.ndarray, rank: int, workers: int) -> np.ndarray:
    """Returns a worker's part of a batch: the parts of all workers, in the order of ranks, are the batch."""
    return np.split(batch, workers)[rank]


@dataclass(frozen=True)
class Batch:
    """A worker's rows: tokens (2B, L) and uint8 pixels (2B, 3, H, W), the safe ones first, then the unsafe ones."""

    tokens: torch.Tensor
    pixels: torch.Tensor


class Quadruplets:
    """The rows of a split, with the teacher's embeddings of their safe side."""

    def __init__(self, table: pa.Table, encoder: Encoder) -> None:
        self.table, self.encoder = table, encoder
        self.order = np.argsort(table["id"].to_numpy())

    def __len__(self) -> int:
        """Returns how many rows there are."""
        return self.table.num_rows

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns tokens and pixels of rows.

        Raises:
            UserError: a picture does not decode.
        """
        taken = self._take(COLUMNS, rows)
        texts = taken["safe_caption"].to_pylist() + taken["unsafe_caption"].to_pylist()
        images = [
            decode_image(data, f"row {key}: {column}")
            for column in ("safe_image", "unsafe_image")
            for key, data in zip(taken["id"].to_pylist(), taken[column].to_pylist(), strict=True)
        ]
        pixels = np.stack([self.encoder.resize_image(image) for image in images])
        return Batch(self.encoder.tokenizer(texts), torch.from_numpy(pixels))

    def references(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the teacher's embeddings of rows: texts (B, d) and pictures (B, d)."""
        taken = self._take(("safe_text_ref", "safe_image_ref"), rows)
        text, image = (column.combine_chunks().flatten().to_numpy() for column in taken.columns)
        return torch.tensor(text).view(len(rows), -1), torch.tensor(image).view(len(rows), -1)

    def _take(self, columns: tuple[str, ...], rows: np.ndarray) -> pa.Table:
        return self.table.select(list(columns)).take(pa.array(self.order[rows]))


def cache_path(key: str, split: str) -> Path:
    """Returns where a machine keeps the rows of a split while it trains: readable by their owner alone."""
    folder = Path(tempfile.gettempdir()) / f"safeclip-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{key}-{split}.arrow"


def write_rows(quadruplets: Folder, teacher: Folder, units: list[Unit], path: Path) -> None:
    """Writes the rows of some units, with the teacher's embeddings, as one Arrow file; a file that is there stays.

    Raises:
        UserError: the embeddings are of other rows.
    """
    if path.is_file():
        return
    part = path.with_suffix(f".{os.getpid()}")
    writer = None
    with pa.OSFile(str(part), "wb") as sink:
        for unit in units:
            rows = (quadruplets / unit.split).read_table(unit.source).select(list(COLUMNS))
            refs = teacher.read_table(unit.target)
            if not rows["id"].equals(refs["id"]):
                raise UserError(f"{teacher.url}/{unit.target}: not of these quadruplets; remove {teacher.url}")
            for column in refs.column_names[1:]:
                rows = rows.append_column(column, refs[column])
            writer = writer or pa.ipc.new_file(sink, rows.schema)
            writer.write_table(rows)
        if writer:
            writer.close()
    os.replace(part, path)


def map_rows(path: Path) -> pa.Table:
    """Returns the rows of an Arrow file, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def prefetch(function: Callable[[Item], Result], items: Iterable[Item], threads: int = 1) -> Iterator[Result]:
    """Yields `function(item)` in order, computed ahead on threads while the caller is busy."""
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[Result]] = [pool.submit(function, item) for item in islice(source, threads + 1)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(source, 1)]
            yield result
