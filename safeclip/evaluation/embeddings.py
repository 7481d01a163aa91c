"""Embeddings by any number of encoders, computed by Ray Data actors and kept by what they were made from.

The actors write to a cache: one Parquet file for each unit of rows and encoder, named by the hashes of both. Whoever
asks for the same again, another report or a call that was cut off, finds it there. The cache may be deleted at any
time.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from safeclip.actors import map_rows
from safeclip.artifacts import Folder, for_each, table_hash
from safeclip.config import Evaluate
from safeclip.device import reserved_device
from safeclip.encoder.load import load_from
from safeclip.encoder.model import Encoder, decode_image
from safeclip.errors import UserError
from safeclip.evaluation.encoders import Source, identify
from safeclip.evaluation.retrieval import Embeddings
from safeclip.evaluation.sets import EvaluationSet

SIDES = {
    "safe_text": "safe_caption",
    "safe_image": "safe_image",
    "unsafe_text": "unsafe_caption",
    "unsafe_image": "unsafe_image",
}


@dataclass(frozen=True)
class Unit:
    """Rows that an actor embeds at once: of a Parquet file, of picture files, or texts as they are."""

    folder: str = ""
    """URL of the folder that the files lie in."""
    file: str = ""
    """A Parquet file."""
    names: tuple[str, ...] = ()
    """Picture files; their column is `image`."""
    texts: tuple[str, ...] = ()
    """Texts; their column is `text`."""
    columns: tuple[str, ...] = ()
    """What to embed: texts, or pictures where the name ends in `image`."""
    carried: tuple[str, ...] = ()
    """Columns of the Parquet file that come back as they are."""
    tolerant: bool = False
    """Whether a picture that does not decode gets an embedding that is no number, or ends the work."""

    def read(self) -> pa.Table:
        """Returns the rows, with the columns that are embedded or carried."""
        if self.texts:
            return pa.table({"text": list(self.texts)})
        folder = Folder(self.folder)
        if self.names:
            return pa.table({"image": for_each(folder.read, self.names)})
        return folder.read_table(self.file).select([*self.columns, *self.carried])


@dataclass(frozen=True)
class Embedded:
    """A unit's embeddings, and what it carried."""

    embeddings: dict[str, dict[str, np.ndarray]]
    """For each encoder, by its label, (n, d) of each column; float32 of unit length."""
    carried: dict[str, list[Any]]


@dataclass(frozen=True)
class EmbeddedSet:
    """A set's rows, sorted by id, and their embeddings."""

    ids: list[str]
    files: list[str]
    """The file that each row lies in."""
    concepts: list[str]
    embeddings: dict[str, Embeddings]
    """For each encoder, by its label."""


def embed_units(
    units: list[Unit],
    encoders: dict[str, Source],
    settings: Evaluate,
    cache: Folder,
    identities: dict[str, str] | None = None,
) -> list[Embedded]:
    """Embeds units with all encoders, as far as the cache does not hold them.

    Needs a Ray that is connected. Every unit is read and decoded by one actor that holds all encoders.

    Args:
        units: what to embed.
        encoders: by label, what `load_from` takes.
        settings: rows at once, and what the actors reserve.
        cache: where embeddings are kept.
        identities: of the encoders, as `identify` tells them; found out unless given.

    Returns:
        For each unit, in their order, its embeddings.

    Raises:
        UserError: an encoder cannot be loaded, or a picture of a unit that is not tolerant does not decode.
    """
    identities = identities or identify(encoders)
    cache = cache.everywhere()
    cache.make()
    different = list(dict.fromkeys(units))
    rows = [{"unit": json.dumps(asdict(unit))} for unit in different]
    # The actors read for themselves: reading tasks would each start a process that takes half a GiB.
    work = map_rows(rows, Embedder, (encoders, identities, settings.batch, cache), settings.resources)
    done = {row["unit"]: row for row in work.iter_rows()}
    made = sum(row["made"] for row in done.values())
    print(f"embeddings: {len(different) * len(encoders)} units, {made} of them now, the others from {cache.name}/")
    found = {}
    for unit, row in zip(different, rows, strict=True):
        answer = done[row["unit"]]
        names = {label: cache_name(identities[label], answer["rows"]) for label in encoders}
        kept = {label: read_cached(cache, name) for label, name in names.items()}
        if any(value is None for value in kept.values()):
            raise UserError(f"{cache.url}: files vanished while they were read; run it again")
        found[unit] = Embedded({k: v for k, v in kept.items() if v is not None}, json.loads(answer["carried"]))
    return [found[unit] for unit in units]


