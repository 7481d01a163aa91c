"""The report of a run: report.md, report.html, which needs no network, and summary.png, from the figures alone."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from markupsafe import Markup

from safeclip.artifacts import Folder
from safeclip.evaluation.examples import Example
from safeclip.evaluation.pictures import data_uri, summary_strip, thumbnail
from safeclip.evaluation.plots import ENCODER_COLOURS, trade_off
from safeclip.evaluation.retrieval import TASKS, UNSAFE_TASKS

TITLES = {"base": "Before", "safe": "After"}
TASK_TITLES = {
    "safe_text_to_safe_image": ("Safe text → safe pictures", "finds its own picture"),
    "safe_image_to_safe_text": ("Safe picture → safe texts", "finds its own text"),
    "unsafe_text_to_all_images": ("Unsafe text → all pictures", "finds the picture of its safe pair"),
    "unsafe_image_to_all_texts": ("Unsafe picture → all texts", "finds the text of its safe pair"),
}
NOT_COMPARABLE = (
    "These figures are measured on regenerated data: the unsafe pictures of the published benchmark (ViSU) are "
    "withheld by its authors, and these captions, pictures and judges are others. The figures do not compare with "
    "published tables."
)
SUMMARY_ROWS = 4


@dataclass(frozen=True)
class Change:
    """A difference from the first encoder's figure on the same queries, and its interval."""

    value: float
    bounds: list[float]
    less_is_better: bool

    @property
    def verdict(self) -> str:
        """What to call the change: same, better, worse, or unclear where the interval holds zero."""
        low, high = self.bounds
        if self.value == low == high == 0:
            return "same"
        if low <= 0 <= high:
            return "unclear"
        return "better" if (self.value < 0) == self.less_is_better else "worse"

    @property
    def text(self) -> str:
        """The change in percentage points, and what to call it."""
        return f"{points(self.value)} {self.verdict}"


@dataclass(frozen=True)
class Measure:
    """One figure for each encoder."""

    title: str
    values: list[float]
    bounds: list[list[float]]
    changes: list[Change | None]
    """Of each encoder; the first has none, and a rank has none."""
    is_share: bool = True
    """Whether it is a share, or else a place in the ranking."""

    @property
    def cells(self) -> list[dict[str, Any]]:
        """What a table shows for each encoder: value, bounds and change, as text."""
        return [
            {
                "value": f"{span([value])}%" if self.is_share else place(value),
                "bounds": span(bounds) if self.is_share else "–".join(place(b) for b in bounds),
                "change": change,
            }
            for value, bounds, change in zip(self.values, self.bounds, self.changes, strict=True)
        ]


def measures_of(metrics: dict[str, Any], name: str, task: str) -> list[Measure]:
    """Returns the figures of one task on one set, side by side for all encoders.

    Args:
        metrics: what metrics.json holds.
        name: the set.
        task: one of TASKS.
    """
    return _side_by_side(
        [e[name][task] for e in metrics["encoders"].values()],
        [e[name][task] for e in metrics["paired_differences"]["encoders"].values()],
    )


def _side_by_side(figures: list[dict[str, Any]], differences: list[dict[str, Any]]) -> list[Measure]:
    keys = [k for k in figures[0] if f"{k}_ci" in figures[0]]
    return [
        Measure(
            "harmful@1" if k == "harmful@1" else k.replace("_", " ").upper() if "@" in k else _sentence(k),
            [f[k] for f in figures],
            [f[f"{k}_ci"] for f in figures],
            [None, *(Change(d[k], d[f"{k}_ci"], k == "harmful@1") if k in d else None for d in differences)],
            k != "median_rank",
        )
        for k in sorted(keys, key=lambda k: k != "harmful@1")
    ]


def _sentence(key: str) -> str:
    text = key.replace("_", " ")
    return text[0].upper() + text[1:]


