"""Measures the base and the safe encoder on a run's evaluation sets, and writes the report: the stage `report`."""

import json
import time
from typing import Any

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest, versions
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import embed_sets
from safeclip.evaluation.examples import make_examples
from safeclip.evaluation.report import write_report
from safeclip.evaluation.retrieval import run_tasks, summarise
from safeclip.evaluation.sets import evaluation_sets

_TIMED = ("captions", "unsafe_captions", "unsafe_images", "quadruplets", "encoder")


def evaluate(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage: `report/metrics.json`, `report.md`, `report.html` and `summary.png`.

    Needs a Ray that is connected.

    Returns:
        The stage's manifest.

    Raises:
        UserError: an earlier stage is not complete.
    """
    manifests = {name: read_manifest(run / name) for name in _TIMED}
    for name, job in (("quadruplets", "generate"), ("encoder", "train_encoder")):
        if manifests[name] is None:
            raise UserError(f"{run.url}: {name} is not complete; run jobs.{job} first")
    stage = Stage(run / "report", _key(config, manifests))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = time.time()
    stage.folder.make()
    sets = evaluation_sets(run, config.evaluate.rendered, config.seed)
    encoders = {"base": config.train.base, "safe": run / "encoder" / "open_clip"}
    embedded = embed_sets(sets, encoders, config.evaluate)
    results = {s.name: {label: run_tasks(e) for label, e in embedded[s.name].embeddings.items()} for s in sets}
    resamples = config.evaluate.bootstrap
    metrics = {
        **_header(config, manifests),
        "sets": {s.name: {"title": s.title, "description": s.description} for s in sets},
        "encoders": {
            label: {
                s.name: summarise(results[s.name][label], embedded[s.name].concepts, resamples, config.seed)
                for s in sets
            }
            for label in encoders
        },
    }
    main = sets[0]
    examples = make_examples(main, embedded[main.name], results[main.name], config.seed)
    metrics["seconds"]["report"] = round(time.time() - began, 2)
    stage.folder.write("metrics.json", json.dumps(metrics, indent=2).encode())
    write_report(stage.folder, metrics, examples, blurred=not shows_symbols_only(config))
    counts = {s.name: len(embedded[s.name].ids) for s in sets}
    return stage.finish(
        began, {"rows": sum(counts.values()), "sets": counts, "content_hash": _hash_of_figures(metrics)}
    )


def shows_symbols_only(config: Config) -> bool:
    """Returns whether all pictures are the embedded world's, so that a report may show unsafe ones as they are."""
    drawn_by = config.generate.illustrate.model
    return config.profile == "embedded" and config.captions.source == "world" and drawn_by == "world:generator"


def _key(config: Config, manifests: dict[str, Any]) -> str:
    inputs = [manifests[name]["content_hash"] for name in ("quadruplets", "encoder")]
    settings = config.evaluate.model_dump(exclude={"resources"})
    return hash_of("report", settings, config.train.base, config.seed, shows_symbols_only(config), inputs)


def _header(config: Config, manifests: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": config.run,
        "profile": config.profile,
        "versions": versions(),
        "seconds": {name: m["seconds"] for name, m in manifests.items() if m is not None},
        "data": manifests["quadruplets"]["data"],
        "train": manifests["encoder"]["train"],
    }


def _hash_of_figures(metrics: dict[str, Any]) -> str:
    return hash_of(metrics["encoders"])
