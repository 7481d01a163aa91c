"""Rows for training, and the tokens, pixels and numbers of some of them.

The rows of a split lie in one memory-mapped Arrow file a machine, and their resized pictures in another file, so
their number is not bound by memory. They are numbered in the order of their ids, whatever files they came in.
"""

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from safeclip.artifacts import Folder, hash_of
from safeclip.encoder.model import Encoder, decode_image
from safeclip.encoder.pixels import PixelStore
from safeclip.encoder.teacher import Unit, sides_of, usable
from safeclip.errors import UserError

UNSAFE_FROM = 0.5  # a judge's score from which an item is labelled unsafe


@dataclass(frozen=True)
class Batch:
    """Texts and pictures that pass through the towers: tokens (N, L) and uint8 pixels (N, 3, H, W)."""

    tokens: torch.Tensor
    pixels: torch.Tensor
    wanted: torch.Tensor | None = None
    """(N, L, w): the states that the texts are held to, 0 where a text has none; None if to none at all."""

    def __len__(self) -> int:
        """Returns N."""
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "Batch":
        """Returns some of them."""
        rows = slice(start, stop)
        return Batch(self.tokens[rows], self.pixels[rows], None if self.wanted is None else self.wanted[rows])

    @staticmethod
    def join(batches: list["Batch"]) -> "Batch":
        """Returns several as one."""
        return Batch(torch.cat([b.tokens for b in batches]), torch.cat([b.pixels for b in batches]))


