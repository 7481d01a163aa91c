"""The figures of metrics.json side by side: one value an encoder, its interval, and its change from the first."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from safeclip.evaluation.retrieval import TASKS, UNSAFE_TASKS
from safeclip.evaluation.sets import MAIN_SET
from safeclip.evaluation.wording import number, place, points, share, signed, span, spoken

TITLES = {"base": "Before", "safe": "After"}
TASK_TITLES = {
    "safe_text_to_safe_image": ("Safe text → safe pictures", "finds its own picture"),
    "safe_image_to_safe_text": ("Safe picture → safe texts", "finds its own text"),
    "unsafe_text_to_all_images": ("Unsafe text → all pictures", "finds the picture of its safe pair"),
    "unsafe_image_to_all_texts": ("Unsafe picture → all texts", "finds the text of its safe pair"),
}
DRAWN_TITLES = {
    "unsafe_rate": "Unsafe prompts: something unsafe",
    "safe_unsafe_rate": "Safe prompts: something unsafe",
    "safe_prompt_accuracy": "Safe prompts: as asked, nothing unsafe",
    "clip_score": "CLIP score of safe prompts",
    "frechet_distance": "Fréchet distance from the safe pictures",
}
DESCRIBED_TITLES = {
    "unsafe_rate": "Unsafe pictures: something unsafe said",
    "safe_unsafe_rate": "Safe pictures: something unsafe said",
    "safe_caption_accuracy": "Safe pictures: exactly what is shown",
}
_LESS_IS_BETTER = {"harmful@1", "unsafe_rate", "safe_unsafe_rate"}
_PLAIN = ("frechet_distance",)  # figures without an interval

Kind = Literal["share", "place", "number"]
_KINDS: dict[str, Kind] = {"median_rank": "place", "clip_score": "number", "frechet_distance": "number"}


@dataclass(frozen=True)
class Change:
    """A difference from the first encoder's figure on the same queries, and its interval."""

    value: float
    bounds: list[float]
    less_is_better: bool
    kind: Kind = "share"
    """Of the figure."""

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
        """The change, of a share in percentage points, and what to call it."""
        return f"{points(self.value) if self.kind == 'share' else signed(self.value)} {self.verdict}"


@dataclass(frozen=True)
class Measure:
    """One figure for each encoder."""

    key: str
    """Its name in metrics.json."""
    title: str
    values: list[float | None]
    """None where an encoder could not be measured."""
    bounds: list[list[float]]
    """Empty where an encoder could not be measured, and where the figure has no interval."""
    changes: list[Change | None]
    """Of each encoder; the first has none, and a rank and a figure without an interval have none."""
    kind: Kind = "share"
    """Whether it is a share, a place in the ranking, or another number."""

    @property
    def cells(self) -> list[dict[str, Any]]:
        """What a table shows for each encoder: value, bounds and change, as text; no bounds without an interval."""
        return [
            {"value": "–", "bounds": "not measured", "change": None}
            if value is None
            else {
                "value": share(value) if self.kind == "share" else self._plain([value]),
                "bounds": span(bounds) if self.kind == "share" else self._plain(bounds),
                "change": change,
            }
            for value, bounds, change in zip(self.values, self.bounds, self.changes, strict=True)
        ]

    def _plain(self, values: list[float]) -> str:
        return "–".join(map(place if self.kind == "place" else number, values))


def titles_of(metrics: dict[str, Any]) -> dict[str, str]:
    """Returns what to call each encoder: before and after, or by its label where not the run's own are compared."""
    return {label: TITLES[label] if metrics["own"] else label for label in metrics["encoders"]}


def zero_shot_measures(metrics: dict[str, Any]) -> list[Measure]:
    """Returns top-1 and top-5 of each data set, titled by its name."""
    return [
        replace(m, title=f"{spoken(name)}, {m.title.lower().replace('top', 'top ')}")
        for name in next(iter(metrics["encoders"].values()))["zero_shot"]
        for m in side_by_side(metrics, "zero_shot", name)
    ]


def drawn_measures(metrics: dict[str, Any]) -> list[Measure]:
    """Returns how unsafe, how right and how fitting pictures of each encoder are; none where none was drawn."""
    return side_by_side(metrics, "text_to_image", titles=DRAWN_TITLES)


def described_measures(metrics: dict[str, Any]) -> list[Measure]:
    """Returns how unsafe, and how right, captions are that were written with each encoder; none where none was."""
    return side_by_side(metrics, "image_to_text", titles=DESCRIBED_TITLES)


def overview_measures(metrics: dict[str, Any], name: str) -> list[Measure]:
    """Returns the figures that tell most of a set, titled by task."""
    wanted = (
        ("Unsafe text", TASKS[2], "harmful@1"),
        ("Unsafe picture", TASKS[3], "harmful@1"),
        ("Unsafe text", TASKS[2], "r@10"),
        ("Unsafe picture", TASKS[3], "r@10"),
        ("Safe text", TASKS[0], "r@1"),
        ("Safe picture", TASKS[1], "r@1"),
    )
    return [
        replace(m, title=f"{query}: {m.title}")
        for query, task, key in wanted
        for m in side_by_side(metrics, name, task)
        if m.key == key
    ]


def headline_measures(encoders: dict[str, Any]) -> dict[str, list[float]]:
    """Returns, for each encoder, the means over both directions of what the summary tells of the main set.

    Returns:
        `harmful` (harmful@1 of unsafe queries), `redirected` (r@10 toward the safe pair) and `kept` (r@1 of safe
        queries), each a list in the order of the encoders.
    """
    return {
        key: [sum(e[MAIN_SET][task][figure] for task in tasks) / 2 for e in encoders.values()]
        for key, tasks, figure in (
            ("harmful", UNSAFE_TASKS, "harmful@1"),
            ("redirected", UNSAFE_TASKS, "r@10"),
            ("kept", TASKS[:2], "r@1"),
        )
    }


def side_by_side(metrics: dict[str, Any], *path: str, titles: dict[str, str] | None = None) -> list[Measure]:
    """Returns the figures that lie at a path within each encoder's, those of which less is better first.

    Args:
        metrics: what metrics.json holds.
        path: of keys, such as a set and one of TASKS.
        titles: of the figures, by key, where they are not the key's own.
    """
    encoders, others = metrics["encoders"].values(), metrics["paired_differences"]["encoders"].values()
    figures, differences = ([_at(tree, path) for tree in trees] for trees in (encoders, others))
    there = next(filter(None, figures), {})
    keys = [k for k in there if f"{k}_ci" in there or k in _PLAIN]
    return [
        Measure(
            k,
            (titles or {}).get(k) or _title(k),
            [f.get(k) for f in figures],
            [f.get(f"{k}_ci", []) for f in figures],
            [None, *(_change(d, k) if k in d else None for d in differences)],
            _KINDS.get(k, "share"),
        )
        for k in sorted(keys, key=lambda k: k not in _LESS_IS_BETTER)
    ]


def _change(differences: dict[str, Any], key: str) -> Change:
    bounds = differences[f"{key}_ci"]
    return Change(differences[key], bounds, key in _LESS_IS_BETTER, _KINDS.get(key, "share"))


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        tree = tree.get(key, {})
    return tree


def _title(key: str) -> str:
    return "harmful@1" if key == "harmful@1" else key.upper() if "@" in key else spoken(key)
