"""Measures encoders on a run's evaluation sets, and writes the report: the stage `report`."""

import json
import time
from typing import Any

from safeclip.artifacts import Folder, Stage, hash_of, read_manifest
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.evaluation.classification import SetEmbeddings, measure_zero_shot
from safeclip.evaluation.embeddings import EmbeddedSet, embed_groups, join_set, units_of
from safeclip.evaluation.encoders import Comparison, Source, default_comparison, identify
from safeclip.evaluation.examples import make_examples
from safeclip.evaluation.image_to_text import ImageToTextResult, measure_image_to_text
from safeclip.evaluation.metrics import assemble, header_of
from safeclip.evaluation.projection import project
from safeclip.evaluation.reference import find_reference
from safeclip.evaluation.report import Shown, write_report
from safeclip.evaluation.retrieval import measure_retrieval, run_tasks
from safeclip.evaluation.sets import EvaluationSet, evaluation_sets
from safeclip.evaluation.text_to_image import TextToImageResult, inputs_of, measure_text_to_image
from safeclip.evaluation.zero_shot_sets import ZeroShotSet, open_sets, world_sets

_DATA_STAGES = ("captions", "unsafe_captions", "unsafe_images", "quadruplets")


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
    comparison = comparison or default_comparison(config, run)
    manifests = _earlier_stages(run, comparison)
    encoders, identities = comparison.encoders, identify(comparison.encoders)
    classified, missing = open_sets(config.evaluate.zero_shot)
    key = _key(config, manifests["quadruplets"], comparison, identities, classified, missing)
    stage = Stage(comparison.folder, key)
    if (manifest := stage.manifest()) and not _may_be_had_now(manifest):
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = stage.begin()
    sets = evaluation_sets(run, config.evaluate.rendered, config.seed, stage.folder / "sets")
    if config.evaluate.rendered:
        place = stage.folder / "sets" / "zero_shot"
        classified = [*world_sets(config.evaluate.rendered, config.seed, place), *classified]
    embedded, of_classified = _embed(sets, classified, encoders, identities, config, run)
    results = {name: {label: run_tasks(e) for label, e in s.embeddings.items()} for name, s in embedded.items()}
    drawn = _draw(config, sets[0], embedded[sets[0].name], encoders, identities, run)
    described = _describe(config, sets[0], encoders, identities, run)

    labels, resamples, seed = list(encoders), config.evaluate.bootstrap, config.seed
    parts = [
        measure_retrieval(results, {name: s.concepts for name, s in embedded.items()}, resamples, seed),
        measure_zero_shot(classified, of_classified, labels, missing, resamples, seed),
        *(found.measured() for found in (drawn, described) if found),
    ]
    header = {**header_of(config, manifests), "own": comparison.own, "sets": _titles_of(sets)}
    header["sources"] = _sources(encoders, identities)
    metrics = assemble(header, labels, parts)
    for line in [*metrics["missing"].values(), *metrics["notes"]]:
        print(line)
    main = embedded[sets[0].name]
    examples = make_examples(sets[0], main, results[sets[0].name], seed)
    shown = Shown(
        examples,
        drawn.strips if drawn else [],
        described.strips if described else [],
        project(main.embeddings, seed),
    )
    metrics["seconds"]["report"] = round(time.time() - began, 2)
    stage.folder.write("metrics.json", json.dumps(metrics, indent=2).encode())
    write_report(stage.folder, metrics, shown, blurred=not shows_symbols_only(config))
    counts = {name: len(s.ids) for name, s in embedded.items()}
    content = {"rows": sum(counts.values()), "sets": counts, "missing": metrics["missing"]}
    return stage.finish(began, {**content, "content_hash": hash_of(metrics["encoders"])})


def _may_be_had_now(manifest: dict[str, Any]) -> bool:
    """Returns whether drawing or describing lacked something, such as a model on a hub that did not answer then."""
    return any(name.startswith(("text_to_image", "image_to_text")) for name in manifest.get("missing", {}))


