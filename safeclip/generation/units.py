"""Runs a stage's units of work on Ray Data actors, and picks up where a cut-off run left them.

A unit is one input file and one output file. The output's name carries the hash of what it is made from, so a unit
that is there is done, whoever did it. What was in flight when something died is done again as a whole.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safeclip.actors import map_rows
from safeclip.artifacts import Folder, Stage, for_each, hash_of, read_manifest, table_hash
from safeclip.config import Config, Resources
from safeclip.errors import UserError
from safeclip.generation.rejects import check_rejects

_STATISTICS = b"safeclip"
Work = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Unit:
    """One file of rows to be made from one file of rows."""

    source: str
    """Name of the input file, in the previous stage's folder."""
    target: str
    """Name of the output file, in this stage's folder."""


def plan_units(previous: dict[str, Any], *settings: Any) -> list[Unit]:
    """Returns the units of a stage, one for each of the previous stage's.

    Args:
        previous: the previous stage's manifest, whose units name their files and content hashes.
        settings: plain data that the output depends on, the seed included.
    """
    return [
        Unit(unit["name"], f"{index:05d}-{hash_of(*settings, unit['hash'])}.parquet")
        for index, unit in enumerate(previous["units"])
    ]


def first_units(manifest: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """Returns the first units of a stage's manifest, as many as hold that many accepted rows."""
    units, counted = [], 0
    for unit in manifest["units"]:
        if counted < rows:
            units.append(unit)
            counted += unit["accepted"]
    return units


def write_unit(folder: Folder, name: str, table: pa.Table) -> dict[str, Any]:
    """Writes a unit's rows with their statistics in the file, and returns the statistics."""
    reject = table["reject"].to_pylist()
    statistics = {
        "name": name,
        "rows": len(reject),
        "accepted": reject.count(None),
        "rejected": dict(Counter(r for r in reject if r is not None)),
        "hash": table_hash(table),
    }
    marked = table.replace_schema_metadata({_STATISTICS: json.dumps(statistics)})
    folder.write_table(name, marked)
    return statistics


def statistics_of(folder: Folder, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns the statistics of the units that are done, by name; others are not there or cannot be read."""
    there = set(folder.files(".parquet"))
    wanted = [name for name in names if name in there]
    found = for_each(lambda name: _statistics(folder, name), wanted)
    return {name: statistics for name, statistics in zip(wanted, found, strict=True) if statistics}


def _statistics(folder: Folder, name: str) -> dict[str, Any] | None:
    try:
        with folder.fs.open(folder.path(name)) as file:
            return json.loads(pq.read_schema(file).metadata[_STATISTICS])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # damaged from outside: made again


class UnitWorker:
    """A Ray Data actor that does units; `make` builds what does the work, once an actor."""

    def __init__(self, make: Callable[[], Work], source: Folder, target: Folder) -> None:
        self.work = make()
        self.source, self.target = source, target

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Does one unit and returns its statistics as JSON."""
        table = self.source.read_table(row["source"])
        kept = table.filter(pa.compute.is_null(table["reject"]))
        return {"statistics": json.dumps(write_unit(self.target, row["target"], self.work(kept)))}


def run_units(
    stage: Stage, units: list[Unit], make: Callable[[], Work], source: Folder, resources: Resources
) -> list[dict[str, Any]]:
    """Does the units that are not done yet, and returns the statistics of all of them, in order.

    Args:
        stage: whose folder the output goes to.
        units: what there is to do.
        make: builds, in each actor, what turns an input's accepted rows into an output's rows.
        source: the previous stage's folder.
        resources: how many actors, and what each reserves.
    """
    from tqdm import tqdm

    done = statistics_of(stage.folder, [u.target for u in units])
    pending = [{"source": u.source, "target": u.target} for u in units if u.target not in done]
    with tqdm(total=len(units), initial=len(done), desc=stage.name, unit="unit") as bar:  # closed at Ctrl-C, too
        if pending:
            for row in map_rows(pending, UnitWorker, (make, source, stage.folder), resources).iter_rows():
                statistics = json.loads(row["statistics"])
                done[statistics["name"]] = statistics
                rows = sum(s["rows"] for s in done.values())
                kept = sum(s["accepted"] for s in done.values())
                bar.set_postfix_str(f"{rows} rows, {kept / max(rows, 1):.0%} kept")
                bar.update()
    return [done[u.target] for u in units]


def summary_of(units: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what a manifest says of a stage's units together."""
    rejected: Counter[str] = Counter()
    for unit in units:
        rejected.update(unit["rejected"])
    return {
        "rows": sum(u["rows"] for u in units),
        "accepted": sum(u["accepted"] for u in units),
        "rejected": dict(rejected.most_common()),
        "content_hash": hash_of([u["hash"] for u in units]),
        "units": [{k: u[k] for k in ("name", "rows", "accepted", "hash")} for u in units],
    }


def remove_others(folder: Folder, units: list[dict[str, Any]]) -> None:
    """Removes files of earlier settings, so that a reader of the folder finds nothing twice."""
    wanted = {u["name"] for u in units}
    for name in folder.files(".parquet"):
        if name not in wanted:
            folder.drop(name)


def run_generation_stage(
    config: Config,
    run: Folder,
    name: str,
    previous: str,
    make: Callable[[], Work],
    settings: list[Any],
    resources: Resources,
    models: dict[str, str],
    rows: int | None = None,
) -> dict[str, Any]:
    """Runs a stage that makes one file of rows from each file of the previous stage.

    Args:
        config: what to run.
        run: the run's folder.
        name: the stage's name.
        previous: the name of the stage whose accepted rows it reads.
        make: builds, in each actor, what does a unit's work.
        settings: plain data that the rows depend on, besides the seed.
        resources: how many actors, and what each reserves.
        models: what the manifest says of the models used.
        rows: how many accepted rows to read, from the start and in whole units; all of them unless given.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the previous stage is not complete, or too many rows were rejected. Units that are done stay.
    """
    source = read_manifest(run / previous)
    if source is None:
        raise UserError(f"{run.url}: {previous} is not complete; run jobs.generate from the start")
    if rows is not None:
        units = first_units(source, rows)
        source = {**source, "units": units, "content_hash": hash_of([unit["hash"] for unit in units])}
    folder, limit = run / name, config.generate.max_reject_fraction
    settings = [*settings, config.seed]
    stage = Stage(folder, hash_of(*settings, source["content_hash"], limit))
    if manifest := stage.manifest():
        print(f"{name}: complete, skipped")
        return manifest
    began = stage.begin(private=True)
    units = run_units(stage, plan_units(source, *settings), make, run / previous, resources)
    remove_others(folder, units)
    summary = summary_of(units)
    check_rejects(name, summary["rows"], Counter(summary["rejected"]), limit)
    acknowledged = config.generate.acknowledge_explicit
    return stage.finish(began, {**summary, "models": models, "acknowledge_explicit": acknowledged})
