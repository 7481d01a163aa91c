"""What a report says first: what became safe and what it cost, in sentences, and as a table for a terminal."""

from typing import Any

from safeclip.evaluation.measures import (
    TASK_TITLES,
    Measure,
    described_measures,
    drawn_measures,
    headline_measures,
    retrieval_measures,
    titles_of,
)
from safeclip.evaluation.retrieval import TASKS
from safeclip.evaluation.wording import percent

# Of the terminal's table: which figures of retrieval are left out, and what those within other models are called.
_LEFT_OUT = ("r@5", "r@20", "median_rank")
_DRAWN = {
    "unsafe_rate": ("Pictures drawn of unsafe prompts", "unsafe"),
    "safe_prompt_accuracy": ("Pictures drawn of safe prompts", "right"),
}
_DESCRIBED = {
    "unsafe_rate": ("Captions of unsafe pictures", "unsafe"),
    "safe_caption_accuracy": ("Captions of safe pictures", "right"),
}


def summary_paragraphs(encoders: dict[str, Any], name: str = "retrieval") -> list[list[str]]:
    """Returns what became safe and what it cost: the sentences about each encoder after the first.

    Args:
        encoders: the figures of each, as metrics.json holds them; of a single one, what it does.
        name: the set that is told of.
    """
    told = headline_measures(encoders, name)
    first, *others = encoders
    own = list(encoders) == ["base", "safe"]
    was = "the original encoder" if own else first
    if not others:
        return [
            [
                f"Of unsafe searches, {percent(told['harmful'][0])} bring up something unsafe first with {first}; "
                f"safe searches find their exact pair first in {percent(told['kept'][0])} of cases.",
                *_drawn_alone(encoders[first].get("text_to_image", {}), first),
            ]
        ]
    paragraphs = []
    for index, label in enumerate(others, 1):
        harmful, redirected, kept = ((told[k][0], told[k][index]) for k in ("harmful", "redirected", "kept"))
        now = "the safe encoder" if own else label
        before = "" if own else f" with {first}"
        drawn_before, drawn_after = (encoders[k].get("text_to_image", {}) for k in (first, label))
        paragraphs.append(
            [
                f"Of unsafe searches, {percent(harmful[0])} brought up something unsafe first{before}; with {now} it "
                f"is {percent(harmful[1])}, and the safe counterpart is among the first ten in "
                f"{percent(redirected[1])} instead of {percent(redirected[0])}.",
                *_drawn_of_both(drawn_before, drawn_after, was, now),
                f"The cost: safe searches find their exact pair first in {percent(kept[1])} of cases, where {was} "
                f"does in {percent(kept[0])}.",
            ]
        )
    return paragraphs


def _drawn_alone(figures: dict[str, Any], name: str) -> list[str]:
    if "unsafe_rate" not in figures:
        return []
    return [f"Of pictures drawn of unsafe prompts with {name}, {percent(figures['unsafe_rate'])} are unsafe."]


def _drawn_of_both(before: dict[str, Any], after: dict[str, Any], was: str, now: str) -> list[str]:
    said = []
    if "unsafe_rate" in before and "unsafe_rate" in after:
        unsafe = [percent(figures["unsafe_rate"]) for figures in (before, after)]
        said.append(
            f"of pictures drawn of unsafe prompts, {unsafe[0]} are unsafe with {was} and {unsafe[1]} with {now}"
        )
    if "safe_prompt_accuracy" in before and "safe_prompt_accuracy" in after:
        right = [percent(figures["safe_prompt_accuracy"]) for figures in (before, after)]
        said.append(f"of those of safe prompts, {right[1]} show what was asked for instead of {right[0]}")
    text = "; ".join(said)
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def summary_sentences(encoders: dict[str, Any], name: str = "retrieval") -> list[str]:
    """Returns the sentences of `summary_paragraphs`, one after the other."""
    return [sentence for paragraph in summary_paragraphs(encoders, name) for sentence in paragraph]


def plain_table(metrics: dict[str, Any], name: str = "retrieval", columns: int = 4) -> str:
    """Returns the main figures as aligned lines, for a terminal: so many encoders beside each other at most."""
    titles = list(titles_of(metrics["encoders"]).values())
    rows = [
        (TASK_TITLES[task][0], measure.title, measure)
        for task in TASKS
        for measure in retrieval_measures(metrics, name, task)
        if measure.key not in _LEFT_OUT
    ]
    for names, measures in ((_DRAWN, drawn_measures(metrics)), (_DESCRIBED, described_measures(metrics))):
        rows += [(*names[measure.key], measure) for measure in measures if measure.key in names]
    tables = []
    for start in range(0, len(titles), columns):
        some = slice(start, start + columns)
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
