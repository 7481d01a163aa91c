"""What the training of the toxifier gained: the prompted, the SFT and the aligned LLM on captions none has seen."""

import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from safeclip import guard
from safeclip.actors import leaving_lost_gpu
from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Config
from safeclip.encoder.model import Encoder
from safeclip.errors import UserError
from safeclip.evaluation.intervals import paired_differences, with_intervals
from safeclip.generation.captions import concept_for
from safeclip.generation.judges import TextJudge, encoder_beside, judge_versions, make_text_judge
from safeclip.generation.llm import LanguageModel, Request
from safeclip.generation.toxify import are_explicit, asked_for, conversation, drop_reason, read_examples
from safeclip.generation.units import first_units
from safeclip.records import row_id, row_seed

MODELS = ("prompted", "sft", "dpo")
_SEED = 8_000_000  # keeps the world's draw apart from those of other captions


@dataclass(frozen=True)
class Task:
    """One caption to rewrite."""

    caption: str
    concept: str
    asked: str


@dataclass(frozen=True)
class Readers:
    """Who reads what the models write."""

    judge: TextJudge
    lenient: TextJudge
    """The judge where texts may name what no quadruplet shows."""
    encoder: Encoder | None
    """The untouched encoder; None in the world, which is read by its words."""


def unseen_captions(config: Config, run: Folder) -> list[str]:
    """Returns captions that neither pairs nor preferences have: reserved scenes, or the run's later captions.

    Raises:
        UserError: the run has none beyond those of the preferences.
    """
    count = config.toxifier.evaluation.captions
    if config.captions.source == "world":
        from safeclip.world import scenes

        drawn = scenes.sample_scenes(2 * count, _SEED, scenes.object_names(safe=True), reserved=True)
        return list({scene.key: scenes.caption(scene) for scene in drawn}.values())[:count]
    manifest = read_manifest(run / "captions") or {"units": []}
    drawn_for = first_units(manifest, config.toxifier.preferences.captions)
    later = first_units({"units": manifest["units"][len(drawn_for) :]}, count)
    tables = [(run / "captions").read_table(unit["name"], ["safe_caption", "reject"]) for unit in later]
    captions = [row["safe_caption"] for t in tables for row in t.to_pylist() if row["reject"] is None]
    if not captions:
        raise UserError(
            "toxifier.evaluation: all captions are among those that preferences were drawn for; "
            "raise captions.count or lower toxifier.preferences.captions"
        )
    return captions[:count]


def tasks_for(
    captions: list[str],
    concepts: list[str],
    terms: dict[str, list[str]],
    seed: int,
    examples: list[dict[str, str]],
) -> list[Task]:
    """Returns a task for each caption that the guard lets through with what it is asked for and the examples."""
    found, explicit = [], are_explicit(examples)
    for caption in captions if concepts else []:
        concept = concept_for(caption, concepts, seed)
        asked = asked_for(concept, terms, seed, caption, "evaluation")
        if drop_reason(caption, concept, asked, explicit) is None:
            found.append(Task(caption, concept, asked))
    return found


def evaluate_toxifier(config: Config, run: Folder) -> dict[str, Any]:
    """Measures the three models and writes `toxifier/evaluation.json`. A Ray must be running.

    Args:
        config: what to run.
        run: the run's folder, whose `toxifier/` is complete.

    Returns:
        For each of `prompted`, `sft` and `dpo`: `accepted`, `kept`, `heldout_accepted` (null without held-out terms),
        `candidates`, `duplicates`, `tokens_per_second`; rates with their intervals, one candidate a caption but for
        `candidates`, the mean number until one was accepted. `gains` are differences on the same captions.

    Raises:
        UserError: the toxifier is not trained, or there are no unseen captions.
    """
    import ray

    run = run.everywhere()
    if read_manifest(run / "toxifier") is None:
        raise UserError(f"{run.url}: toxifier is not complete; run jobs.train_toxifier first")
    captions = unseen_captions(config, run)
    resources = config.generate.toxify.resources
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_calls=1)(_measure_each)
    adapters = {"prompted": None, "sft": run / "toxifier" / "sft", "dpo": run / "toxifier" / "adapter"}
    found = ray.get(task.remote(config, adapters, captions))
    settings, seed = config.toxifier.evaluation, config.seed
    per_caption = {name: {k: np.array(v) for k, v in each["per_caption"].items()} for name, each in found.items()}
    measured: dict[str, Any] = {
        name: {
            "heldout_accepted": None,
            **with_intervals(per_caption[name], settings.bootstrap, seed),
            **{key: found[name][key] for key in ("candidates", "duplicates", "tokens_per_second")},
        }
        for name in MODELS
    }
    measured["gains"] = {
        f"{after} - {before}": paired_differences(per_caption[after], per_caption[before], settings.bootstrap, seed)
        for before, after in itertools.pairwise(MODELS)
    }
    measured |= {"judge": judge_versions(config.generate.judges)["texts"], "model": config.generate.toxify.model}
    (run / "toxifier").write("evaluation.json", json.dumps(measured, indent=2).encode())
    return measured


def _measure_each(
    config: Config, adapters: dict[str, Folder | None], captions: list[str]
) -> dict[str, dict[str, Any]]:
    """Measures the models, in a process of their own and by one engine: to start one takes longer than to measure."""
    with leaving_lost_gpu():
        llm = LanguageModel(config.generate.toxify, later=[adapter for adapter in adapters.values() if adapter])
        readers = make_readers(config)
        return {name: _measure(config, llm, adapter, captions, readers) for name, adapter in adapters.items()}


