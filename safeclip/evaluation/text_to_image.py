"""How safe and how able a text-to-image model is with each encoder: the same prompts, drawn from the same noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safeclip.artifacts import Folder
from safeclip.config import Config, TextToImage
from safeclip.errors import UserError
from safeclip.evaluation.batches import Missing
from safeclip.evaluation.drawing import Answer, draw_batches
from safeclip.evaluation.examples import choose_queries
from safeclip.evaluation.fidelity import clip_scores, frechet_figures
from safeclip.evaluation.prompts import Prompt, Prompts, quadruplet_prompts, read_prompts
from safeclip.evaluation.rates import Result, compare, held, join_judged, summarise
from safeclip.evaluation.reference import Reference
from safeclip.evaluation.sets import EvaluationSet

SHOWN_UNSAFE, SHOWN_SAFE = 6, 2


@dataclass(frozen=True)
class Strip:
    """A prompt, and what was drawn of it from the same noise with each encoder that could be measured."""

    prompt: Prompt
    pictures: dict[str, bytes]
    """Encoded, by the encoder's label."""
    held: dict[str, bool]
    """By the encoder's label: whether the picture of an unsafe prompt shows something unsafe; of a safe one, whether
    it shows what was asked for and nothing unsafe, or nothing unsafe where the judge cannot tell."""


class TextToImageResult(Result[Strip]):
    """Figures of prompts and what was drawn of them: those of `summarise` and `measure_fidelity`."""

    kind = "text_to_image"


def measure_text_to_image(
    config: Config,
    settings: TextToImage,
    source: EvaluationSet,
    encoders: dict[str, str | Folder],
    identities: dict[str, str],
    reference: Reference | Missing,
    cache: Folder,
) -> TextToImageResult:
    """Draws with each encoder, and judges. Needs a Ray that is connected.

    What cannot be had (a file of prompts, the model, the judge, an encoder that fits) raises nothing: the figures
    that need it say in one line why they are missing.

    Args:
        config: names the judge and the seed.
        settings: the config's `evaluate.text_to_image`.
        source: quadruplets whose captions are the prompts.
        encoders: by label, what `load_encoder` takes, or the folder of an encoder on any file system.
        identities: of the encoders, as `identify` tells them.
        reference: the base encoder's view of the set, or why the figures that need it are missing.
        cache: where answers are kept.
    """
    setting = {"model": settings.model, "steps": settings.steps, "guidance": settings.guidance}
    setting["base"] = config.train.base
    try:
        prompts = collect_prompts(config, settings, source)
    except UserError as error:
        return TextToImageResult({label: {"missing": str(error)} for label in encoders}, setting, [])
    accepted = prompts.accepted
    batches, shown = make_batches(accepted, settings.batch), choose_shown(accepted, config.seed)
    answers = draw_batches(
        encoders,
        identities,
        [[accepted[i] for i in batch] for batch in batches],
        {(accepted[i].id, accepted[i].unsafe) for i in shown},
        settings,
        config.generate,
        reference,
        cache,
    )
    order = [i for batch in batches for i in batch]
    asked = [accepted[i] for i in order]
    kind, resamples, seed = TextToImageResult.kind, config.evaluate.bootstrap, config.seed
    figures: dict[str, dict[str, Any]] = {}
    drawn: dict[str, dict[int, tuple[bytes, bool]]] = {}
    judged: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    scores: dict[str, np.ndarray | None] = {}
    for label, own in answers.items():
        if isinstance(own, Missing):
            figures[label] = {"missing": own.reason}
            continue
        judged[label] = join_judged(own)
        marked = held(np.array([p.unsafe for p in asked]), *judged[label])
        pictures = [picture for answer in own for picture in answer.pictures]
        drawn[label] = dict(zip(order, zip(pictures, marked.tolist(), strict=True), strict=True))
        scores[label], fidelity = measure_fidelity(asked, own, reference)
        summary = summarise(kind, asked, *judged[label], resamples, seed, scores[label])
        notes = [*summary.pop("notes", []), *fidelity.pop("notes", [])]
        figures[label] = {"replaced": own[0].replaced, **summary, **fidelity, "notes": notes}
        setting["judge"] = own[0].judge
    strips = [_strip(accepted[i], {label: found[i] for label, found in drawn.items()}) for i in shown if drawn]
    first = next(iter(encoders))
    differences = {
        label: compare(kind, asked, own, judged[first], resamples, seed, (scores[label], scores[first]))
        for label, own in judged.items()
        if first in judged and label != first
    }
    return TextToImageResult(figures, {**setting, "rejected": prompts.rejected}, strips, differences)


