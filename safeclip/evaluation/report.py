"""The report of a run: report.md, report.html, which needs no network, and summary.png, from the figures alone."""

from dataclasses import dataclass
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
class Measure:
    """One figure for each encoder."""

    title: str
    values: list[float]
    bounds: list[list[float]]
    less_is_better: bool

    @property
    def change(self) -> float:
        """The last encoder's value less the first one's."""
        return self.values[-1] - self.values[0]

    @property
    def verdict(self) -> str:
        """What to call the change: same, better, worse, or unclear where the intervals overlap."""
        if self.change == 0:
            return "same"
        first, last = self.bounds[0], self.bounds[-1]
        if first[0] <= last[1] and last[0] <= first[1]:
            return "unclear"
        return "better" if (self.change < 0) == self.less_is_better else "worse"


def measures_of(encoders: dict[str, Any], name: str, task: str) -> list[Measure]:
    """Returns the figures of one task on one set, side by side for all encoders.

    Args:
        encoders: as in metrics.json.
        name: the set.
        task: one of TASKS.
    """
    figures = [e[name][task] for e in encoders.values()]
    keys = [k for k in figures[0] if f"{k}_ci" in figures[0]]
    return [
        Measure(
            "harmful@1" if k == "harmful@1" else k.upper(),
            [f[k] for f in figures],
            [f[f"{k}_ci"] for f in figures],
            k == "harmful@1",
        )
        for k in sorted(keys, key=lambda k: k != "harmful@1")
    ]


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
    """Returns what became safe and what it cost, in two sentences."""
    told = {key: (values[0], values[-1]) for key, values in headline_measures(encoders, name).items()}
    harmful, redirected, kept = told["harmful"], told["redirected"], told["kept"]
    return [
        f"Of unsafe searches, {percent(harmful[0])} brought up something unsafe first; with the safe encoder it is "
        f"{percent(harmful[1])}, and the safe counterpart is among the first ten in {percent(redirected[1])} instead "
        f"of {percent(redirected[0])}.",
        f"The cost: safe searches find their exact pair first in {percent(kept[1])} of cases, where the original "
        f"encoder does in {percent(kept[0])}.",
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


def plain_table(metrics: dict[str, Any], name: str = "retrieval") -> str:
    """Returns the main figures as aligned lines, for a terminal."""
    encoders = metrics["encoders"]
    lines = [f"{'':44}" + "".join(f"{TITLES.get(k, k):>22}" for k in encoders)]
    for task in TASKS:
        for measure in measures_of(encoders, name, task):
            if measure.title in ("R@5", "R@20"):
                continue
            cells = (
                f"{v:.3f} [{low:.3f}, {high:.3f}]"
                for v, (low, high) in zip(measure.values, measure.bounds, strict=True)
            )
            lines.append(f"{TASK_TITLES[task][0]:32}{measure.title:>12}" + "".join(f"{c:>22}" for c in cells))
    return "\n".join(lines)


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
    titles = {label: f"First results {TITLES.get(label, label).lower()}" for label in metrics["encoders"]}
    folder.write("summary.png", summary_strip(by_text[::step][:SUMMARY_ROWS], titles, blurred))


def duration(seconds: float) -> str:
    """Returns a duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _view(metrics: dict[str, Any], examples: list[Example], blurred: bool) -> dict[str, Any]:
    encoders, main = metrics["encoders"], "retrieval"
    titles = {label: TITLES.get(label, label) for label in encoders}

    def picture(item: Any) -> str:
        return data_uri(thumbnail(item, blurred))

    return {
        **metrics,
        "titles": titles,
        "colours": dict(zip(encoders, ENCODER_COLOURS, strict=False)),
        "sentences": summary_sentences(encoders),
        "headline": headline_measures(encoders, main),
        "tasks": {t: {"title": TASK_TITLES[t], "measures": measures_of(encoders, main, t)} for t in TASKS},
        "set_sizes": {name: encoders["base"][name][TASKS[0]]["n"] for name in metrics["sets"]},
        "others": {name: _overview(encoders, name) for name in metrics["sets"] if name != main},
        "concepts": _by_concept(encoders, main),
        "trade_off": Markup(trade_off({k: e[main] for k, e in encoders.items()}, titles)),
        "examples": examples,
        "picture": picture,
        "blurred": blurred,
        "not_comparable": NOT_COMPARABLE,
    }


def _overview(encoders: dict[str, Any], name: str) -> list[Measure]:
    """Returns the figures that tell most of a set, titled by task."""
    wanted = (
        ("Unsafe text: harmful@1", TASKS[2], "harmful@1"),
        ("Unsafe picture: harmful@1", TASKS[3], "harmful@1"),
        ("Unsafe text: R@10", TASKS[2], "R@10"),
        ("Unsafe picture: R@10", TASKS[3], "R@10"),
        ("Safe text: R@1", TASKS[0], "R@1"),
        ("Safe picture: R@1", TASKS[1], "R@1"),
    )
    found = []
    for title, task, key in wanted:
        (measure,) = (m for m in measures_of(encoders, name, task) if m.title == key)
        found.append(Measure(title, measure.values, measure.bounds, measure.less_is_better))
    return found


def _by_concept(encoders: dict[str, Any], name: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns harmful@1 for each unsafe task and concept, one entry an encoder."""
    concepts = {task: list(next(iter(encoders.values()))[name][task]["by_concept"]) for task in UNSAFE_TASKS}
    return {
        task: {c: [e[name][task]["by_concept"][c] for e in encoders.values()] for c in concepts[task]}
        for task in UNSAFE_TASKS
    }
