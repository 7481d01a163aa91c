"""Draws prompts with each of several encoders in a text-to-image model, and judges the pictures, in Ray Data actors.

Pictures of safe prompts are embedded, too: by the base encoder, whichever drew them.

A batch is drawn by one encoder, as a whole, so that a picture does not depend on how many actors there are.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from safeclip.artifacts import Folder, hash_of
from safeclip.config import Generate, TextToImage
from safeclip.encoder.load import load_from
from safeclip.encoder.model import Encoder
from safeclip.encoder.publish import weights_hash
from safeclip.errors import UserError
from safeclip.evaluation.batches import Missing, answer_batches
from safeclip.evaluation.encoders import Source
from safeclip.evaluation.prompts import Prompt
from safeclip.evaluation.reference import Reference
from safeclip.evaluation.swap import swap_text_encoder
from safeclip.generation.illustrate import MARK, encode_picture
from safeclip.generation.judges import ImageJudge, judge_versions, make_image_judge
from safeclip.generation.painter import Painter
from safeclip.generation.redraw import MARK as SAFE_MARK
from safeclip.generation.weights import model_hash


@dataclass(frozen=True)
class Answer:
    """What became of a batch."""

    unsafe: list[bool]
    """Of each picture, whether it shows something unsafe."""
    right: list[bool] | None
    """Of each picture of a safe prompt, whether it shows what was asked for and nothing unsafe; None where the judge
    cannot tell, and for unsafe prompts."""
    pictures: list[bytes]
    """Encoded; empty where the picture is not wanted."""
    replaced: str
    """The part of the model that the encoder replaced."""
    judge: dict[str, Any]
    """Name, version, hash of the weights, and threshold."""
    features: list[list[float]]
    """The base encoder's embedding of the picture of each safe prompt, of unit length; none of unsafe prompts."""
    unread: str | None
    """Why the pictures of safe prompts have no features, where they have none."""


