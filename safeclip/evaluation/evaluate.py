"""Measures encoders on a run's evaluation sets, and writes the report: the stage `report`."""

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest, versions
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import EmbeddedSet, embed_units, join_set, units_of
from safeclip.evaluation.encoders import Comparison, Source, default_comparison, identify
from safeclip.evaluation.examples import make_examples
from safeclip.evaluation.intervals import paired_differences, with_intervals
from safeclip.evaluation.report import write_report
from safeclip.evaluation.retrieval import compare, run_tasks, summarise
from safeclip.evaluation.sets import EvaluationSet, evaluation_sets
from safeclip.evaluation.zero_shot import classify, mean_of_descriptions
from safeclip.evaluation.zero_shot_sets import ZeroShotSet, open_set, world_sets

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
    classified, missing = _open_zero_shot(config)
    stage = Stage(comparison.folder, _key(config, manifests["quadruplets"], identities, classified, missing))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = time.time()
    stage.folder.make()
    sets = evaluation_sets(run, config.evaluate.rendered, config.seed, stage.folder / "sets")
    if config.evaluate.rendered:
        place = stage.folder / "sets" / "zero_shot"
        classified = [*world_sets(config.evaluate.rendered, config.seed, place), *classified]
    embedded, looked_at = _embed(sets, classified, encoders, identities, config, run)
    results = {s.name: {label: run_tasks(e) for label, e in embedded[s.name].embeddings.items()} for s in sets}
    notes = [note for s in classified for note in s.notes] + [note for each in looked_at for note in each.notes]
    looked_at = [each for each in looked_at if each.right]
    for line in [*missing.values(), *notes]:
        print(line)
    resamples, seed, (first, *others) = config.evaluate.bootstrap, config.seed, encoders
    metrics = {
        **_header(config, manifests),
        "sets": {s.name: {"title": s.title, "description": s.description} for s in sets},
        "sources": {
            label: {"source": getattr(source, "url", source), "hash": identities[label]}
            for label, source in encoders.items()
        },
        "missing": missing,
        "notes": notes,
        "encoders": {
            label: {
                **{
                    s.name: summarise(results[s.name][label], embedded[s.name].concepts, resamples, seed)
                    for s in sets
                },
                "zero_shot": {each.name: with_intervals(each.right[label], resamples, seed) for each in looked_at},
            }
            for label in encoders
        },
        "paired_differences": {
            "from": first,
            "encoders": {
                label: {
                    **{
                        s.name: compare(results[s.name][label], results[s.name][first], resamples, seed) for s in sets
                    },
                    "zero_shot": {
                        each.name: paired_differences(each.right[label], each.right[first], resamples, seed)
                        for each in looked_at
                    },
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


@dataclass(frozen=True)
class _Classified:
    """A data set's pictures, as far as they decode: whether each encoder is right about them."""

    name: str
    right: dict[str, dict[str, np.ndarray]]
    notes: list[str]


def _open_zero_shot(config: Config) -> tuple[list[ZeroShotSet], dict[str, str]]:
    """Returns the user's data sets, and for those that cannot be had, why."""
    opened, missing = [], {}
    for name, path in config.evaluate.zero_shot.items():
        try:
            opened.append(open_set(name, path))
        except UserError as error:
            missing[f"zero_shot.{name}"] = str(error)
    return opened, missing


def _embed(
    sets: list[EvaluationSet],
    classified: list[ZeroShotSet],
    encoders: dict[str, Source],
    identities: dict[str, str],
    config: Config,
    run: Folder,
) -> tuple[dict[str, EmbeddedSet], list[_Classified]]:
    """Embeds everything in one pass, so that actors start once."""
    rows = [units_of(s) for s in sets]
    pictures, texts = [s.pictures for s in classified], [s.texts() for s in classified]
    units = [unit for each in (*rows, *pictures, *texts) for unit in each]
    found = iter(embed_units(units, encoders, config.evaluate, run / "embeddings", identities))
    parts = [[next(found) for _ in each] for each in (*rows, *pictures, *texts)]
    n, m = len(sets), len(classified)
    embedded = {s.name: join_set(s, part) for s, part in zip(sets, parts[:n], strict=True)}
    classed = [
        _classify(s, {label: s.join(images, words, label) for label in encoders})
        for s, images, words in zip(classified, parts[n : n + m], parts[n + m :], strict=True)
    ]
    return embedded, classed


def _classify(source: ZeroShotSet, embedded: dict[str, tuple[np.ndarray, np.ndarray]]) -> _Classified:
    whole = np.all([np.isfinite(images).all(1) for images, _ in embedded.values()], axis=0)
    broken = [place for place, good in zip(source.places, whole, strict=True) if not good]
    notes = []
    if broken:
        some = ", ".join(broken[:3]) + (", …" if len(broken) > 3 else "")
        notes.append(f"zero-shot {source.name}: {len(broken)} pictures do not decode and are left out ({some})")
    if not whole.any():
        return _Classified(source.name, {}, notes)
    right = {
        label: classify(images[whole], mean_of_descriptions(texts, len(source.classes)), source.labels[whole])
        for label, (images, texts) in embedded.items()
    }
    return _Classified(source.name, right, notes)


def _key(
    config: Config,
    quadruplets: dict[str, Any],
    identities: dict[str, str],
    classified: list[ZeroShotSet],
    missing: dict[str, str],
) -> str:
    settings = config.evaluate.model_dump(exclude={"resources"})
    inputs = [
        quadruplets["content_hash"],
        *([s.name, s.classes, s.places, s.labels.tolist()] for s in classified),
        missing,
    ]
    shown, encoders = shows_symbols_only(config), list(identities.items())
    return hash_of("report", settings, config.seed, shown, inputs, encoders)


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