def inputs_of(config: Config, settings: TextToImage) -> list[Any]:
    """Returns what the figures depend on beside the encoders, the quadruplets and `evaluate`, as plain data."""
    made = config.generate
    inputs: list[Any] = [made.judges.of_images(), made.concepts, made.acknowledge_explicit, config.train.base]
    if settings.prompts is not None:
        try:
            own = read_prompts(settings.prompts, settings.count, config.seed, made.acknowledge_explicit)
            inputs += [[asdict(prompt) for prompt in own.accepted], own.rejected]
        except UserError as error:
            inputs.append(str(error))
    return inputs


def _strip(prompt: Prompt, found: dict[str, tuple[bytes, bool]]) -> Strip:
    return Strip(prompt, {k: bytes(v[0]) for k, v in found.items()}, {k: v[1] for k, v in found.items()})


def collect_prompts(config: Config, settings: TextToImage, source: EvaluationSet) -> Prompts:
    """Returns the prompts that the settings ask for: unsafe ones of their file, or else of the set, and safe ones.

    Raises:
        UserError: the file is of no use, or there are no prompts.
    """
    found = quadruplet_prompts(source, settings.count, config.seed)
    if settings.prompts is not None:
        acknowledged = config.generate.acknowledge_explicit
        own = read_prompts(settings.prompts, settings.count, config.seed, acknowledged)
        safe = [prompt for prompt in found.accepted if not prompt.unsafe]
        found = Prompts([*own.accepted, *safe], own.rejected)
    if not found.accepted:
        raise UserError(f"{source.folder.url}: holds no prompt that the guard accepts")
    return found


def make_batches(prompts: Sequence[Prompt], size: int) -> list[list[int]]:
    """Returns the indices of prompts in batches, each of prompts that are all unsafe or all safe, of one guidance."""
    kinds: dict[tuple[bool, float | None], list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault((prompt.unsafe, prompt.guidance), []).append(index)
    return [kind[start : start + size] for kind in kinds.values() for start in range(0, len(kind), size)]


def choose_shown(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """Draws the indices of prompts to show: unsafe ones, one a concept while there are new ones, and safe ones."""
    shown = []
    for unsafe, limit in ((True, SHOWN_UNSAFE), (False, SHOWN_SAFE)):
        rows = [i for i, prompt in enumerate(prompts) if prompt.unsafe == unsafe]
        concepts = [", ".join(prompts[i].concepts) for i in rows]
        shown += [rows[i] for i in choose_queries(concepts, seed, limit)]
    return shown


def measure_fidelity(
    prompts: Sequence[Prompt], answers: list[Answer], reference: Reference | Missing
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Returns how well pictures of safe prompts fit these, and the safe pictures of the same quadruplets.

    Args:
        prompts: what was drawn, in the order of the answers.
        answers: of all batches.
        reference: the base encoder's view of the quadruplets, or why there is none.

    Returns:
        The CLIP score of each safe prompt, shape (n,), None without safe prompts or without the base encoder; and
        what joins the encoder's figures: `frechet_distance`, or `notes` or `lacking` on what is missing and why.
    """
    safe = [p.id for p in prompts if not p.unsafe]
    if not safe:
        return None, {}
    if not isinstance(reference, Missing):
        reference = next((Missing(a.unread) for a in answers if a.unread is not None), reference)
    if isinstance(reference, Missing):
        return None, {"lacking": {"fidelity": f"clip_score and frechet_distance are missing: {reference.reason}"}}
    features = np.array([row for answer in answers for row in answer.features], np.float32)
    texts, images = reference.of(safe)
    return clip_scores(features, texts), frechet_figures(images, features)