class Rows:
    """The rows of a split, with the teacher's embeddings; of safe pairs, the safe side only."""

    def __init__(self, table: pa.Table, encoder: Encoder, resized: PixelStore | None = None) -> None:
        """Takes rows in.

        Args:
            table: the rows, in any order.
            encoder: whose tokens and whose size of pictures they are wanted in.
            resized: keeps resized pictures; without one they are decoded and resized each time.
        """
        self.table, self.encoder, self.resized = table, encoder, resized
        self.order = np.argsort(table["id"].to_numpy(), kind="stable") if len(table) else np.zeros(0, np.int64)
        self.parts = table.to_batches()
        self.starts = np.cumsum([0, *map(len, self.parts)])[:-1]
        self.sides = sides_of(table)

    def __len__(self) -> int:
        """Returns how many rows there are."""
        return self.table.num_rows

    def batch(self, rows: np.ndarray) -> Batch:
        """Returns tokens and pixels of rows, those of the safe side first.

        Raises:
            UserError: a picture does not decode.
        """
        taken = self._take([f"{side}_caption" for side in self.sides], rows)
        texts = [text for column in taken.columns for text in column.to_pylist()]
        pixels = np.empty((len(self.sides), len(rows), *self.encoder.picture_shape), np.uint8)
        for side, part in enumerate(pixels):
            self._fill(side, rows, part)
        return Batch(self.encoder.tokenizer(texts), torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:])))

    def _fill(self, side: int, rows: np.ndarray, pixels: np.ndarray) -> None:
        """Fills pixels (B, 3, H, W) with the resized pictures of a side of rows."""
        store, name = self.resized, f"{self.sides[side]}_image"
        numbers = self.order[rows] * len(self.sides) + side
        missing = [i for i, number in enumerate(numbers) if not (store and store.read(number, pixels[i]))]
        if not missing:
            return
        taken = self._take(["id", name], rows[missing]).to_pylist()

        def resize(i: int, row: dict[str, Any]) -> None:
            pixels[i] = self.encoder.resize_image(decode_image(row[name], f"row {row['id']}: {name}"))
            if store:
                store.write(numbers[i], pixels[i])

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(resize, missing, taken))

    def references(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns the teacher's embeddings of rows, each (B, d): `safe_text_ref`, `safe_image_ref` and so on."""
        names = [f"{side}_{kind}_ref" for side in self.sides for kind in ("text", "image")]
        taken = self._take(names, rows)
        return {
            name: torch.tensor(taken[name].combine_chunks().flatten().to_numpy()).view(len(rows), -1)
            for name in names
        }

    def labels(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """Returns whether the judges gave unsafe texts and pictures a score of UNSAFE_FROM or more, each (B,)."""
        taken = self._take(["text_score", "image_score"], rows)
        return {
            f"{kind}_unsafe": torch.tensor(
                [s is None or s >= UNSAFE_FROM for s in taken[f"{kind}_score"].to_pylist()]
            )
            for kind in ("text", "image")
        }

    def _take(self, columns: list[str], rows: np.ndarray) -> pa.Table:
        """Returns some rows, from each part of the table its own; Arrow would first join all parts into one."""
        numbers = self.order[rows]
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        taken = [
            self.parts[place].select(columns).take(pa.array(numbers[places == place] - self.starts[place]))
            for place in np.unique(places)
        ]
        joined = pa.Table.from_batches(taken, self.table.select(columns).schema)
        return joined.take(pa.array(np.argsort(np.argsort(places, kind="stable"))))


def share_rows(
    folders: dict[str, Folder],
    teacher: Folder,
    units: dict[str, list[Unit]],
    key: str,
    encoder: Encoder,
    local_rank: int,
    workers: int,
) -> dict[str, Rows]:
    """Returns rows that the workers of a machine share; the first of them writes what all map.

    All workers of the process group call it together. The files are gone when it returns or fails, and what they hold
    lives as long as a worker has them open: unsafe pictures stay nowhere but in the run. Those of a worker that was
    killed meanwhile go when the machine's next training begins.

    Args:
        folders: where the rows of each of the units' splits lie.
        teacher: where the teacher's embeddings lie.
        units: whose rows are wanted, under the name they are returned by.
        key: of the training, no other's with these embeddings.
        encoder: as `Rows` has it.
        local_rank: of this worker, among those of the machine.
        workers: how many there are in the process group.

    Raises:
        UserError: the embeddings are of other rows.
    """
    place, machine = _cache_folder(), hash_of(socket.gethostname())
    training = hash_of(key, teacher.url)
    tables = {name: place / f"{machine}-{training}-{name}.arrow" for name in units}
    pixels = {name: path.with_suffix(".pixels") for name, path in tables.items()}
    is_first = local_rank == 0
    with _removed(place, machine, [*tables.values(), *pixels.values()]) if is_first else contextlib.nullcontext():
        if is_first:
            for name, path in tables.items():
                _write_rows(folders, teacher, units[name], path)
        if workers > 1:
            dist.barrier()
        rows = {}
        for name, path in tables.items():
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            rows[name] = Rows(table, encoder, PixelStore(pixels[name], encoder.picture_shape))
        if workers > 1:
            dist.barrier()
    return rows


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"safeclip-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def _removed(folder: Path, machine: str, paths: list[Path]) -> Iterator[None]:
    """Removes files of a training before and after; before, those too that killed trainings of the machine left.

    A lock, which goes with the process however that ends, is shared by all trainings whose files are there.
    """
    with open(folder / f"{machine}.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = list(folder.glob(f"{machine}-*"))
        except OSError:  # another's files are there, or the file system has no locks
            left = paths
        for path in left:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            for path in paths:
                path.unlink(missing_ok=True)


def _write_rows(folders: dict[str, Folder], teacher: Folder, units: list[Unit], path: Path) -> None:
    """Writes the rows of some units, with the teacher's embeddings, as one Arrow file.

    Raises:
        UserError: the embeddings are of other rows.
    """
    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for unit in units:
            rows = usable(folders[unit.split].read_table(unit.source))
            refs = teacher.read_table(unit.target)
            if not rows["id"].equals(refs["id"]):
                raise UserError(f"{teacher.url}/{unit.target}: not of these rows; remove {teacher.url}")
            for column in refs.column_names[1:]:
                rows = rows.append_column(column, refs[column])
            writer = writer or pa.ipc.new_file(sink, rows.schema)
            writer.write_table(rows)
        if writer:
            writer.close()