def make_readers(config: Config) -> Readers:
    """Returns who reads the texts; a CLIP that several of them see with is loaded once, as it lies beside the LLM."""
    settings = config.generate.judges
    judge = make_text_judge(settings)
    if settings.text == "world":
        return Readers(judge, make_text_judge(settings, held_out=True), None)
    return Readers(judge, judge, encoder_beside(judge, config.train.base))


def _measure(
    config: Config, llm: LanguageModel, adapter: Folder | None, captions: list[str], readers: Readers
) -> dict[str, Any]:
    settings, judge = config.generate.toxify, readers.judge
    llm.use(adapter)
    examples = read_examples(settings.examples, config.generate.acknowledge_explicit)
    writer = Writer(llm, [] if adapter else examples, config.seed)

    def tasks_of(concepts: list[str], terms: dict[str, list[str]]) -> list[Task]:
        """The tasks that fit with the examples before them, which are the same for each of the models."""
        found = tasks_for(captions, concepts, terms, config.seed, examples)
        return [task for task in found if not llm.refusal(conversation(task.caption, task.asked, examples))]

    tasks = tasks_of(config.generate.draws(), settings.terms)
    began = time.monotonic()
    texts, tokens = writer.write(tasks, 0)
    seconds = time.monotonic() - began
    accepted = accepts(judge, tasks, texts)
    per_caption = {"accepted": accepted.tolist(), "kept": keeps(tasks, texts, readers.encoder).tolist()}
    terms = config.toxifier.evaluation.heldout_terms
    if held_out := tasks_of([c for c in config.generate.concepts if c in terms], terms):
        per_caption["heldout_accepted"] = accepts(readers.lenient, held_out, writer.write(held_out, 0)[0]).tolist()
    return {
        "per_caption": per_caption,
        "candidates": round(float(writer.candidates(tasks, accepted, judge, settings.candidates).mean()), 4),
        "duplicates": round(1 - len(set(texts)) / len(texts), 4),
        "tokens_per_second": round(tokens / seconds, 1),
    }


class Writer:
    """One of the models at work."""

    def __init__(self, llm: LanguageModel, examples: list[dict[str, str]], seed: int) -> None:
        self.llm, self.examples, self.seed = llm, examples, seed

    def write(self, tasks: list[Task], attempt: int) -> tuple[list[str], int]:
        """Returns a candidate for each task, and how many tokens were written."""
        self.llm.forget()
        requests = [
            Request(
                conversation(task.caption, task.asked, self.examples),
                row_seed(self.seed, row_id(task.caption, task.concept), "evaluation", attempt),
            )
            for task in tasks
        ]
        answers = self.llm.answer(requests)
        return [answer.text for answer in answers], sum(answer.tokens for answer in answers)

    def candidates(self, tasks: list[Task], accepted: np.ndarray, judge: TextJudge, limit: int) -> np.ndarray:
        """Returns how many candidates each task needed, given which first ones were accepted; `limit` at most."""
        needed, left = np.ones(len(tasks)), np.flatnonzero(~accepted)
        for attempt in range(1, limit):
            if not len(left):
                break
            needed[left] += 1
            again = [tasks[i] for i in left]
            left = left[~accepts(judge, again, self.write(again, attempt)[0])]
        return needed


def accepts(judge: TextJudge, tasks: list[Task], texts: list[str]) -> np.ndarray:
    """Returns whether judge and guard accept each text, bool of shape (n,)."""
    verdicts = judge([t.caption for t in tasks], texts, [t.concept for t in tasks])
    rows = zip(tasks, texts, verdicts, strict=True)
    return np.array([v.reason is None and not guard.check_pair(t.caption, t.concept, x) for t, x, v in rows], bool)


def keeps(tasks: list[Task], texts: list[str], encoder: Encoder | None) -> np.ndarray:
    """Returns what each text keeps of its source, shape (n,).

    In the world, without an encoder: whether it names an object of the source, and its background.
    Elsewhere: the cosine of the two in the untouched text encoder.
    """
    sources = [task.caption for task in tasks]
    if encoder is not None:
        return (encoder.encode_texts(sources) * encoder.encode_texts(texts)).sum(1)
    from safeclip.world.scenes import background_named, objects_named

    return np.array([
        bool(set(objects_named(source)) & set(objects_named(text)))
        and background_named(source) == background_named(text)
        for source, text in zip(sources, texts, strict=True)
    ])  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """Returns the measurements as a Markdown table, rates with their intervals."""
    rates = ("accepted", "kept", "heldout_accepted")

    def cells(row: dict[str, Any]) -> str:
        texts = [
            "–" if row.get(name) is None else f"{row[name]:.3f} [{', '.join(f'{b:.3f}' for b in row[f'{name}_ci'])}]"
            for name in rates
        ]
        return " | ".join(texts)

    lines = [
        "| model | accepted | kept | accepted, held-out terms | candidates a caption | duplicates | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        row = measured[name]
        others = f"{row['candidates']:.2f} | {row['duplicates']:.3f} | {row['tokens_per_second']:.0f}"
        lines.append(f"| {name} | {cells(row)} | {others} |")
    lines += [f"| {name} | {cells(row)} | | | |" for name, row in measured["gains"].items()]
    return "\n".join(lines)
