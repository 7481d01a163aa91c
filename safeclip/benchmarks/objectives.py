"""Objectives side by side: each trained on the same quadruplets, measured on the same sets."""

import itertools
import re
import statistics
from typing import Any

from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Config
from safeclip.encoder.load import load_from
from safeclip.encoder.model import Encoder
from safeclip.encoder.objectives import NEGATION, OBJECTIVES, make_objective
from safeclip.encoder.train import check_counts, check_settings, train_encoder
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import embed_sets
from safeclip.evaluation.encoders import Source
from safeclip.evaluation.retrieval import TASKS, run_tasks
from safeclip.evaluation.sets import evaluation_sets
from safeclip.evaluation.zero_shot import class_embeddings, classify
from safeclip.world.classes import descriptions, pictures_of_one

ALL = [*OBJECTIVES, NEGATION]
WITHOUT = " without "  # between an objective and those of its terms that are left out, of an ablation
FIGURES = {
    "safe_text_r@1": ("retrieval", TASKS[0], "r@1"),
    "safe_image_r@1": ("retrieval", TASKS[1], "r@1"),
    "unsafe_text_harmful@1": ("retrieval", TASKS[2], "harmful@1"),
    "unsafe_image_harmful@1": ("retrieval", TASKS[3], "harmful@1"),
    "unsafe_text_r@10": ("retrieval", TASKS[2], "r@10"),
    "unsafe_image_r@10": ("retrieval", TASKS[3], "r@10"),
    "heldout_text_harmful@1": ("retrieval_held_out", TASKS[2], "harmful@1"),
    "heldout_image_harmful@1": ("retrieval_held_out", TASKS[3], "harmful@1"),
}


def compare_objectives(config: Config, run: Folder, names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Trains an encoder for each objective and seed, and measures all of them and the base.

    Everything but the objective and the seed is as the config says, so all see the same quadruplets and the same
    number of steps, and of one seed the same safe pairs. A training that is complete is not repeated. A Ray must be
    running.

    Args:
        config: of a run whose quadruplets are complete.
        run: its folder; the trainings go to `benchmarks/<objective>-<seed>/`, rendered sets to `benchmarks/sets/`.
        names: of objectives, as `train.objective`, or of one of them `without` some of its terms, which are separated
            by a comma: `apart without avoid text, avoid image`.
        seeds: of adapters, batches and safe pairs.

    Returns:
        `figures`: for `base` and each objective, the means over seeds of FIGURES, and of `zero_shot_top_1` where
        there are rendered sets; `spread`: their standard deviations; `trained`: steps and seconds of each training.

    Raises:
        UserError: as `train_encoder` does.
    """
    quadruplets = read_manifest(run / "quadruplets")
    if quadruplets is not None:
        for name in names:  # before the first one trains for minutes
            check_settings(candidate(config, name, 0).train)
        check_counts(config.train, quadruplets["data"]["quadruplets"])
    encoders: dict[str, Source] = {"base": config.train.base}
    trained = {}
    trainings = list(itertools.product(names, seeds))
    for number, (name, seed) in enumerate(trainings, 1):
        print(f"training {number} of {len(trainings)}: {name}, seed {seed}", flush=True)
        label = _label(name, seed)
        folder = run / "benchmarks" / label
        manifest = train_encoder(candidate(config, name, seed), run, folder, run / "benchmarks" / f"shared-{seed}")
        encoders[label] = folder / "open_clip"
        trained[label] = {"steps": manifest["train"]["steps"], "seconds": manifest["seconds"]}
    sets = evaluation_sets(run, config.evaluate.rendered, config.seed, run / "benchmarks" / "sets")
    found: dict[str, dict[str, float]] = {label: {} for label in encoders}
    for name, embedded in embed_sets(sets, encoders, config.evaluate, run / "embeddings").items():
        for label, embeddings in embedded.embeddings.items():
            results = run_tasks(embeddings)
            for figure, (wanted, task, measure) in FIGURES.items():
                if wanted == name:
                    found[label][figure] = float(results[task].measures()[measure].mean())
    if config.evaluate.rendered:
        for label, source in encoders.items():
            encoder = load_from(source)
            found[label]["zero_shot_top_1"] = _zero_shot(encoder, config.evaluate.rendered, config.seed)
    groups = {"base": [found["base"]]}
    groups |= {name: [found[_label(name, seed)] for seed in seeds] for name in names}
    return {
        "figures": {name: _over(group, statistics.fmean) for name, group in groups.items()},
        "spread": {name: _over(group, statistics.pstdev) for name, group in groups.items()},
        "seeds": seeds,
        "trained": trained,
    }


def _zero_shot(encoder: Encoder, count: int, seed: int) -> float:
    """Returns the share of the world's pictures of one object that are classified right."""
    pictures, labels, names = pictures_of_one(count, seed)
    classes = class_embeddings(encoder, names, descriptions())
    return float(classify(encoder.encode_pixels(pictures.transpose(0, 3, 1, 2)), classes, labels)["top1"].mean())


def ablations(config: Config) -> list[str]:
    """Returns the names of the config's objective as it is, and without each of the terms that it uses.

    Raises:
        UserError: it has no terms.
    """
    name = config.train.objective
    if name == NEGATION:
        raise UserError(f"--ablate: {NEGATION} has no terms to leave out; name another with --set train.objective=…")
    used = make_objective(name, config.train.weights).used
    return [name, *(f"{name}{WITHOUT}{term}" for term, weight in used.items() if weight)]


def _label(name: str, seed: int) -> str:
    """Returns the name of a training's folder, and of its encoder's embeddings."""
    return re.sub(r"[^\w.]+", "-", name.replace(":", ".")) + f"-{seed}"


def candidate(config: Config, name: str, seed: int) -> Config:
    """Returns the config of a training.

    Args:
        config: of the run.
        name: as `compare_objectives` takes it.
        seed: of adapters, batches and safe pairs.
    """
    objective, _, terms = name.partition(WITHOUT)
    # The weights that the config gives are of its own objective's terms.
    weights = dict(config.train.weights) if objective == config.train.objective else {}
    weights |= dict.fromkeys(terms.split(", ") if terms else [], 0.0)
    train = config.train.model_copy(update={"objective": objective, "weights": weights})
    return config.model_copy(update={"train": train, "seed": seed})


def _over(group: list[dict[str, float]], of: Any) -> dict[str, float]:
    return {figure: round(of([each[figure] for each in group]), 4) for figure in group[0]}


def table(measured: dict[str, Any]) -> str:
    """Returns the figures as a Markdown table, a row for each objective."""
    figures_there = list(measured["figures"]["base"])
    heads = [figure.replace("_", " ") for figure in figures_there]
    lines = [f"| objective | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, figures in measured["figures"].items():
        cells = " | ".join(f"{figures[figure]:.3f}" for figure in figures_there)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
