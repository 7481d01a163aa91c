"""How safe and how able an image-to-text model is with each encoder: the same pictures, described greedily."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from safeclip.artifacts import Folder
from safeclip.config import Config, ImageToText
from safeclip.evaluation.batches import Missing
from safeclip.evaluation.captioning import Answer, Batch, describe_batches, drop_reasons
from safeclip.evaluation.examples import choose_queries
from safeclip.evaluation.rates import Result, compare, held, join_judged, summarise
from safeclip.evaluation.sets import EvaluationSet

SHOWN_UNSAFE, SHOWN_SAFE = 6, 2


@dataclass(frozen=True)
class Picture:
    """A picture to describe: a side of a quadruplet."""

    file: str
    row: int
    unsafe: bool
    concept: str
    """Of the quadruplet."""

    @property
    def concepts(self) -> tuple[str]:
        """As prompts have them."""
        return (self.concept,)


@dataclass(frozen=True)
class Strip:
    """A picture, and how it was described with each encoder that could be measured."""

    picture: bytes
    """Encoded."""
    unsafe: bool
    concept: str
    caption: str
    """The quadruplet's."""
    texts: dict[str, str]
    """By the encoder's label."""
    held: dict[str, bool]
    """By the encoder's label: whether the text says something unsafe of an unsafe picture; of a safe one, whether it
    names exactly what is shown, or says nothing unsafe where the judge cannot tell."""


class ImageToTextResult(Result[Strip]):
    """Figures of pictures and what was said of them."""

    kind = "image_to_text"


def measure_image_to_text(
    config: Config,
    settings: ImageToText,
    source: EvaluationSet,
    encoders: dict[str, str | Folder],
    identities: dict[str, str],
    cache: Folder,
) -> ImageToTextResult:
    """Describes the set's pictures with each encoder, and judges. Needs a Ray that is connected.

    What cannot be had (the set, the model, the judge, an encoder that fits) raises nothing: the figures that need it
    say in one line why they are missing.

    Args:
        config: names the judge and the seed.
        settings: the config's `evaluate.image_to_text`.
        source: quadruplets whose pictures are described.
        encoders: by label, what `load_encoder` takes, or the folder of an encoder on any file system.
        identities: of the encoders, as `identify` tells them.
        cache: where answers are kept.
    """
    setting: dict[str, Any] = {"model": settings.model, "prompt": settings.prompt, "max_tokens": settings.max_tokens}
    batches, pictures, setting["rejected"] = make_batches(source, settings.count, settings.batch)
    if not batches:
        dropped = " that the guard accepts" if setting["rejected"] else ""
        reason = f"{source.folder.url}: holds no quadruplets{dropped}"
        return ImageToTextResult({label: {"missing": reason} for label in encoders}, setting, [])
    answers = describe_batches(encoders, identities, source.folder, batches, settings, config.generate, cache)
    kind, resamples, seed = ImageToTextResult.kind, config.evaluate.bootstrap, config.seed
    figures: dict[str, dict[str, Any]] = {}
    measured: dict[str, list[Answer]] = {}
    said: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    for label, own in answers.items():
        if isinstance(own, Missing):
            figures[label] = {"missing": own.reason}
            continue
        measured[label], setting["judge"] = own, own[0].judge
        said[label] = join_judged(own)
        summary = summarise(kind, pictures, *said[label], resamples, seed)
        figures[label] = {"replaced": "vision_tower", **summary}
    first = said.pop(next(iter(encoders)), None)
    differences = {
        label: compare(kind, pictures, own, first, resamples, seed)
        for label, own in said.items()
        if first is not None
    }
    return ImageToTextResult(figures, setting, _strips(source, pictures, measured, seed), differences)


def make_batches(source: EvaluationSet, count: int, size: int) -> tuple[list[Batch], list[Picture], dict[str, int]]:
    """Returns the pictures of a set's first quadruplets, unsafe ones and then safe ones of each file, in batches.

    Args:
        source: the set.
        count: how many quadruplets at most.
        size: pictures in a batch at most.

    Returns:
        The batches, the pictures in their order, and how many the guard leaves out for each reason.
    """
    batches: list[Batch] = []
    rejected: Counter[str] = Counter()
    pictures: list[Picture] = []
    left = count
    for file in source.files:
        rows = source.folder.read_table(file, ["concept", "safe_caption", "unsafe_caption"]).slice(0, left)
        concepts, reasons = rows["concept"].to_pylist(), drop_reasons(rows)
        left -= len(concepts)
        for unsafe in (True, False):
            starts = [s for s in range(0, len(concepts), size) if None in reasons[s : s + size]]
            rejected.update(reason for reason in reasons if reason is not None)
            batches += [Batch(file, start, min(size, len(concepts) - start), unsafe) for start in starts]
            left_in = [row for row, reason in enumerate(reasons) if reason is None]
            pictures += [Picture(file, row, unsafe, concepts[row]) for row in left_in]
        if not left:
            break
    return batches, pictures, dict(rejected)


def _strips(
    source: EvaluationSet, pictures: list[Picture], measured: dict[str, list[Answer]], seed: int
) -> list[Strip]:
    """Draws pictures to show, one a concept while there are new ones; none with a caption that the guard drops."""
    if not measured:
        return []
    texts = {label: [t for a in own for t in a.texts] for label, own in measured.items()}
    asked = np.array([p.unsafe for p in pictures])
    marked = {label: held(asked, *join_judged(own)) for label, own in measured.items()}
    shown: list[int] = []
    for unsafe, limit in ((True, SHOWN_UNSAFE), (False, SHOWN_SAFE)):
        rows = [i for i, p in enumerate(pictures) if p.unsafe == unsafe]
        rows = [i for i in rows if all(own[i] is not None for own in texts.values())]
        shown += [rows[i] for i in choose_queries([pictures[i].concept for i in rows], seed, limit)]
    tables = {file: source.folder.read_table(file) for file in {pictures[i].file for i in shown}}
    strips = []
    for i in shown:
        picture = pictures[i]
        row = tables[picture.file].slice(picture.row, 1).to_pylist()[0]
        image, caption = (row[f"{'unsafe' if picture.unsafe else 'safe'}_{half}"] for half in ("image", "caption"))
        told = {label: str(own[i]) for label, own in texts.items()}
        marks = {label: bool(own[i]) for label, own in marked.items()}
        strips.append(Strip(image, picture.unsafe, picture.concept, caption, told, marks))
    return strips
