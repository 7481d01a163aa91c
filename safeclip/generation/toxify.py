"""Turns safe captions into unsafe ones: an LLM in Ray Data actors, each candidate read by the guard and the judge."""

import functools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder
from safeclip.config import Config, Toxify
from safeclip.errors import UserError
from safeclip.generation.judges import TextJudge, make_text_judge
from safeclip.generation.llm import LanguageModel, Request, adapter_folder, adapter_hash
from safeclip.generation.sources import read_lines
from safeclip.generation.units import run_generation_stage
from safeclip.records import UNSAFE_CAPTION, row_seed

# The paper's instruction (Poppi et al., 2024, section 3.1).
INSTRUCTION = (
    "Below is an input string. Write a response that appropriately converts the input in its unsafe version."
)
_WORLD_EXAMPLES = Path(__file__).parents[1] / "world" / "examples.jsonl"


def read_examples(source: str | None, acknowledge_explicit: bool) -> list[dict[str, str]]:
    """Reads the examples that precede each caption.

    Args:
        source: `world:examples`, a JSONL file with `safe`, `unsafe` and `asked` in each line, or None for none.
        acknowledge_explicit: whether sexual ones are allowed.

    Raises:
        UserError: the file is missing, a line is broken, or the guard drops one, or a sexual one is not acknowledged.
    """
    if source is None:
        return []
    file = str(_WORLD_EXAMPLES) if source == "world:examples" else source
    examples = []
    for number, line in enumerate(read_lines("generate.toxify.examples", file), 1):
        try:
            example = {key: str(json.loads(line)[key]) for key in ("safe", "unsafe", "asked")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{source}, line {number}: must be JSON with safe, unsafe and asked") from error
        # They precede every caption: with a minor in one, no sexual concept could be asked for beside it.
        if dropped := guard.check("\n".join(example.values()), "sexual"):
            raise UserError(f"{source}, line {number}: {dropped}")
        if refused := guard.check_asked(example["asked"], example["asked"], acknowledge_explicit):
            raise UserError(f"{source}, line {number}: asked: {refused}")
        if not acknowledge_explicit and any(guard.is_sexual(text, example["asked"]) for text in example.values()):
            raise UserError(f"{source}, line {number}: {guard.EXPLICIT}")
        examples.append(example)
    return examples


def conversation(caption: str, asked: str, examples: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns the messages that ask for an unsafe version of a caption.

    Args:
        caption: the safe caption.
        asked: the concept, or a term for it.
        examples: turns shown before, as `read_examples` gives them.
    """
    messages = [{"role": "system", "content": INSTRUCTION}]
    for example in examples:
        messages.append(_request(example["safe"], example["asked"]))
        messages.append({"role": "assistant", "content": example["unsafe"]})
    return [*messages, _request(caption, asked)]


def drop_reason(caption: str, concept: str, asked: str, explicit: bool) -> str | None:
    """Returns why an LLM may not be shown a request, None where it may. Returns as `guard.check`.

    Args:
        caption: the safe caption.
        concept: of the caption.
        asked: the concept, or a term for it.
        explicit: whether an example before it is sexual, as `are_explicit` tells; none names a minor.
    """
    dropped = guard.check_pair(caption, concept, asked)
    return guard.check_pair(caption, "sexual", asked) if dropped is None and explicit else dropped


def are_explicit(examples: list[dict[str, str]]) -> bool:
    """Whether one of the examples has a sexual term, so that each caption after them counts as sexual."""
    return any(guard.is_sexual(text) for example in examples for text in example.values())


def _request(caption: str, asked: str) -> dict[str, str]:
    article = "an" if asked[0] in "aeiou" else "a"
    return {"role": "user", "content": f"Input: {caption}\nUnsafe: {article} {asked}"}


def asked_for(concept: str, terms: dict[str, list[str]], *words: object) -> str:
    """Returns what to ask the LLM for: one of a concept's terms, by a hash of these words, or the concept."""
    known = terms.get(concept)
    return known[row_seed("asked", *words) % len(known)] if known else concept


class Toxifier:
    """Asks an LLM for unsafe versions of captions until the judge accepts one, or the candidates are used up."""

    def __init__(
        self,
        settings: Toxify,
        judge: TextJudge,
        seed: int,
        examples: list[dict[str, str]],
        adapter: Folder | None = None,
    ) -> None:
        self.settings, self.judge, self.seed, self.examples = settings, judge, seed, examples
        self.explicit = are_explicit(examples)
        self.llm = LanguageModel(settings, adapter)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns a row of UNSAFE_CAPTION for each row of CAPTION."""
        # The cache is filled anew for each unit, so that a unit's rounding never depends on the one before.
        self.llm.forget()
        rows = [
            {**row, "unsafe_caption": None, "candidates": 0, "text_score": None, "reject": "no candidate"}
            for row in table.select(["id", "concept", "safe_caption"]).to_pylist()
        ]
        for attempt in range(self.settings.candidates):
            left = [row for row in rows if row["reject"] is not None]
            if left:
                self._attempt(left, attempt)
        for row in rows:  # only now, since another attempt may ask for another term
            if guard.is_drop(row["reject"]):
                row["safe_caption"] = None
        return pa.Table.from_pylist(rows, UNSAFE_CAPTION)

    def _attempt(self, rows: list[dict[str, Any]], attempt: int) -> None:
        rows, requests = self._requests(rows, attempt)
        if not rows:
            return
        texts = [answer.text for answer in self.llm.answer(requests)]
        verdicts = self.judge([r["safe_caption"] for r in rows], texts, [r["concept"] for r in rows])
        for row, text, verdict in zip(rows, texts, verdicts, strict=True):
            row["candidates"] += 1
            dropped = guard.check_pair(row["safe_caption"], row["concept"], text)
            if dropped:
                row.update(unsafe_caption=None, text_score=None, reject=dropped)
            else:
                row.update(unsafe_caption=text, text_score=verdict.score, reject=verdict.reason)

    def _requests(self, rows: list[dict[str, Any]], attempt: int) -> tuple[list[dict[str, Any]], list[Request]]:
        """Returns the rows that may be asked for, with their questions; the others are rejected."""
        left, requests = [], []
        for row in rows:
            asked = asked_for(row["concept"], self.settings.terms, self.seed, row["id"], attempt)
            messages = conversation(row["safe_caption"], asked, self.examples)
            dropped = drop_reason(row["safe_caption"], row["concept"], asked, self.explicit)
            if dropped := dropped or self.llm.refusal(messages):
                row.update(unsafe_caption=None, text_score=None, reject=dropped)
                continue
            requests.append(Request(messages, row_seed(self.seed, row["id"], "toxify", attempt)))
            left.append(row)
        return left, requests


def _make_toxifier(config: Config, examples: list[dict[str, str]], adapter: Folder | None) -> Toxifier:
    judge = make_text_judge(config.generate.judges)
    return Toxifier(config.generate.toxify, judge, config.seed, examples, adapter)


def make_unsafe_captions(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage: an unsafe caption for each accepted one.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the captions are missing, or too many rows were rejected.
    """
    examples = read_examples(config.generate.toxify.examples, config.generate.acknowledge_explicit)
    if adapter := adapter_folder(config.generate.toxify.adapter, run):
        examples = []  # an adapter is trained to do without
    return run_generation_stage(
        config,
        run,
        "unsafe_captions",
        "captions",
        functools.partial(_make_toxifier, config, examples, adapter),
        [
            config.results()["generate"]["toxify"],
            examples,
            config.generate.judges.of_texts(),
            adapter_hash(adapter),
        ],
        config.generate.toxify.resources,
        {
            "llm": config.generate.toxify.model,
            "adapter": config.generate.toxify.adapter or "none",
            "adapter_hash": adapter_hash(adapter),
            "judge": config.generate.judges.text,
        },
    )
