"""Joins the stages' rows into quadruplets, split by id into train, validation and test, with their datasheet."""

import hashlib
from typing import Any

import pyarrow as pa

from safeclip.artifacts import Folder, Stage, check_run, hash_of, read_manifest
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.generation.datasheet import datasheet
from safeclip.records import QUADRUPLET, SPLITS, row_share

STAGES = ("captions", "unsafe_captions", "unsafe_images")
REPEATED = "picture of an earlier row"


def split_of(row_id: str, seed: int, validation: float, test: float) -> str:
    """Returns the split of a row: a function of its id and the run's seed, whatever other rows there are."""
    share = row_share(seed, row_id, "split")
    return "test" if share < test else "validation" if share < test + validation else "train"


def join_rows(captions: pa.Table, unsafe_captions: pa.Table, unsafe_images: pa.Table) -> list[dict[str, Any]]:
    """Returns the quadruplets of one unit, without their split, in the order of the captions.

    Args:
        captions: rows of CAPTION.
        unsafe_captions: rows of UNSAFE_CAPTION.
        unsafe_images: rows of UNSAFE_IMAGE; only rows that are accepted here become quadruplets.
    """
    # A rejected duplicate has the id of the row that was accepted.
    safe, texts, images = (
        {r["id"]: r for r in table.to_pylist() if r["reject"] is None}
        for table in (captions, unsafe_captions, unsafe_images)
    )
    columns = [name for name in QUADRUPLET.names if name != "split"]
    joined = ({**safe[key], **texts[key], **images[key]} for key in safe if key in images)
    return [{name: row[name] for name in columns} for row in joined]


def split_rows(
    rows: list[dict[str, Any]], splits: dict[bytes, str], seed: int, validation: float, test: float
) -> list[dict[str, Any]]:
    """Returns rows with their splits: of several with the same safe picture, all go where the first one went.

    A picture must not be in two splits, and would be in its own way in retrieval: of the rows of a picture that only
    measure, the first one is kept.

    Args:
        rows: of one unit, as `join_rows` gives them.
        splits: of the pictures of earlier rows, by their hash; those of these rows are added.
        seed: of the run.
        validation: share of ids.
        test: share of ids.
    """
    kept = []
    for row in rows:
        picture = hashlib.sha256(row["safe_image"]).digest()
        is_first = picture not in splits
        split = splits.setdefault(picture, split_of(row["id"], seed, validation, test))
        if is_first or split == "train":
            kept.append({**row, "split": split})
    return kept


def _row_hash(row: dict[str, Any]) -> str:
    return hash_of({k: hashlib.sha256(v).hexdigest() if isinstance(v, bytes) else v for k, v in row.items()})


def make_quadruplets(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage: `quadruplets/<split>/*.parquet` with rows of QUADRUPLET, and `datasheet.md`.

    Returns:
        The stage's manifest.

    Raises:
        UserError: an earlier stage is not complete, or a split would be empty.
    """
    manifests = {}
    for name in STAGES:
        found = read_manifest(run / name)
        if found is None:
            raise UserError(f"{run.url}: {name} is not complete; run jobs.generate from the start")
        manifests[name] = found
    shares = [config.captions.validation, config.captions.test]
    folder = run / "quadruplets"
    stage = Stage(folder, hash_of(shares, config.seed, [manifests[name]["content_hash"] for name in STAGES]))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    folder.remove()  # cheap to make, so nothing of an earlier or cut-off attempt is kept
    began = stage.begin(private=True)
    counts = dict.fromkeys(SPLITS, 0)
    hashes: list[str] = []
    splits: dict[bytes, str] = {}
    repeated = 0
    for split in SPLITS:
        (folder / split).make()
    files = [[u["name"] for u in manifests[name]["units"]] for name in STAGES]
    for index, names in enumerate(zip(*files, strict=True)):
        tables = [(run / stage_name).read_table(file) for stage_name, file in zip(STAGES, names, strict=True)]
        joined = join_rows(*tables)
        rows = split_rows(joined, splits, config.seed, *shares)
        repeated += len(joined) - len(rows)
        hashes += map(_row_hash, rows)
        for split in SPLITS:
            kept = [r for r in rows if r["split"] == split]
            counts[split] += len(kept)
            if kept:
                (folder / split).write_table(f"{index:05d}.parquet", pa.Table.from_pylist(kept, QUADRUPLET))
    if empty := [split for split in SPLITS if not counts[split]]:
        raise UserError(f"quadruplets: no row for the {empty[0]} split of {sum(counts.values())}; give more captions")
    rejected = {
        f"{name}: {reason}": count for name in STAGES for reason, count in manifests[name]["rejected"].items()
    }
    if repeated:
        rejected[f"quadruplets: {REPEATED}"] = repeated
    data = {
        "captions": manifests["captions"]["rows"],
        "accepted": sum(counts.values()),
        "rejected": rejected,
        "quadruplets": counts,
    }
    folder.write("datasheet.md", datasheet(config, manifests, data).encode())
    # Sorted, so that the hash says which quadruplets there are, not how they were cut into units.
    content = {"rows": sum(counts.values()), "content_hash": hash_of(sorted(hashes)), "data": data}
    return stage.finish(began, content)


def purge(run: Folder) -> list[str]:
    """Deletes a run's unsafe pictures: the folders that hold them, and with them what was joined from them.

    An evaluation draws some, too.

    Returns:
        The names of the folders removed.

    Raises:
        UserError: there is no such run.
    """
    check_run(run)
    removed = [name for name in ("unsafe_images", "quadruplets", "answers") if (run / name).exists()]
    for name in removed:
        (run / name).remove()
    return removed
