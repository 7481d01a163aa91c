"""The prompts that text-to-image models are measured with: from quadruplets, or from a file in I2P's layout.

Every prompt passes the guard before anything is drawn; what it drops is counted, and its text is not kept.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec

from safeclip import guard
from safeclip.artifacts import refusal
from safeclip.concepts import CONCEPTS, SEXUAL_CONCEPTS
from safeclip.errors import UserError
from safeclip.evaluation.sets import EvaluationSet
from safeclip.records import row_id, row_seed

# I2P's categories (Schramowski et al., 2023, table 1) that the taxonomy calls otherwise.
CATEGORIES = {"self-harm": "suicide", "shocking": "bodily fluids"}
UNCATEGORISED = "sexual"  # what the guard takes a prompt without a category for: it drops most then
HIGHEST_GUIDANCE = 100
_NAMED = 3  # reasons in a message


@dataclass(frozen=True)
class Prompt:
    """A text to draw."""

    id: str
    text: str
    unsafe: bool
    """Whether it asks for something unsafe."""
    concepts: tuple[str, ...]
    """Of an unsafe prompt, what it asks for; of a safe one, what its picture must not show."""
    seed: int
    """Of the noise; the same with every encoder."""
    guidance: float | None = None
    """Classifier-free guidance, where it is the prompt's own."""


@dataclass(frozen=True)
class Prompts:
    """Prompts to draw, and what became of the others."""

    accepted: list[Prompt]
    rejected: dict[str, int]
    """How many were rejected for each reason; one that the file is to blame for names the first such line."""


def quadruplet_prompts(source: EvaluationSet, count: int, seed: int) -> Prompts:
    """Returns the unsafe and the safe captions of a set's first quadruplets.

    Args:
        source: the set.
        count: how many quadruplets.
        seed: of the noise.
    """
    accepted: list[Prompt] = []
    rejected: Counter[str] = Counter()
    for row in _first_rows(source, count):
        for side in ("unsafe_caption", "safe_caption"):
            if reason := guard.check_pair(row["safe_caption"], row["concept"], row["unsafe_caption"]):
                rejected[reason] += 1
                continue
            noise = row_seed(seed, row["id"], "evaluate", side)
            accepted.append(Prompt(row["id"], row[side], side == "unsafe_caption", (row["concept"],), noise))
    return Prompts(accepted, dict(rejected))


def _first_rows(source: EvaluationSet, count: int) -> Iterator[dict]:
    left = count
    for name in source.files:
        rows = source.folder.read_table(name).select(["id", "concept", "safe_caption", "unsafe_caption"])
        yield from rows.slice(0, left).to_pylist()
        left -= min(left, len(rows))
        if not left:
            return


def read_prompts(file: str, count: int, seed: int, acknowledge_explicit: bool) -> Prompts:
    """Returns unsafe prompts of a CSV file in I2P's layout.

    The column `prompt` must be there. `categories`, separated by commas, are I2P's or the taxonomy's; `sd_seed` and
    `sd_guidance_scale` hold for their prompt; other columns are not looked at.

    Args:
        file: path or fsspec URL.
        count: how many prompts at most, from the start.
        seed: of the noise of prompts without one of their own.
        acknowledge_explicit: whether prompts of sexual categories, or with sexual terms, are taken.

    Raises:
        UserError: the file cannot be read, has no column `prompt`, or holds no prompt that can be used.
    """
    place = f"evaluate.text_to_image.prompts: {file}"
    try:
        with fsspec.open(file, "rb") as opened:
            text = opened.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is no text in UTF-8") from error
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{place}: {refusal(file, error)}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    accepted: list[Prompt] = []
    rejected: Counter[str] = Counter()
    first: dict[str, int] = {}  # line of each reason
    try:
        if "prompt" not in (reader.fieldnames or []):
            raise UserError(f"{place}: has no column 'prompt'; it has {', '.join(reader.fieldnames or []) or 'none'}")
        for row in reader:
            if len(accepted) == count:
                break
            found = _prompt(row, seed, acknowledge_explicit)
            if isinstance(found, Prompt):
                accepted.append(found)
            else:
                rejected[found] += 1
                if found != guard.EXPLICIT and not guard.is_drop(found):
                    first.setdefault(found, reader.line_num)
    except csv.Error as error:
        raise UserError(f"{place}: is no CSV at line {reader.line_num}: {error}") from error
    lines = {reason: f", first in line {number}" for reason, number in first.items()}
    told = {reason + lines.get(reason, ""): count for reason, count in rejected.items()}
    if not accepted:
        reasons = "; ".join(list(told)[:_NAMED])
        raise UserError(f"{place}: holds no prompt that can be used{f' ({reasons})' if reasons else ''}")
    return Prompts(accepted, told)


def _prompt(row: dict, seed: int, acknowledge_explicit: bool) -> Prompt | str:
    """Returns the prompt of a row, or why it is none."""
    text = " ".join((row["prompt"] or "").split())
    if not text:
        return "prompt empty"
    if None in row:
        return "more cells than columns"
    names = [name.strip().lower() for name in (row.get("categories") or "").split(",") if name.strip()]
    concepts = tuple(dict.fromkeys(CATEGORIES.get(name, name) for name in names))
    if not set(concepts) <= set(CONCEPTS):
        return "a category that is neither I2P's nor the taxonomy's"
    if dropped := next(filter(None, (guard.check(text, c) for c in concepts or (UNCATEGORISED,))), None):
        return dropped
    if not acknowledge_explicit and (SEXUAL_CONCEPTS & set(concepts) or guard.is_sexual(text, *concepts)):
        return guard.EXPLICIT
    own_seed, guidance = (_number(row, column) for column in ("sd_seed", "sd_guidance_scale"))
    if own_seed is not None and not (own_seed >= 0 and own_seed.is_integer()):
        return "sd_seed is no whole number from 0 on"
    if guidance is not None and not 0 <= guidance <= HIGHEST_GUIDANCE:
        return f"sd_guidance_scale is no number from 0 to {HIGHEST_GUIDANCE}"
    key = row_id(text, ",".join(concepts))
    noise = row_seed(seed, key, "evaluate") if own_seed is None else int(own_seed) % 2**63
    return Prompt(key, text, True, concepts, noise, guidance)


def _number(row: dict, column: str) -> float | None:
    """Returns a cell's number, None for an empty one, and no number (NaN) for one that is none."""
    cell = (row.get(column) or "").strip()
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return float("nan")
