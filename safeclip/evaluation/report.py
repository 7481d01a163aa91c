"""The report of a run: report.md, report.html, which needs no network, and summary.png, from the figures alone."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup

from safeclip.artifacts import Folder
from safeclip.evaluation import image_to_text
from safeclip.evaluation.examples import Example, Item
from safeclip.evaluation.measures import (
    TASK_TITLES,
    described_measures,
    drawn_measures,
    overview_measures,
    side_by_side,
    titles_of,
    zero_shot_measures,
)
from safeclip.evaluation.pictures import data_uri, summary_strip, thumbnail
from safeclip.evaluation.plots import ENCODER_COLOURS, MAP_COLOURS, scatter, trade_off
from safeclip.evaluation.projection import EmbeddingMap
from safeclip.evaluation.retrieval import TASKS, UNSAFE_TASKS
from safeclip.evaluation.sets import MAIN_SET
from safeclip.evaluation.summary import headlines, summary_sentences
from safeclip.evaluation.text_to_image import Strip
from safeclip.evaluation.wording import cosine, duration, percent, points, span

NOT_COMPARABLE = (
    "These figures are measured on regenerated data: the unsafe pictures of the published benchmark (ViSU) are "
    "withheld by its authors, and these captions, pictures and judges are others. The figures do not compare with "
    "published tables."
)
SUMMARY_ROWS = 4
_REASONS = 5  # for which prompts or pictures were rejected, the most frequent ones


@dataclass(frozen=True)
class Shown:
    """What a report shows beside figures."""

    examples: list[Example]
    """Unsafe queries with their first results: texts that search pictures, then pictures that search texts."""
    strips: list[Strip] = field(default_factory=list)
    """Prompts with what was drawn of them."""
    captions: list[image_to_text.Strip] = field(default_factory=list)
    """Pictures with what was said of them."""
    embedding_map: EmbeddingMap | None = None


def write_report(folder: Folder, metrics: dict[str, Any], shown: Shown, blurred: bool) -> None:
    """Writes report.md, report.html and summary.png.

    Args:
        folder: where to.
        metrics: what metrics.json holds.
        shown: what there is to see.
        blurred: whether unsafe pictures are blurred.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("safeclip.evaluation"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, span=span, duration=duration, cosine=cosine)
    view = _view(metrics, shown, blurred)
    folder.write("report.html", environment.get_template("report.html.j2").render(view).encode())
    folder.write("report.md", environment.get_template("report.md.j2").render(view).encode())
    by_text = [e for e in shown.examples if e.query.is_text]
    step = max(1, len(by_text) // SUMMARY_ROWS)
    titles = titles_of(metrics)
    heads = {label: f"First results {title.lower()}" if metrics["own"] else title for label, title in titles.items()}
    folder.write("summary.png", summary_strip(by_text[::step][:SUMMARY_ROWS], heads, blurred))


def _view(metrics: dict[str, Any], shown: Shown, blurred: bool) -> dict[str, Any]:
    encoders = metrics["encoders"]
    titles = titles_of(metrics)

    def picture(item: Item) -> str:
        return data_uri(thumbnail(item, blurred))

    return {
        **metrics,
        "titles": titles,
        "colours": dict(zip(encoders, itertools.cycle(ENCODER_COLOURS), strict=False)),
        "headlines": headlines(encoders),
        "sentences": summary_sentences(metrics),
        "tasks": {t: {"title": TASK_TITLES[t], "measures": side_by_side(metrics, MAIN_SET, t)} for t in TASKS},
        "set_sizes": {name: next(iter(encoders.values()))[name][TASKS[0]]["n"] for name in metrics["sets"]},
        "others": {name: overview_measures(metrics, name) for name in metrics["sets"] if name != MAIN_SET},
        "zero_shot": zero_shot_measures(metrics),
        "concepts": {task: _by_concept({k: e[MAIN_SET][task] for k, e in encoders.items()}) for task in UNSAFE_TASKS},
        "trade_off": Markup(trade_off({k: e[MAIN_SET] for k, e in encoders.items()})),
        "maps": _maps(shown.embedding_map, titles),
        "map_colours": MAP_COLOURS,
        "drawn": _drawn(metrics, shown.strips),
        "described": _described(metrics, shown.captions),
        "examples": shown.examples,
        "picture": picture,
        "blurred": blurred,
        "not_comparable": NOT_COMPARABLE,
    }


def _by_concept(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns for each concept the figures of each encoder, by its label, as far as there are some."""
    concepts = dict.fromkeys(c for found in figures.values() for c in found.get("by_concept", {}))
    return {c: {k: f["by_concept"][c] for k, f in figures.items() if "by_concept" in f} for c in concepts}


def _maps(found: EmbeddingMap | None, titles: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the embedding map of each encoder."""
    if found is None:
        return []
    return [
        {
            "title": titles[label],
            "svg": Markup(scatter(points, *found.bounds(label))),
            "likeness": found.likeness[label],
            "own_axes": label in found.own_axes,
        }
        for label, points in found.points.items()
    ]


def _drawn(metrics: dict[str, Any], strips: list[Strip]) -> dict[str, Any] | None:
    """Returns what the section about drawn pictures shows, None where nothing was drawn."""
    measures = drawn_measures(metrics)
    if not measures:
        return None
    figures = {k: e.get("text_to_image", {}) for k, e in metrics["encoders"].items()}
    setting = metrics["text_to_image"]
    return {
        **setting,
        "measures": measures,
        "asked": "safe_prompt_accuracy" in {m.key for m in measures},
        "fidelity": _about_fidelity({m.key for m in measures}, setting["base"]),
        "counts": {key: max(f.get(key, 0) for f in figures.values()) for key in ("n", "n_safe")},
        "replaced": sorted({f["replaced"] for f in figures.values() if f}),
        "concepts": _by_concept(figures),
        "rejected": _rejected(setting),
        "strips": [(strip, {k: _drawn_item(strip, k) for k in strip.pictures}) for strip in strips],
    }


def _rejected(setting: dict[str, Any]) -> str:
    """Tells how many prompts or pictures were rejected, and the most frequent reasons."""
    counts = sorted(setting["rejected"].items(), key=lambda reason: -reason[1])
    reasons = "; ".join(f"{reason} ({count:,})" for reason, count in counts[:_REASONS])
    return f"{sum(setting['rejected'].values()):,}{': ' if reasons else ''}{reasons}"


def _about_fidelity(keys: set[str], base: str) -> str:
    """Returns what CLIP score and Fréchet distance mean, as far as they are among the figures."""
    said = []
    if "clip_score" in keys:
        said.append(
            f"CLIP score: 100 times the cosine of a picture and its prompt as {base} embeds them, at least 0; higher "
            "is better."
        )
    if "frechet_distance" in keys:
        said.append(
            "Fréchet distance: between the pictures of safe prompts and the safe pictures of the same quadruplets, "
            f"as {base} embeds them; lower is better. It compares only with figures of the same number of pictures."
        )
    return " ".join(said)


def _described(metrics: dict[str, Any], strips: list[image_to_text.Strip]) -> dict[str, Any] | None:
    """Returns what the section about captions shows, None where nothing was described."""
    measures = described_measures(metrics)
    if not measures:
        return None
    figures = {k: e.get("image_to_text", {}) for k, e in metrics["encoders"].items()}
    return {
        **metrics["image_to_text"],
        "rejected": _rejected(metrics["image_to_text"]),
        "measures": measures,
        "exact": "safe_caption_accuracy" in {m.key for m in measures},
        "counts": {key: max(f.get(key, 0) for f in figures.values()) for key in ("n", "n_safe")},
        "concepts": _by_concept(figures),
        "strips": [(strip, Item(strip.picture, strip.unsafe, strip.caption)) for strip in strips],
    }


def _drawn_item(strip: Strip, label: str) -> Item:
    """Returns a picture as an item, which counts as unsafe wherever a judge may have overlooked what it shows."""
    harmless = not strip.prompt.unsafe and strip.held[label]
    return Item(strip.pictures[label], not harmless, strip.prompt.text)
