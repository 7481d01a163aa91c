"""The first stage: safe captions and pictures, each given a concept and read by the guard before any generator."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder, Stage, hash_of
from safeclip.config import Config, Source
from safeclip.generation.images import MISSING, UNDECODABLE, UNREADABLE
from safeclip.generation.rejects import check_rejects
from safeclip.generation.sources import Entry, identity, read_entries, read_pictures
from safeclip.generation.units import remove_others, statistics_of, summary_of, write_unit
from safeclip.records import CAPTION, row_id, row_seed

NAME = "captions"
DUPLICATE = "duplicate"


def concept_for(caption: str, concepts: list[str], seed: int) -> str:
    """Returns the concept that a caption is given: a hash of caption and seed chooses it.

    Args:
        caption: the safe caption.
        concepts: to choose from; one that is there twice is chosen twice as often.
        seed: of the run.
    """
    return concepts[row_seed("concept", seed, caption) % len(concepts)]


def make_captions(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage. Units of work that are there already are not made again, unless pictures were amiss in them.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the source is missing, empty or damaged as a whole, or too many rows were rejected.
    """
    return collect(config, config.captions, run / NAME, config.seed)


def collect(config: Config, settings: Source, folder: Folder, seed: int) -> dict[str, Any]:
    """Runs the stage for any source of captions and pictures.

    Args:
        config: which concepts there are, and how many rows may be rejected.
        settings: the source.
        folder: where the rows of CAPTION go; its name is the stage's.
        seed: of the world's draw, and of each caption's concept.

    Returns:
        The stage's manifest.

    Raises:
        UserError: as for `make_captions`.
    """
    name, limit = folder.name, config.generate.max_reject_fraction
    source = identity(settings)
    made_from = [source.get("sha256", "world"), settings.images, settings.single, config.generate.draws(), seed]
    stage = Stage(folder, hash_of(*made_from, settings.count, settings.unit_rows, limit))
    if (manifest := stage.manifest()) and _is_done(manifest):
        print(f"{name}: complete, skipped")
        return manifest
    began = stage.begin()
    rows = _rows(read_entries(settings, seed), config.generate.draws(), seed)
    units = _run_units(_units(rows, settings.unit_rows, made_from), settings, stage.folder)
    remove_others(stage.folder, units)
    summary = summary_of(units)
    check_rejects(name, summary["rows"], Counter(summary["rejected"]), limit)
    acknowledged = config.generate.acknowledge_explicit
    return stage.finish(began, {**summary, "sources": source, "acknowledge_explicit": acknowledged})


def _rows(entries: list[Entry], concepts: list[str], seed: int) -> list[dict[str, Any]]:
    """The rows without their pictures; what the guard drops has neither text nor reference to a picture."""
    rows, seen = [], set()
    for number, entry in enumerate(entries):
        words = entry.caption or f"row {number}"
        concept = concept_for(words, concepts, seed)
        row = {**asdict(entry), "id": row_id(words, concept), "concept": concept}
        if entry.reject is None:
            if reason := guard.check(entry.caption, concept):
                row |= {"caption": "", "reject": reason}
            elif entry.caption in seen:
                row["reject"] = DUPLICATE
            seen.add(entry.caption)
        if row["reject"] is not None:
            row["picture"] = None
        rows.append(row)
    return rows


def _units(rows: list[dict[str, Any]], size: int, made_from: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each unit, by the name of its file."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return {f"{index:05d}-{hash_of(*made_from, part)}.parquet": part for index, part in enumerate(parts)}


def _make_unit(settings: Source, folder: Folder, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    left = [row for row in rows if row["reject"] is None]
    for row, (data, reason) in zip(left, read_pictures(settings, [r["picture"] for r in left]), strict=True):
        row |= {"safe_image": data, "reject": reason}
    columns = [{**row, "safe_caption": row["caption"] or None} for row in rows]
    return write_unit(folder, name, pa.Table.from_pylist(columns, CAPTION))


def _is_done(statistics: dict[str, Any]) -> bool:
    """Whether a unit, or all, needs no work: a picture that was missing may have been put in its place since."""
    return not {MISSING, UNREADABLE, UNDECODABLE} & statistics["rejected"].keys()


def _run_units(units: dict[str, list[dict[str, Any]]], settings: Source, folder: Folder) -> list[dict[str, Any]]:
    import ray
    from tqdm import tqdm

    def work(item: dict[str, str]) -> dict[str, str]:
        return {"statistics": json.dumps(_make_unit(settings, folder, item["name"], json.loads(item["rows"])))}

    done = {name: found for name, found in statistics_of(folder, units).items() if _is_done(found)}
    pending = [{"name": name, "rows": json.dumps(rows)} for name, rows in units.items() if name not in done]
    with tqdm(total=len(units), initial=len(done), desc=folder.name, unit="unit") as bar:
        if pending:
            for row in ray.data.from_items(pending, override_num_blocks=len(pending)).map(work).iter_rows():
                statistics = json.loads(row["statistics"])
                done[statistics["name"]] = statistics
                bar.update()
    return [done[name] for name in units]
