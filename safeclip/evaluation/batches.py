"""Work that each of several encoders does in batches: shared out to Ray Data actors, kept, gathered in order.

Each answer is kept in a Parquet file that is named by what the answer was made from. Whoever asks for the same again,
a call that was cut off or a report with other intervals, finds it there. The files may be deleted at any time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from safeclip.actors import map_rows
from safeclip.artifacts import Folder
from safeclip.config import Resources


@dataclass(frozen=True)
class Missing:
    """Why a batch could not be worked on."""

    reason: str


def answer_batches(
    actor: type, arguments: tuple, names: dict[str, list[str]], resources: Resources, what: str, cache: Folder
) -> dict[str, list[dict[str, Any]]]:
    """Has actors answer every batch with each encoder, as far as no answer is kept.

    Needs a Ray that is connected.

    Args:
        actor: called with `{encoder, batch, name}`; returns these, `whole`, and the answer. An answer with `whole`
            false (something was missing) is not kept.
        arguments: of its constructor.
        names: for each encoder, by its label, a hash for each batch of all that its answer depends on.
        resources: that the actors reserve.
        what: is being done, for messages.
        cache: where answers are kept.

    Returns:
        For each encoder, by its label, the rows in the order of the batches.
    """
    from tqdm import tqdm

    cache.make(private=True)
    asked = {
        name: {"encoder": label, "batch": index, "name": name}
        for label, own in names.items()
        for index, name in enumerate(own)
    }
    found = {name: row for name in asked if (row := _read(cache, name)) is not None}
    work = [row for name, row in asked.items() if name not in found]
    print(f"{what}: {len(asked)} batches, {len(work)} of them now, the others from {cache.name}/")
    for answer in tqdm(_answer(actor, arguments, work, resources), total=len(work), desc=what, unit="batch"):
        row = answer.to_pylist()[0]
        found[row["name"]] = row
        if row["whole"]:
            cache.write_table(f"{row['name']}.parquet", answer)
    return {label: [found[name] for name in own] for label, own in names.items()}


def _answer(actor: type, arguments: tuple, work: list[dict[str, Any]], resources: Resources) -> Iterator[pa.Table]:
    """Yields answers, each a table of one row, as soon as they are there."""
    if work:
        answered = map_rows(work, actor, arguments, resources)
        yield from answered.iter_batches(batch_size=1, batch_format="pyarrow")


def _read(cache: Folder, name: str) -> dict[str, Any] | None:
    """Returns an answer, None where the file is not there or is damaged."""
    try:
        return cache.read_table(f"{name}.parquet").to_pylist()[0]
    except (OSError, pa.ArrowException):
        return None
