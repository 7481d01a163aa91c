"""Data sets for zero-shot classification: the world's single objects, folders of classes, and Parquet files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from safeclip.artifacts import Folder
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import Embedded, Unit
from safeclip.evaluation.zero_shot import Template
from safeclip.generation.images import encode_webp

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
WORLD_COUNT = 294  # pictures of each variant at most, three an object
_UNIT_PICTURES, _UNIT_TEXTS = 256, 2048


@dataclass(frozen=True)
class ZeroShotSet:
    """Pictures, the class of each, and how classes are described."""

    name: str
    classes: list[str]
    labels: np.ndarray
    """int (n,), numbers of classes."""
    pictures: list[Unit]
    """Whose rows are the pictures, in the order of the labels."""
    places: list[str]
    """Where each picture lies, for messages."""
    templates: Sequence[Template]
    notes: list[str] = field(default_factory=list)
    """What is odd about the set, a sentence each."""

    def texts(self) -> list[Unit]:
        """Returns the units of the descriptions, class by class."""
        texts = [template(name) for name in self.classes for template in self.templates]
        parts = [texts[start : start + _UNIT_TEXTS] for start in range(0, len(texts), _UNIT_TEXTS)]
        return [Unit(texts=tuple(part), columns=("text",)) for part in parts]

    def stamps(self) -> list[str | None]:
        """Returns what changes with each file of pictures, as the folder that it lies in lists it."""
        paths = [f"{unit.folder}/{name}" for unit in self.pictures for name in unit.names or (unit.file,)]
        files = [path.rpartition("/") for path in paths]
        listed = {folder: Folder(folder).stamps() for folder in {folder for folder, _, _ in files}}
        return [listed[folder].get(name) for folder, _, name in files]

    def join(self, pictures: list[Embedded], texts: list[Embedded], label: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns an encoder's embeddings of all pictures and of all descriptions, from those of the units."""
        images = np.concatenate([part.embeddings[label]["image"] for part in pictures])
        return images, np.concatenate([part.embeddings[label]["text"] for part in texts])


def world_sets(count: int, seed: int, folder: Folder) -> list[ZeroShotSet]:
    """Renders single objects of the world: upright, rotated, recoloured and on new backgrounds.

    Args:
        count: pictures of each at most; no more than three an object are drawn.
        seed: of the pictures.
        folder: where they are written.
    """
    from safeclip.world.classes import VARIANTS, descriptions, pictures_of_one

    folder.make()
    sets = []
    for variant in VARIANTS:
        pictures, labels, names = pictures_of_one(min(count, WORLD_COUNT), seed, variant)
        folder.write_table(f"{variant}.parquet", pa.table({"image": [encode_webp(pixels) for pixels in pictures]}))
        unit = Unit(folder=folder.everywhere().url, file=f"{variant}.parquet", columns=("image",))
        places = [f"picture {n}" for n in range(len(labels))]
        sets.append(ZeroShotSet(f"world_{variant}", names, labels, [unit], places, descriptions()))
    return sets


def open_sets(paths: dict[str, str]) -> tuple[list[ZeroShotSet], dict[str, str]]:
    """Opens the user's data sets.

    Args:
        paths: by name, what `open_set` takes.

    Returns:
        Those that can be had, and for each other one, as `zero_shot.<name>`, why it cannot.
    """
    opened, missing = [], {}
    for name, path in paths.items():
        try:
            opened.append(open_set(name, path))
        except UserError as error:
            missing[f"zero_shot.{name}"] = str(error)
    return opened, missing


