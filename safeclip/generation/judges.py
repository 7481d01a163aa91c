"""Who decides whether a text or a picture is what was asked for: the world's judges, and a frozen CLIP's.

A judge returns a verdict for each row: a score in [0, 1], and the reason for a rejection.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from safeclip.config import Judges
from safeclip.device import reserved_device
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder
from safeclip.errors import UserError

NEUTRAL = ("an ordinary harmless picture", "a picture of an everyday scene", "a friendly and peaceful picture")


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one row."""

    score: float
    """In [0, 1]; how sure the judge is that the row is what was asked for."""
    reason: str | None
    """Why the row is rejected; None where it is accepted."""


class TextJudge(Protocol):
    """Judges rewritten captions, and captions that a model wrote of pictures."""

    version: str
    threshold: float
    """Score from which it takes a text for what it looks for."""

    def __call__(self, sources: list[str], texts: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each text as an unsafe version, in its concept, of its source."""
        ...

    def unsafe(self, texts: list[str], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns how sure the judge is, in [0, 1], that each text says something unsafe.

        Args:
            texts: whatever they were meant to say.
            concepts: of each one, what to look for. The world's judge ignores this: it looks for everything unsafe.
        """
        ...

    def says_the_same(self, texts: list[str], captions: list[str]) -> list[bool] | None:
        """Returns whether each text names what its safe caption names and nothing else; None if it cannot tell."""
        ...


class ImageJudge(Protocol):
    """Judges drawn pictures."""

    version: str
    threshold: float
    """Score from which it takes a picture for what it looks for."""
    reads_captions: bool
    """Whether it can tell that a picture shows what its caption says."""

    @property
    def model(self) -> torch.nn.Module:
        """The network that it sees with."""
        ...

    def __call__(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each encoded picture as an illustration of its unsafe caption in its concept."""
        ...

    def harmless(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each encoded picture as an illustration of its safe caption, which shows nothing of the concept."""
        ...

    def unsafe(self, images: list[bytes], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns how sure the judge is, in [0, 1], that each encoded picture shows something unsafe.

        Args:
            images: the pictures, whatever they were meant to show.
            concepts: of each one, what to look for. The world's judge ignores this: it looks for everything unsafe.
        """
        ...


class WorldTextJudge:
    """Reads a text for the world's objects: one unsafe one of the concept, one of the source, the same background."""

    version = "world vocabulary 1"
    threshold = 1.0

    def __init__(self, held_out: bool = False) -> None:
        """Sets the rules.

        Args:
            held_out: whether a text may name the objects that no quadruplet shows.
        """
        self.held_out = held_out

    def __call__(self, sources: list[str], texts: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each text; the score is 1 or 0."""
        reasons = [self._reason(*row) for row in zip(sources, texts, concepts, strict=True)]
        return [Verdict(float(r is None), r) for r in reasons]

    def unsafe(self, texts: list[str], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns 1 for each text that names an unsafe object, of whatever concept."""
        from safeclip.world import scenes

        return [float(any(map(scenes.concept_of, scenes.objects_named(text)))) for text in texts]

    def says_the_same(self, texts: list[str], captions: list[str]) -> list[bool]:
        """Returns whether each text names exactly the objects that its caption names."""
        from safeclip.world.scenes import objects_named

        return [set(objects_named(t)) == set(objects_named(c)) for t, c in zip(texts, captions, strict=True)]

    def _reason(self, source: str, text: str, concept: str) -> str | None:
        from safeclip.world import scenes

        named = scenes.objects_named(text)
        unsafe = [n for n in named if scenes.concept_of(n)]
        if not self.held_out and scenes.HELD_OUT_OBJECTS & set(named):
            return "names a held-out object"
        if concept not in map(scenes.concept_of, unsafe):
            return "not unsafe in the concept"
        if len(named) != 2:
            return "does not name two objects"
        if not set(named) - set(unsafe) or not set(named) - set(unsafe) <= set(scenes.objects_named(source)):
            return "keeps no object of the source"
        if scenes.background_named(text) != scenes.background_named(source):
            return "another background"
        return None


class WorldImageJudge:
    """Names a picture's objects by the world's classifier: all that the caption names must be seen."""

    version = "world judge 1"
    reads_captions = True

    def __init__(self, threshold: float) -> None:
        from safeclip.world import WEIGHTS, models, scenes

        self.model = models.load_weights(models.build_judge(), WEIGHTS / "judge.safetensors")
        self.index = {name: i for i, name in enumerate(scenes.object_names())}
        self.named, self.concept_of = scenes.objects_named, scenes.concept_of
        self.size = scenes.IMAGE_SIZE
        self.threshold = threshold

    @torch.inference_mode()
    def probabilities(self, images: list[bytes]) -> np.ndarray:
        """Returns how probable each of the world's objects is in each picture, (n, objects)."""
        pixels = np.stack([np.asarray(_decode(image, self.size)) for image in images])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.cat([self.model(part).sigmoid() for part in batch.split(64)]).numpy()

    def __call__(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each picture; the score is the probability of the object seen least."""
        return self._verdicts(self.probabilities(images), captions)

    def harmless(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each picture in the same way, and rejects one that shows an unsafe object besides."""
        seen = self.probabilities(images)
        return [
            Verdict(verdict.score, "shows an unsafe object" if worst >= self.threshold else verdict.reason)
            for verdict, worst in zip(self._verdicts(seen, captions), self._worst(seen), strict=True)
        ]

    def unsafe(self, images: list[bytes], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns for each picture the probability of the unsafe object seen most, of whatever concept."""
        return self._worst(self.probabilities(images))

    def _worst(self, probabilities: np.ndarray) -> list[float]:
        unsafe = [number for name, number in self.index.items() if self.concept_of(name)]
        return probabilities[:, unsafe].max(1).tolist()

    def _verdicts(self, probabilities: np.ndarray, captions: list[str]) -> list[Verdict]:
        verdicts = []
        for row, caption in zip(probabilities, captions, strict=True):
            seen = {name: float(row[self.index[name]]) for name in self.named(caption)}
            missing = [name for name, p in seen.items() if p < self.threshold]
            score = min(seen.values(), default=0.0)
            verdicts.append(Verdict(score, "an object is not seen" if missing or not seen else None))
        return verdicts


class ClipJudge:
    """Compares rows with descriptions of their concept and neutral ones in a frozen CLIP.

    In the manner of Q16 (Schramowski et al., 2022): a softmax over cosine similarities, scaled by 100, of the row
    with the concept's description and the neutral ones. The CLIP is the untouched one, never the tuned one.
    """

    def __init__(self, source: str, threshold: float) -> None:
        try:
            self.encoder = load_encoder(source, reserved_device())
        except UserError as error:
            raise UserError(f"generate.judges.clip_model: {error}") from error
        self.source, self.threshold = source, threshold
        self.version = clip_version(source)
        self.neutral = self.encoder.encode_texts(list(NEUTRAL))
        self.known: dict[str, np.ndarray] = {}

    def _described(self, concept: str) -> np.ndarray:
        if concept not in self.known:
            self.known[concept] = self.encoder.encode_texts([f"a picture that shows {concept}"])[0]
        return self.known[concept]

    @property
    def model(self) -> torch.nn.Module:
        """The frozen CLIP."""
        return self.encoder.model

    def _score(self, row: np.ndarray, concept: str) -> float:
        logits = 100 * np.concatenate([[row @ self._described(concept)], self.neutral @ row])
        return float(1 / np.exp(logits - logits[0]).sum())

    def _highest(self, rows: np.ndarray, concepts: list[tuple[str, ...]]) -> list[float]:
        return [max(self._score(row, c) for c in asked) for row, asked in zip(rows, concepts, strict=True)]

    def _judge(self, rows: np.ndarray, concepts: list[str]) -> list[Verdict]:
        scores = [self._score(row, concept) for row, concept in zip(rows, concepts, strict=True)]
        return [Verdict(s, None if s >= self.threshold else "not unsafe in the concept") for s in scores]


class ClipTextJudge(ClipJudge):
    """A frozen CLIP's word on texts."""

    def __call__(self, sources: list[str], texts: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each text by its concept."""
        return self._judge(self.encoder.encode_texts(texts), concepts)

    def unsafe(self, texts: list[str], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns each text's score in that of its concepts that it speaks of most."""
        return self._highest(self.encoder.encode_texts(texts), concepts)

    def says_the_same(self, texts: list[str], captions: list[str]) -> None:
        """Cannot tell: a text that is near to a caption need not say the same."""


class ClipImageJudge(ClipJudge):
    """A frozen CLIP's word on pictures."""

    reads_captions = False

    def __call__(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each picture by its concept."""
        return self._judge(self.encoder.encode_images(images), concepts)

    def harmless(self, images: list[bytes], captions: list[str], concepts: list[str]) -> list[Verdict]:
        """Judges each picture by its concept, which it must not show."""
        found = self(images, captions, concepts)
        return [Verdict(1 - v.score, "unsafe in the concept" if v.reason is None else None) for v in found]

    def unsafe(self, images: list[bytes], concepts: list[tuple[str, ...]]) -> list[float]:
        """Returns each picture's score in that of its concepts that it shows most."""
        return self._highest(self.encoder.encode_images(images), concepts)


def _decode(image: bytes, size: int) -> Image.Image:
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    return picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BICUBIC)


def clip_version(source: str) -> str:
    """Returns the version of the judges that see with a CLIP."""
    return f"zero-shot prompts 1 on {source}"


def judge_versions(settings: Judges) -> dict[str, str]:
    """Returns the versions of the judges of `texts` and `pictures` that the config names, and loads none."""
    by_clip = clip_version(str(settings.clip_model))
    return {
        "texts": WorldTextJudge.version if settings.text == "world" else by_clip,
        "pictures": WorldImageJudge.version if settings.image == "world" else by_clip,
    }


def make_text_judge(settings: Judges, held_out: bool = False) -> TextJudge:
    """Returns the text judge that the config names.

    Args:
        settings: which judge, and its threshold.
        held_out: whether texts may name what no quadruplet shows; only the world's judge minds.
    """
    makers: dict[str, Callable[[], TextJudge]] = {
        "world": lambda: WorldTextJudge(held_out),
        "clip": lambda: ClipTextJudge(str(settings.clip_model), settings.text_threshold),
    }
    return makers[settings.text]()


def encoder_beside(judge: TextJudge, source: str) -> Encoder:
    """Returns an untouched encoder: the one that a judge sees with, or another where it does not see with that one.

    Args:
        judge: whoever it is.
        source: of the encoder, as `load_encoder` takes it.

    Raises:
        UserError: it cannot be loaded.
    """
    if isinstance(judge, ClipJudge) and judge.source == source:
        return judge.encoder
    return load_encoder(source, reserved_device())


def make_image_judge(settings: Judges) -> ImageJudge:
    """Returns the picture judge that the config names."""
    makers: dict[str, Callable[[], ImageJudge]] = {
        "world": lambda: WorldImageJudge(settings.image_threshold),
        "clip": lambda: ClipImageJudge(str(settings.clip_model), settings.image_threshold),
    }
    return makers[settings.image]()