class Embedder:
    """A Ray Data actor that embeds units; it loads an encoder when the cache lacks something of it."""

    def __init__(self, encoders: dict[str, Source], identities: dict[str, str], batch: int, cache: Folder) -> None:
        self.device = reserved_device()
        self.encoders, self.identities, self.batch, self.cache = encoders, identities, batch, cache
        self.loaded: dict[str, Encoder] = {}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Returns the unit, the hash of its rows, what it carries, and how many embeddings of it were not there."""
        unit = Unit(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(row["unit"]).items()})
        table = unit.read()
        rows, made = table_hash(table.select(unit.columns)), 0
        for label in self.encoders:
            name = cache_name(self.identities[label], rows)
            if read_cached(self.cache, name) is None:
                write_cached(self.cache, name, self._embed(label, table, unit))
                made += 1
        carried = {column: table[column].to_pylist() for column in unit.carried}
        return {"unit": row["unit"], "rows": rows, "carried": json.dumps(carried), "made": made}

    def _embed(self, label: str, table: pa.Table, unit: Unit) -> dict[str, np.ndarray]:
        if label not in self.loaded:
            self.loaded[label] = load_from(self.encoders[label], self.device)
        encoder, found = self.loaded[label], {}
        for column in unit.columns:
            values = table[column].to_pylist()
            # One part at least: a file without rows has embeddings, too, none of the encoder's width.
            parts = [values[start : start + self.batch] for start in range(0, max(1, len(values)), self.batch)]
            if not column.endswith("image"):
                encoded = [encoder.encode_texts(part) for part in parts]
            elif unit.tolerant:
                encoded = [encode_tolerantly(encoder, part) for part in parts]
            else:
                encoded = [encoder.encode_images(part) for part in parts]
            found[column] = np.concatenate(encoded)
        return found


def encode_tolerantly(encoder: Encoder, images: list[Any]) -> np.ndarray:
    """Returns embeddings (n, d) of encoded pictures, not-a-number where one does not decode.

    Args:
        encoder: whose image tower embeds them.
        images: bytes, or `{"bytes": …}` as Hugging Face's data sets have them.
    """
    found = np.full((len(images), encoder.width), np.nan, np.float32)
    pixels, places = [], []
    for place, image in enumerate(images):
        data = image.get("bytes") if isinstance(image, dict) else image
        with contextlib.suppress(UserError):
            pixels.append(encoder.resize_image(decode_image(data or b"")))
            places.append(place)
    if places:
        found[places] = encoder.encode_pixels(np.stack(pixels))
    return found


def cache_name(identity: str, rows: str) -> str:
    """Returns the name of the file that holds the embeddings of some rows by an encoder."""
    return f"{identity}-{rows}.parquet"


def read_cached(cache: Folder, name: str) -> dict[str, np.ndarray] | None:
    """Returns the embeddings of each column, None where the file is not there or is damaged."""
    try:
        table = cache.read_table(name)
    except (OSError, pa.ArrowException):
        return None
    found = {}
    for column in table.column_names:
        values = table[column].combine_chunks()
        found[column] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(table), values.type.list_size)
    return found


def write_cached(cache: Folder, name: str, embeddings: dict[str, np.ndarray]) -> None:
    """Writes the embeddings of each column (n, d), whole or not at all."""
    columns = {
        column: pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
        for column, values in embeddings.items()
    }
    cache.write_table(name, pa.table(columns))


def units_of(source: EvaluationSet) -> list[Unit]:
    """Returns the units of a set of quadruplets, one a file.

    Raises:
        UserError: the set is empty.
    """
    if not source.files:
        raise UserError(f"{source.folder.url}: holds no quadruplets")
    folder = source.folder.everywhere().url
    columns, carried = tuple(SIDES.values()), ("id", "concept")
    return [Unit(folder=folder, file=file, columns=columns, carried=carried) for file in source.files]


def join_set(source: EvaluationSet, parts: list[Embedded]) -> EmbeddedSet:
    """Returns a set's rows together, sorted by id.

    Args:
        source: the set.
        parts: of its units, in their order.

    Raises:
        UserError: the set is empty.
    """
    ids = [value for part in parts for value in part.carried["id"]]
    if not ids:
        raise UserError(f"{source.folder.url}: holds no quadruplets")
    order = np.argsort(np.array(ids), kind="stable")
    concepts = [value for part in parts for value in part.carried["concept"]]
    files = [file for file, part in zip(source.files, parts, strict=True) for _ in part.carried["id"]]
    embeddings = {
        label: Embeddings(
            *(np.concatenate([p.embeddings[label][column] for p in parts])[order] for column in SIDES.values())
        )
        for label in parts[0].embeddings
    }
    ids, files, concepts = ([values[i] for i in order] for values in (ids, files, concepts))
    return EmbeddedSet(ids, files, concepts, embeddings)


def embed_groups(
    groups: Sequence[list[Unit]],
    encoders: dict[str, Source],
    settings: Evaluate,
    cache: Folder,
    identities: dict[str, str] | None = None,
) -> list[list[Embedded]]:
    """Embeds groups of units in one pass, so that actors start once; the rest is as for `embed_units`."""
    units = [unit for group in groups for unit in group]
    found = iter(embed_units(units, encoders, settings, cache, identities))
    return [[next(found) for _ in group] for group in groups]


def embed_sets(
    sets: list[EvaluationSet],
    encoders: dict[str, Source],
    settings: Evaluate,
    cache: Folder,
    identities: dict[str, str] | None = None,
) -> dict[str, EmbeddedSet]:
    """Embeds sets of quadruplets with all encoders in one pass over the rows.

    Args:
        sets: what to embed.
        encoders: by label, what `load_from` takes.
        settings: as for `embed_units`.
        cache: where embeddings are kept.
        identities: as for `embed_units`.

    Returns:
        For each set, by its name, its rows.

    Raises:
        UserError: as `embed_units` does, or a set is empty.
    """
    found = embed_groups([units_of(s) for s in sets], encoders, settings, cache, identities)
    return {s.name: join_set(s, part) for s, part in zip(sets, found, strict=True)}
