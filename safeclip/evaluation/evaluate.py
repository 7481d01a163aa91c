"""Measures encoders on a run's evaluation sets, and writes the report: the stage `report`."""

import json
import time
from typing import Any

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest, versions
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import embed_sets
from safeclip.evaluation.encoders import Comparison, default_comparison, identify
from safeclip.evaluation.examples import make_examples
from safeclip.evaluation.report import write_report
from safeclip.evaluation.retrieval import compare, run_tasks, summarise
from safeclip.evaluation.sets import evaluation_sets

_TIMED = ("captions", "unsafe_captions", "unsafe_images", "quadruplets", "encoder")


def evaluate(config: Config, run: Folder, comparison: Comparison | None = None) -> dict[str, Any]:
    """Runs the stage: `metrics.json`, `report.md`, `report.html` and `summary.png` in the comparison's folder.

    Needs a Ray that is connected.

    Args:
        config: what to measure.
        run: the run's folder.
        comparison: the encoders; the run's own, before and after, unless given.

    Returns:
        The stage's manifest.

    Raises:
        UserError: an earlier stage is not complete, or an encoder cannot be loaded.
    """
    own = default_comparison(config, run)
    comparison = comparison or own
    manifests = {name: read_manifest(run / name) for name in _TIMED}
    needed = {"quadruplets": "generate"} | ({"encoder": "train_encoder"} if comparison == own else {})
    for name, job in needed.items():
        if manifests[name] is None:
            raise UserError(f"{run.url}: {name} is not complete; run jobs.{job} first")
    encoders, identities = comparison.encoders, identify(comparison.encoders)
    stage = Stage(comparison.folder, _key(config, manifests["quadruplets"], identities))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = time.time()
    stage.folder.make()
    sets = evaluation_sets(run, config.evaluate.rendered, config.seed, stage.folder / "sets")
    embedded = embed_sets(sets, encoders, config.evaluate)
    results = {s.name: {label: run_tasks(e) for label, e in embedded[s.name].embeddings.items()} for s in sets}
    resamples, seed, (first, *others) = config.evaluate.bootstrap, config.seed, encoders
    metrics = {
        **_header(config, manifests),
        "sets": {s.name: {"title": s.title, "description": s.description} for s in sets},
        "sources": {
            label: {"source": getattr(source, "url", source), "hash": identities[label]}
            for label, source in encoders.items()
        },
        "encoders": {
            label: {
                s.name: summarise(results[s.name][label], embedded[s.name].concepts, resamples, seed) for s in sets
            }
            for label in encoders
        },
        "paired_differences": {
            "from": first,
            "encoders": {
                label: {
                    s.name: compare(results[s.name][label], results[s.name][first], resamples, seed) for s in sets
                }
                for label in others
            },
        },
    }
    main = sets[0]
    examples = make_examples(main, embedded[main.name], results[main.name], seed)
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


def _key(config: Config, quadruplets: dict[str, Any], identities: dict[str, str]) -> str:
    settings = config.evaluate.model_dump(exclude={"resources"})
    shown, encoders = shows_symbols_only(config), list(identities.items())
    return hash_of("report", settings, config.seed, shown, quadruplets["content_hash"], encoders)


def _header(config: Config, manifests: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": config.run,
        "profile": config.profile,
        "versions": versions(),
        "seconds": {name: m["seconds"] for name, m in manifests.items() if m is not None},
        "data": manifests["quadruplets"]["data"],
        "train": manifests["encoder"]["train"] if manifests["encoder"] else {},
    }


def _hash_of_figures(metrics: dict[str, Any]) -> str:
    return hash_of(metrics["encoders"])