def headline_measures(encoders: dict[str, Any], name: str) -> dict[str, list[float]]:
    """Returns, for each encoder, the means over both directions of what the summary tells of a set.

    Returns:
        `harmful` (harmful@1 of unsafe queries), `redirected` (r@10 toward the safe pair) and `kept` (r@1 of safe
        queries), each a list in the order of the encoders.
    """
    return {
        key: [sum(e[name][task][figure] for task in tasks) / 2 for e in encoders.values()]
        for key, tasks, figure in (
            ("harmful", UNSAFE_TASKS, "harmful@1"),
            ("redirected", UNSAFE_TASKS, "r@10"),
            ("kept", TASKS[:2], "r@1"),
        )
    }


def summary_sentences(encoders: dict[str, Any], name: str = "retrieval") -> list[str]:
    """Returns what became safe and what it cost: two sentences for each encoder after the first."""
    told = headline_measures(encoders, name)
    first, *others = encoders
    own = list(encoders) == ["base", "safe"]
    was = "the original encoder" if own else first
    sentences = []
    for index, label in enumerate(others, 1):
        harmful, redirected, kept = ((told[k][0], told[k][index]) for k in ("harmful", "redirected", "kept"))
        now = "the safe encoder" if own else label
        before = "" if own else f" with {first}"
        sentences += [
            f"Of unsafe searches, {percent(harmful[0])} brought up something unsafe first{before}; with {now} it is "
            f"{percent(harmful[1])}, and the safe counterpart is among the first ten in {percent(redirected[1])} "
            f"instead of {percent(redirected[0])}.",
            f"The cost: safe searches find their exact pair first in {percent(kept[1])} of cases, where {was} does "
            f"in {percent(kept[0])}.",
        ]
    return sentences or [
        f"Of unsafe searches, {percent(told['harmful'][0])} bring up something unsafe first with {first}; safe "
        f"searches find their exact pair first in {percent(told['kept'][0])} of cases."
    ]


def percent(share: float) -> str:
    """Returns a share as a percentage, with a decimal where it would hide something otherwise."""
    value = 100 * share
    return f"{value:.1f}%" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f}%"


def span(bounds: list[float]) -> str:
    """Returns shares in per cent, such as an interval's bounds."""
    return "–".join(f"{100 * b:.1f}".removesuffix(".0") for b in bounds)


def points(change: float) -> str:
    """Returns a change of shares in percentage points, with its sign."""
    return f"{100 * change:+.1f}".replace("-", "−") if change else "0"


def place(rank: float) -> str:
    """Returns a place in a ranking; the median of an even number of places may lie between two."""
    return f"{rank:,.1f}".removesuffix(".0")


def titles_of(encoders: Iterable[str]) -> dict[str, str]:
    """Returns what to call each encoder: before and after, or by its label where others are compared."""
    labels = list(encoders)
    return {label: TITLES[label] if labels == list(TITLES) else label for label in labels}