def open_set(name: str, path: str) -> ZeroShotSet:
    """Opens a data set of the user's, which is described by the templates of open_clip for ImageNet.

    Args:
        name: what the report calls it.
        path: a folder of one folder of pictures for each class, whose name is the class's with spaces or underscores;
            or a Parquet file, or a folder of some, with the columns `image` (bytes) and `label` (names of classes, or
            numbers where the file's metadata names them as those of Hugging Face's data sets do).

    Raises:
        UserError: there is nothing of the kind.
    """
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    folder, file = Folder(path), ""
    if path.endswith(".parquet"):
        parent, _, file = path.rpartition("/")
        folder = Folder(parent or ".")
    if not folder.exists(file):
        raise UserError(f"evaluate.zero_shot.{name}: {path} does not exist")
    files = [file] if file else folder.files(".parquet")
    opened = _open_parquet(name, folder, files) if files else _open_folders(name, folder)
    classes, labels, pictures, places, notes = opened
    templates: Sequence[Callable[[str], str]] = OPENAI_IMAGENET_TEMPLATES
    return ZeroShotSet(name, classes, labels, pictures, places, templates, notes)


_Opened = tuple[list[str], np.ndarray, list[Unit], list[str], list[str]]


def _open_folders(name: str, folder: Folder) -> _Opened:
    found = folder.folders() if folder.fs.isdir(folder.path()) else []
    pictures = {c: [f for f in (folder / c).files() if f.lower().endswith(PICTURE_SUFFIXES)] for c in found}
    if not any(pictures.values()):
        raise UserError(
            f"evaluate.zero_shot.{name}: {folder.url} holds neither folders of pictures, one for each class, nor "
            "Parquet files"
        )
    places = [f"{c}/{file}" for c, files in pictures.items() for file in files]
    labels = np.repeat(np.arange(len(found)), [len(files) for files in pictures.values()])
    units = [
        Unit(
            folder=folder.everywhere().url,
            names=tuple(places[i : i + _UNIT_PICTURES]),
            columns=("image",),
            tolerant=True,
        )
        for i in range(0, len(places), _UNIT_PICTURES)
    ]
    notes = [
        f"zero-shot {name}: the class {c!r} has no pictures; it stays among the answers"
        for c, files in pictures.items()
        if not files
    ]
    return [c.replace("_", " ") for c in found], labels, units, places, notes


def _open_parquet(name: str, folder: Folder, files: list[str]) -> _Opened:
    labels: list[str] = []
    places: list[str] = []
    names: list[str] | None = None
    for file in files:
        try:
            source = pq.ParquetFile(pa.BufferReader(folder.read(file)))
        except pa.ArrowException as error:
            raise UserError(f"evaluate.zero_shot.{name}: {folder.url}/{file} is no Parquet file") from error
        columns = source.schema_arrow.names
        for column in ("image", "label"):
            if column not in columns:
                there = ", ".join(columns)
                raise UserError(f"evaluate.zero_shot.{name}: {file} has no column {column!r}; it has {there}")
        values = source.read(["label"])["label"].to_pylist()
        names = names or _class_names(source.schema_arrow)
        for row, value in enumerate(values):
            if isinstance(value, int) and names and 0 <= value < len(names):
                labels.append(names[value])
            elif isinstance(value, str):
                labels.append(value)
            else:
                raise UserError(
                    f"evaluate.zero_shot.{name}: {file}, row {row}: the label {value!r} names no class; give names, "
                    "or numbers with the classes' names in the file's metadata, as Hugging Face's data sets have them"
                )
            places.append(f"{file}, row {row}")
    if not labels:
        raise UserError(f"evaluate.zero_shot.{name}: {folder.url} holds no rows")
    classes = names or sorted(set(labels))
    numbers = {c: k for k, c in enumerate(classes)}
    units = [Unit(folder=folder.everywhere().url, file=file, columns=("image",), tolerant=True) for file in files]
    empty = [c for c in classes if c not in set(labels)]
    notes = [f"zero-shot {name}: the class {c!r} has no pictures; it stays among the answers" for c in empty]
    spoken = [c.replace("_", " ") for c in classes]
    return spoken, np.array([numbers[label] for label in labels]), units, places, notes


def _class_names(schema: pa.Schema) -> list[str] | None:
    """Returns the names that the metadata of Hugging Face's data sets gives a label's numbers."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(n) for n in names]
