"""Where safe captions and pictures come from: the world, JSONL, Parquet, or COCO captions.

The driver reads texts only. A picture is a reference until a worker reads it, so that a source may be larger than
any memory.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from safeclip.artifacts import Folder, refusal
from safeclip.config import Source
from safeclip.errors import UserError
from safeclip.generation.images import MISSING, UNREADABLE, defect, encode_webp
from safeclip.world import scenes
from safeclip.world.scenes import Scene

Reference = dict[
    str, Any
]  # plain data: {"scene": …}, {"file": name}, {"bytes": …} or {"row": number of a Parquet row}
NO_CAPTION = "caption empty"
NO_OBJECT = "line is no JSON object"
_BATCH, _BUFFER = 16, 2**20  # rows, and bytes, of a Parquet file that are read at once


@dataclass(frozen=True)
class Entry:
    """A row of a source, before its picture is read."""

    caption: str
    picture: Reference | None
    reject: str | None = None
    """Why it is no row to work with; its caption is empty then."""


def identity(settings: Source) -> dict[str, Any]:
    """Returns what a manifest says of the source: its name, and the SHA-256 of a file.

    Raises:
        UserError: the file is missing, cannot be read, or is of no kind that can be read.
    """
    if settings.source == "world":
        return {"source": "world"}
    if _kind(settings.source) not in _READERS:
        raise _wrong(settings, f"must be world, or a file that ends in {', '.join(sorted(_READERS))}")
    digest = hashlib.sha256()
    try:
        with fsspec.open(settings.source, "rb") as file:
            while part := file.read(2**22):
                digest.update(part)
    except Exception as error:  # each file system has errors of its own
        raise _wrong(settings, refusal(settings.source, error)) from error
    return {"source": settings.source, "sha256": digest.hexdigest()}


def read_entries(settings: Source, seed: int) -> list[Entry]:
    """Returns the rows of the source, in its order.

    Raises:
        UserError: the source has no rows, lacks a column, or is damaged as a whole.
    """
    if settings.source == "world":
        return _world(settings, seed)
    entries = list(_READERS[_kind(settings.source)](settings))[: settings.count]
    if not entries:
        raise _wrong(settings, "holds no rows")
    return entries


def read_pictures(settings: Source, references: list[Reference | None]) -> list[tuple[bytes | None, str | None]]:
    """Returns for each reference the encoded picture, or None and the reason why there is none."""
    rows = [r["row"] for r in references if r and "row" in r]
    cells = _cells(settings.source, min(rows), max(rows) + 1) if rows else {}
    return [_picture(settings, cells.get(r["row"], r) if r and "row" in r else r) for r in references]


def read_lines(place: str, source: str) -> list[str]:
    """Returns the lines of a text file, wherever it lies; U+2028 and its like end none.

    Args:
        place: of the setting that names the file, for the message.
        source: path or fsspec URL.

    Raises:
        UserError: the file is missing, cannot be read, or is no text in UTF-8.
    """
    try:
        with fsspec.open(source, "rb") as file:
            lines = file.read().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: {source}: is no UTF-8 text") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{place}: {source}: {refusal(source, error)}") from error
    return lines if lines[-1] else lines[:-1]


def _kind(source: str) -> str:
    return "." + source.rsplit(".", 1)[-1].lower()


def _wrong(settings: Source, what: str) -> UserError:
    return UserError(f"{settings.place}.source: {settings.source}: {what}")


def _entry(caption: Any, picture: Reference | None) -> Entry:
    text = " ".join(caption.split()) if isinstance(caption, str) else ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return Entry("", None, "caption is no valid Unicode")
    return Entry(text, picture, None if text else NO_CAPTION)


def _world(settings: Source, seed: int) -> list[Entry]:
    if settings.count is None:
        raise UserError(f"{settings.place}.count: must be given where {settings.place}.source is world")
    found: dict[str, Scene] = {}
    draws = 2 * settings.count
    while len(found) < settings.count:  # the same seed draws the same scenes first, however many
        before = len(found)
        for scene in scenes.sample_scenes(draws, seed, scenes.object_names(safe=True), reserved=False):
            if scene.random("single").random() < settings.single:
                scene = Scene(scene.objects[:1], scene.background, scene.seed)
                if scene.reserved:
                    continue
            found.setdefault(scenes.caption(scene), scene)
        if before and len(found) < 1.01 * before:
            raise UserError(
                f"{settings.place}.count: {settings.count} is more than the world has, about {len(found)} captions"
            )
        draws *= 2
    chosen = list(found.items())[: settings.count]
    return [_entry(text, {"scene": [s.objects, s.background, s.seed]}) for text, s in chosen]


def _json_lines(settings: Source) -> Iterator[Entry]:
    keys: set[str] = set()
    objects = 0
    entries = []
    with fsspec.open(settings.source, "rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                entries.append(Entry("", None, NO_OBJECT))
                continue
            objects += 1
            keys |= value.keys()
            name = value.get("image")
            picture = {"file": name} if isinstance(name, str) and name else None
            entries.append(_entry(value.get("caption"), picture))
    if objects:
        _need_columns(settings, keys)
    return iter(entries)


def _need_columns(settings: Source, columns: set[str]) -> None:
    for name in ("caption", "image"):
        if name not in columns:
            raise _wrong(settings, f"has no {name!r}; it has {', '.join(sorted(columns)) or 'nothing'}")


def _parquet(settings: Source) -> Iterator[Entry]:
    try:
        with fsspec.open(settings.source, "rb") as file:
            parquet = pq.ParquetFile(file)
            _need_columns(settings, set(parquet.schema_arrow.names))
            captions = parquet.read(columns=["caption"])["caption"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _wrong(settings, "is no Parquet file, or a damaged one") from error
    return (_entry(caption, {"row": number}) for number, caption in enumerate(captions))


def _cells(source: str, first: int, end: int) -> dict[int, Reference | None]:
    """The picture cells of rows first to end of a Parquet file, by row: bytes, or the name of a file.

    Those from the first one on that cannot be read are left out.
    """
    cells: dict[int, Reference | None] = {}
    # Each file system has errors of its own, besides Arrow's.
    with contextlib.suppress(Exception), fsspec.open(source, "rb") as file:
        # A row group may hold all pictures of a file, and without a buffer all of it would be read at once.
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        start = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if start + rows <= first:
                start += rows
                continue
            for batch in parquet.iter_batches(_BATCH, [group], ["image"]):
                low, high = max(first, start), min(end, start + len(batch))
                column = batch.column("image").slice(low - start, max(0, high - low))
                cells.update(zip(range(low, high), map(_cell, column.to_pylist()), strict=True))
                start += len(batch)
                if start >= end:
                    return cells
    return cells


def _cell(value: Any) -> Reference | None:
    if isinstance(value, dict):  # as the library datasets writes pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return {"bytes": value}
    return {"file": value} if isinstance(value, str) and value else None


def _coco(settings: Source) -> Iterator[Entry]:
    try:
        with fsspec.open(settings.source, "rb") as file:
            tree = json.load(file)
        images = {image["id"]: image["file_name"] for image in tree["images"]}
        first: dict[Any, str] = {}
        for annotation in tree["annotations"]:
            first.setdefault(annotation["image_id"], annotation["caption"])
    except (ValueError, RecursionError) as error:
        raise _wrong(settings, "is no valid JSON") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _wrong(
            settings, f"is no COCO captions file: {error!r} where images and annotations are read"
        ) from error
    if not first:
        raise _wrong(settings, "has no annotations")
    for key in [*images, *(k for k in first if k not in images)]:
        yield _entry(first.get(key), {"file": images[key]} if images.get(key) else None)


def _picture(settings: Source, reference: Reference | None) -> tuple[bytes | None, str | None]:
    if reference is None:
        return None, MISSING
    if "row" in reference:
        return None, UNREADABLE
    if "scene" in reference:
        objects, background, seed = reference["scene"]
        return encode_webp(scenes.render(Scene(tuple(objects), background, seed))), None
    data = reference.get("bytes")
    if data is None:
        try:
            data = _file(settings, reference["file"])
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None, MISSING
        except Exception:  # each file system has errors of its own
            return None, UNREADABLE
    reason = defect(data)
    return (None, reason) if reason else (data, None)


def _file(settings: Source, name: str) -> bytes:
    if name.startswith("/"):
        return fsspec.filesystem("file").cat_file(name)
    folder = settings.images or (settings.source.rsplit("/", 1)[0] or "/" if "/" in settings.source else ".")
    return Folder(folder).read(name)


_READERS = {".jsonl": _json_lines, ".parquet": _parquet, ".json": _coco}