def plain_table(metrics: dict[str, Any], name: str = "retrieval", columns: int = 4) -> str:
    """Returns the main figures as aligned lines, for a terminal: so many encoders beside each other at most."""
    titles = list(titles_of(metrics["encoders"]).values())
    tables = []
    for start in range(0, len(titles), columns):
        some = slice(start, start + columns)
        lines = [f"{'':44}" + "".join(f"{title:>22}" for title in titles[some])]
        for task in TASKS:
            for measure in measures_of(metrics, name, task):
                if measure.title in ("R@5", "R@20") or not measure.is_share:
                    continue
                cells = (
                    f"{v:.3f} [{low:.3f}, {high:.3f}]"
                    for v, (low, high) in zip(measure.values[some], measure.bounds[some], strict=True)
                )
                head = f"{TASK_TITLES[task][0]:32}{measure.title:>12}"
                lines.append(head + "".join(f"{c:>22}" for c in cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def write_report(folder: Folder, metrics: dict[str, Any], examples: list[Example], blurred: bool) -> None:
    """Writes report.md, report.html and summary.png.

    Args:
        folder: where to.
        metrics: what metrics.json holds.
        examples: unsafe queries with their first results.
        blurred: whether unsafe pictures are blurred.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safeclip.evaluation"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, span=span, duration=duration)
    view = _view(metrics, examples, blurred)
    folder.write("report.html", environment.get_template("report.html.j2").render(view).encode())
    folder.write("report.md", environment.get_template("report.md.j2").render(view).encode())
    by_text = [e for e in examples if e.query.is_text]
    step = max(1, len(by_text) // SUMMARY_ROWS)
    titles = titles_of(metrics["encoders"])
    own = list(titles) == list(TITLES)
    heads = {label: f"First results {title.lower()}" if own else title for label, title in titles.items()}
    folder.write("summary.png", summary_strip(by_text[::step][:SUMMARY_ROWS], heads, blurred))


def duration(seconds: float) -> str:
    """Returns a duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _view(metrics: dict[str, Any], examples: list[Example], blurred: bool) -> dict[str, Any]:
    encoders, main = metrics["encoders"], "retrieval"
    titles = titles_of(encoders)

    def picture(item: Any) -> str:
        return data_uri(thumbnail(item, blurred))

    return {
        **metrics,
        "titles": titles,
        "own": list(titles) == list(TITLES),
        "colours": dict(zip(encoders, itertools.cycle(ENCODER_COLOURS), strict=False)),
        "sentences": summary_sentences(encoders),
        "headline": headline_measures(encoders, main),
        "tasks": {t: {"title": TASK_TITLES[t], "measures": measures_of(metrics, main, t)} for t in TASKS},
        "set_sizes": {name: next(iter(encoders.values()))[name][TASKS[0]]["n"] for name in metrics["sets"]},
        "others": {name: _overview(metrics, name) for name in metrics["sets"] if name != main},
        "zero_shot": _zero_shot(metrics),
        "concepts": _by_concept(encoders, main),
        "trade_off": Markup(trade_off({k: e[main] for k, e in encoders.items()}, titles)),
        "examples": examples,
        "picture": picture,
        "blurred": blurred,
        "not_comparable": NOT_COMPARABLE,
    }


def _zero_shot(metrics: dict[str, Any]) -> list[Measure]:
    """Returns top-1 and top-5 of each data set, titled by its name."""
    encoders, differences = metrics["encoders"], metrics["paired_differences"]["encoders"]
    return [
        replace(m, title=f"{_sentence(name)}, {m.title.lower().replace('top', 'top ')}")
        for name in next(iter(encoders.values()))["zero_shot"]
        for m in _side_by_side(
            [e["zero_shot"][name] for e in encoders.values()], [d["zero_shot"][name] for d in differences.values()]
        )
    ]


def _overview(metrics: dict[str, Any], name: str) -> list[Measure]:
    """Returns the figures that tell most of a set, titled by task."""
    wanted = (
        ("Unsafe text: harmful@1", TASKS[2], "harmful@1"),
        ("Unsafe picture: harmful@1", TASKS[3], "harmful@1"),
        ("Unsafe text: R@10", TASKS[2], "R@10"),
        ("Unsafe picture: R@10", TASKS[3], "R@10"),
        ("Safe text: R@1", TASKS[0], "R@1"),
        ("Safe picture: R@1", TASKS[1], "R@1"),
    )
    return [
        replace(m, title=title)
        for title, task, key in wanted
        for m in measures_of(metrics, name, task)
        if m.title == key
    ]


def _by_concept(encoders: dict[str, Any], name: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns the figures of each unsafe task and concept, one entry an encoder."""
    concepts = {task: list(next(iter(encoders.values()))[name][task]["by_concept"]) for task in UNSAFE_TASKS}
    return {
        task: {c: [e[name][task]["by_concept"][c] for e in encoders.values()] for c in concepts[task]}
        for task in UNSAFE_TASKS
    }
