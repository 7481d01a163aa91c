"""What a report says first: what became safe and what it cost, as headlines, in sentences, and for a terminal."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from safeclip.evaluation.measures import (
    TASK_TITLES,
    Measure,
    described_measures,
    drawn_measures,
    headline_measures,
    side_by_side,
    titles_of,
)
from safeclip.evaluation.retrieval import TASKS
from safeclip.evaluation.sets import MAIN_SET
from safeclip.evaluation.wording import share

_LEFT_OUT = ("r@5", "r@20", "median_rank")  # of retrieval, in the terminal's table
_COLUMNS = 4  # encoders beside each other in it


class _Within(NamedTuple):
    """A figure of what other models make with an encoder, and how it is told."""

    part: str
    key: str
    what: str
    does: str
    word: str
    aim: str


_LOWER, _HIGHER = "lower is safer", "higher is better"
_WITHIN = (
    _Within("text_to_image", "unsafe_rate", "Pictures drawn of unsafe prompts", "are unsafe", "unsafe", _LOWER),
    _Within(
        "text_to_image", "safe_prompt_accuracy", "Pictures drawn of safe prompts", "show what was asked for", "right",
        _HIGHER,
    ),
    _Within("image_to_text", "unsafe_rate", "Captions of unsafe pictures", "say something unsafe", "unsafe", _LOWER),
    _Within(
        "image_to_text", "safe_caption_accuracy", "Captions of safe pictures", "say exactly what is shown", "right",
        _HIGHER,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """One of the figures that tell most."""

    title: str
    aim: str
    """Which way is better."""
    values: list[str]
    """Of each encoder; a dash where it could not be measured."""


def headlines(encoders: dict[str, Any]) -> dict[str, list[Headline]]:
    """Returns the figures that tell most, those of safety and those of ability.

    Args:
        encoders: the figures of each, as metrics.json holds them.
    """
    told = {key: [share(v) for v in values] for key, values in headline_measures(encoders).items()}
    found = {
        "Safety": [
            Headline("Unsafe searches whose first result is unsafe", _LOWER, told["harmful"]),
            Headline("Unsafe searches with the safe counterpart in the first ten", _HIGHER, told["redirected"]),
        ],
        "Ability": [Headline("Safe searches that find their exact pair first", _HIGHER, told["kept"])],
    }
    for each in _WITHIN:
        values = [e.get(each.part, {}).get(each.key) for e in encoders.values()]
        if any(v is not None for v in values):
            shown = ["–" if v is None else share(v) for v in values]
            group = "Safety" if each.aim == _LOWER else "Ability"
            found[group].append(Headline(f"{each.what} that {each.does}", each.aim, shown))
    return found


def summary_sentences(metrics: dict[str, Any]) -> list[str]:
    """Returns what became safe and what it cost: the sentences about each encoder after the first.

    Args:
        metrics: what metrics.json holds; of a single encoder, what it does.
    """
    encoders, own = metrics["encoders"], metrics["own"]
    told = {key: [share(v) for v in values] for key, values in headline_measures(encoders).items()}
    first, *others = encoders
    was = "the original encoder" if own else first
    if not others:
        return [
            f"Of unsafe searches, {told['harmful'][0]} bring up something unsafe first with {first}; "
            f"safe searches find their exact pair first in {told['kept'][0]} of cases.",
            *_within({first: encoders[first]}),
        ]
    said = []
    for index, label in enumerate(others, 1):
        harmful, redirected, kept = ((told[k][0], told[k][index]) for k in ("harmful", "redirected", "kept"))
        now = "the safe encoder" if own else label
        before = "" if own else f" with {first}"
        said += [
            f"Of unsafe searches, {harmful[0]} brought up something unsafe first{before}; with {now} it is "
            f"{harmful[1]}, and the safe counterpart is among the first ten in {redirected[1]} instead of "
            f"{redirected[0]}.",
            *_within({was: encoders[first], now: encoders[label]}),
            f"The cost: safe searches find their exact pair first in {kept[1]} of cases, where {was} does in "
            f"{kept[0]}.",
        ]
    return said


def _within(encoders: dict[str, Any]) -> list[str]:
    """Returns a sentence on pictures and one on captions, as far as each of the encoders, by name, was measured."""
    clauses: dict[str, list[str]] = {}
    for each in _WITHIN:
        found = {who: e.get(each.part, {}).get(each.key) for who, e in encoders.items()}
        if None not in found.values():
            shares = " and ".join(f"{share(value)} with {who}" for who, value in found.items())
            clauses.setdefault(each.part, []).append(f"of {each.what.lower()}, {shares} {each.does}")
    return [f"O{'; '.join(found)[1:]}." for found in clauses.values()]


def plain_table(metrics: dict[str, Any]) -> str:
    """Returns the main figures as aligned lines, for a terminal."""
    titles = list(titles_of(metrics).values())
    rows = [
        (TASK_TITLES[task][0], measure.title, measure)
        for task in TASKS
        for measure in side_by_side(metrics, MAIN_SET, task)
        if measure.key not in _LEFT_OUT
    ]
    within = {"text_to_image": drawn_measures(metrics), "image_to_text": described_measures(metrics)}
    rows += [(e.what, e.word, m) for e in _WITHIN for m in within[e.part] if m.key == e.key]
    tables = []
    for start in range(0, len(titles), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        lines = [f"{'':44}" + "".join(f"{title:>22}" for title in titles[some])]
        for head, figure, measure in rows:
            lines.append(f"{head:32}{figure:>12}" + "".join(f"{c:>22}" for c in _plain_cells(measure)[some]))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _plain_cells(measure: Measure) -> list[str]:
    return [
        "–" if value is None else f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"
        for value, bounds in zip(measure.values, measure.bounds, strict=True)
    ]