def shows_symbols_only(config: Config) -> bool:
    """Returns whether all pictures are the embedded world's, so that a report may show unsafe ones as they are."""
    drawn = config.evaluate.text_to_image
    models = {config.generate.illustrate.model, *([drawn.model] if drawn else [])}
    return config.profile == "embedded" and config.captions.source == "world" and models == {"world:generator"}


def _earlier_stages(run: Folder, comparison: Comparison) -> dict[str, Any]:
    """Returns the manifests of the stages before, None where one that is not needed is not complete.

    The training is not among them where other encoders are compared than those before and after it.

    Raises:
        UserError: one is not complete, or the encoder was trained on other quadruplets.
    """
    needed = {"quadruplets": "generate"} | ({"encoder": "train_encoder"} if comparison.own else {})
    manifests = {name: read_manifest(run / name) for name in dict.fromkeys((*_DATA_STAGES, *needed))}
    for name, job in needed.items():
        if manifests[name] is None:
            raise UserError(f"{run.url}: {name} is not complete; run jobs.{job} first")
    trained, there = (manifests.get(stage) or {} for stage in ("encoder", "quadruplets"))
    if comparison.own and trained["quadruplets"] != there["content_hash"]:
        # It may have seen what are test quadruplets now.
        raise UserError(f"{run.url}: the encoder was trained on other quadruplets; run jobs.train_encoder first")
    return manifests


def _key(
    config: Config,
    quadruplets: dict[str, Any],
    comparison: Comparison,
    identities: dict[str, str],
    classified: list[ZeroShotSet],
    missing: dict[str, str],
) -> str:
    drawn = config.evaluate.text_to_image
    inputs = [
        quadruplets["content_hash"],
        *([s.name, s.classes, s.places, s.labels.tolist(), s.stamps()] for s in classified),
        missing,
        inputs_of(config, drawn) if drawn else None,
        config.generate.judges.of_texts() if config.evaluate.image_to_text else None,
    ]
    settings, shown = config.results()["evaluate"], shows_symbols_only(config)
    return hash_of("report", settings, config.seed, shown, inputs, comparison.own, list(identities.items()))


def _embed(
    sets: list[EvaluationSet],
    classified: list[ZeroShotSet],
    encoders: dict[str, Source],
    identities: dict[str, str],
    config: Config,
    run: Folder,
) -> tuple[dict[str, EmbeddedSet], list[SetEmbeddings]]:
    """Embeds quadruplets by set, and the pictures and descriptions of data sets to classify."""
    pictures, texts = [s.pictures for s in classified], [s.texts() for s in classified]
    groups = [*map(units_of, sets), *pictures, *texts]
    found = embed_groups(groups, encoders, config.evaluate, run / "embeddings", identities)
    n, m = len(sets), len(classified)
    embedded = {s.name: join_set(s, part) for s, part in zip(sets, found[:n], strict=True)}
    return embedded, [
        {label: s.join(images, words, label) for label in encoders}
        for s, images, words in zip(classified, found[n : n + m], found[n + m :], strict=True)
    ]


def _draw(
    config: Config,
    source: EvaluationSet,
    embedded: EmbeddedSet,
    encoders: dict[str, Source],
    identities: dict[str, str],
    run: Folder,
) -> TextToImageResult | None:
    settings = config.evaluate.text_to_image
    if settings is None:
        return None
    reference = find_reference(config, source, embedded, encoders, identities, run / "embeddings")
    return measure_text_to_image(config, settings, source, encoders, identities, reference, run / "answers")


def _describe(
    config: Config, source: EvaluationSet, encoders: dict[str, Source], identities: dict[str, str], run: Folder
) -> ImageToTextResult | None:
    settings = config.evaluate.image_to_text
    if settings is None:
        return None
    return measure_image_to_text(config, settings, source, encoders, identities, run / "answers")


def _titles_of(sets: list[EvaluationSet]) -> dict[str, dict[str, str]]:
    return {s.name: {"title": s.title, "description": s.description} for s in sets}


def _sources(encoders: dict[str, Source], identities: dict[str, str]) -> dict[str, dict[str, str]]:
    return {
        label: {"source": getattr(source, "url", source), "hash": identities[label]}
        for label, source in encoders.items()
    }