class Drawer:
    """A Ray Data actor that draws batches of prompts with the encoder that each is asked of, and judges them."""

    def __init__(
        self,
        encoders: dict[str, str | Folder],
        batches: list[list[Prompt]],
        shown: set[tuple[str, bool]],
        settings: TextToImage,
        generate: Generate,
        base: Source | Missing,
    ) -> None:
        """Loads the model and the judge.

        Args:
            encoders: by label, what `load_from` takes; each is loaded when it is asked for.
            batches: of prompts that are all unsafe or all safe, and of the same guidance.
            shown: id and unsafety of the prompts whose pictures are wanted.
            settings: of the model.
            generate: says which judge, and what it looks for in the picture of a safe prompt, and of one without
                concepts.
            base: what `load_from` takes for the base encoder, or why the pictures are not embedded.
        """
        self.encoders, self.batches, self.shown = encoders, batches, shown
        self.quality, self.concepts = settings.quality, tuple(generate.concepts)
        self.label, self.replaced = "", ""
        self.missing: dict[str, str] = {}
        try:
            self.painter, self.judge = Painter(settings), make_image_judge(generate.judges)
            self.identity = _identity(generate.judges.image, self.judge)
        except (UserError, FileNotFoundError) as error:
            self.missing = dict.fromkeys(encoders, str(error))
            return
        self.base = base if isinstance(base, Missing) else _load(base, self.painter.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answers a row for `answer_batches`: adds pictures, and the rest as JSON."""
        found = self.draw(row["encoder"], self.batches[row["batch"]])
        if isinstance(found, Missing):
            return {**row, "whole": False, "pictures": [b""], "answer": json.dumps(asdict(found))}
        answer = json.dumps({**asdict(found), "pictures": []})
        return {**row, "whole": found.unread is None, "pictures": found.pictures, "answer": answer}

    def draw(self, label: str, batch: list[Prompt]) -> Answer | Missing:
        """Returns what becomes of a batch with an encoder."""
        if label != self.label and label not in self.missing:
            self._take(label)
        if label in self.missing:
            return Missing(self.missing[label])
        unsafe = batch[0].unsafe
        drawn = self.painter.draw([p.text for p in batch], [p.seed for p in batch], batch[0].guidance)
        images = [encode_picture(picture, self.quality, MARK if unsafe else SAFE_MARK) for picture in drawn]
        scores = self.judge.unsafe(images, [(unsafe and p.concepts) or self.concepts for p in batch])
        shows_unsafe = [score >= self.judge.threshold for score in scores]
        right = self._show_asked(images, batch) if self.judge.reads_captions and not unsafe else None
        wanted = [(p.id, p.unsafe) in self.shown for p in batch]
        pictures = [image if keep else b"" for image, keep in zip(images, wanted, strict=True)]
        features, unread = ([], None) if unsafe else self._features(images)
        return Answer(shows_unsafe, right, pictures, self.replaced, self.identity, features, unread)

    def _features(self, images: list[bytes]) -> tuple[list[list[float]], str | None]:
        if isinstance(self.base, Missing):
            return [], self.base.reason
        return self.base.encode_images(images).tolist(), None

    def _take(self, label: str) -> None:
        try:
            self.replaced = swap_text_encoder(self.painter.pipeline, load_from(self.encoders[label]))
            self.label = label
        except UserError as error:
            self.missing[label] = str(error)

    def _show_asked(self, images: list[bytes], batch: list[Prompt]) -> list[bool]:
        verdicts = self.judge.harmless(images, [p.text for p in batch], [p.concepts[0] for p in batch])
        return [verdict.reason is None for verdict in verdicts]


def _load(base: Source, device: str) -> Encoder | Missing:
    try:
        return load_from(base, device)
    except UserError as error:
        return Missing(str(error))


def _identity(name: str, judge: ImageJudge) -> dict[str, Any]:
    hashed = weights_hash(judge.model)
    return {"name": name, "version": judge.version, "hash": hashed, "threshold": judge.threshold}


def draw_batches(
    encoders: dict[str, str | Folder],
    identities: dict[str, str],
    batches: list[list[Prompt]],
    shown: set[tuple[str, bool]],
    settings: TextToImage,
    generate: Generate,
    reference: Reference | Missing,
    cache: Folder,
) -> dict[str, list[Answer] | Missing]:
    """Draws all batches with each encoder. Needs a Ray that is connected.

    Args:
        encoders: as for `Drawer`, as all that is not told here.
        identities: of the encoders, as `identify` tells them.
        batches: of prompts.
        shown: prompts whose pictures are wanted.
        settings: of the model.
        generate: says which judge.
        reference: has the base encoder, or why the pictures are not embedded.
        cache: where answers are kept.

    Returns:
        For each encoder, by its label, the answers in the order of the batches, or why there are none.
    """
    base, identity = (reference, "") if isinstance(reference, Missing) else (reference.encoder, reference.identity)
    made = settings.model_dump(exclude={"prompts", "count", "batch", "resources"})
    judges = generate.judges
    judged = [judges.of_images(), judge_versions(judges)["pictures"], model_hash(str(judges.clip_model))]
    made_from = [made, model_hash(settings.model), judged, generate.concepts, identity]
    asked = [[[asdict(p), (p.id, p.unsafe) in shown] for p in batch] for batch in batches]
    names = {label: [hash_of("text to image", identities[label], made_from, a) for a in asked] for label in encoders}
    arguments = (encoders, batches, shown, settings, generate, base)
    rows = answer_batches(Drawer, arguments, names, settings.resources, "text to image", cache)
    return {label: _read(own) for label, own in rows.items()}


def _read(rows: list[dict[str, Any]]) -> list[Answer] | Missing:
    found = [(json.loads(row["answer"]), row["pictures"]) for row in rows]
    reason = next((answer["reason"] for answer, _ in found if "reason" in answer), None)
    if reason is not None:
        return Missing(reason)
    return [Answer(**{**answer, "pictures": pictures}) for answer, pictures in found]
