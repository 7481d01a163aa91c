"""Describes pictures with each of several encoders in an image-to-text model, and judges the captions, in Ray actors.

A batch is described by one encoder, as a whole, so that a caption does not depend on how many actors there are.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from safeclip.artifacts import Folder
from safeclip.config import Generate, ImageToText
from safeclip.encoder.publish import weights_hash
from safeclip.errors import UserError
from safeclip.evaluation.batches import Missing, answer_batches, sources_everywhere
from safeclip.evaluation.captioner import Captioner
from safeclip.evaluation.encoders import Source, load_from
from safeclip.evaluation.swap import swap_vision_tower
from safeclip.generation.judges import TextJudge, make_text_judge


@dataclass(frozen=True)
class Batch:
    """Quadruplets whose unsafe or safe pictures are described at once: neighbouring rows of a file."""

    file: str
    start: int
    rows: int
    unsafe: bool

    @property
    def side(self) -> str:
        """The pictures' column."""
        return "unsafe_image" if self.unsafe else "safe_image"


@dataclass(frozen=True)
class Answer:
    """What became of a batch."""

    texts: list[str]
    """The captions."""
    unsafe: list[bool]
    """Of each caption, whether it says something unsafe."""
    right: list[bool] | None
    """Of each caption of a safe picture, whether it names exactly what is shown; None where the judge cannot tell,
    and for unsafe pictures."""
    judge: dict[str, Any]
    """Name, version and threshold, and the hash of the weights where it has some."""


class Describer:
    """A Ray Data actor that describes batches of pictures with the encoder that each is asked of, and judges them."""

    def __init__(
        self,
        encoders: dict[str, Source],
        folder: Folder,
        batches: list[Batch],
        settings: ImageToText,
        generate: Generate,
    ) -> None:
        """Loads the model and the judge.

        Args:
            encoders: by label, what `load_from` takes; each is loaded when it is asked for.
            folder: of the quadruplets.
            batches: of its rows.
            settings: of the model.
            generate: says which judge.
        """
        self.encoders, self.folder, self.batches, self.label = encoders, folder, batches, ""
        self.missing: dict[str, str] = {}
        try:
            # A caption may name what no quadruplet shows: the model knows more than the encoder was tuned on.
            self.captioner, self.judge = Captioner(settings), make_text_judge(generate.judges, held_out=True)
            self.identity = _identity(generate.judges.text, self.judge)
        except UserError as error:
            self.missing = dict.fromkeys(encoders, str(error))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answers a row of `encoder`, a label, and `batch`, a number: adds the answer as JSON."""
        return {**row, "answer": json.dumps(asdict(self.describe(row["encoder"], self.batches[row["batch"]])))}

    def describe(self, label: str, batch: Batch) -> Answer | Missing:
        """Returns what becomes of a batch with an encoder."""
        if label != self.label and label not in self.missing:
            self._take(label)
        if label in self.missing:
            return Missing(self.missing[label])
        columns = ["concept", "safe_caption", batch.side]
        rows = self.folder.read_table(batch.file).select(columns).slice(batch.start, batch.rows)
        try:
            texts = self.captioner.write(rows[batch.side].to_pylist())
        except UserError as error:
            return Missing(f"{self.folder.url}/{batch.file}: {error}")
        scores = self.judge.unsafe(texts, [(concept,) for concept in rows["concept"].to_pylist()])
        right = None if batch.unsafe else self.judge.says_the_same(texts, rows["safe_caption"].to_pylist())
        return Answer(texts, [score >= self.judge.threshold for score in scores], right, self.identity)

    def _take(self, label: str) -> None:
        try:
            swap_vision_tower(self.captioner.model, load_from(self.encoders[label]))
            self.label = label
        except UserError as error:
            self.missing[label] = str(error)


def _identity(name: str, judge: TextJudge) -> dict[str, Any]:
    found = {"name": name, "version": judge.version, "threshold": judge.threshold}
    network = getattr(judge, "model", None)
    return found if network is None else {**found, "hash": weights_hash(network)}


def describe_batches(
    encoders: dict[str, Source], folder: Folder, batches: list[Batch], settings: ImageToText, generate: Generate
) -> dict[str, list[Answer] | Missing]:
    """Describes all batches with each encoder. Needs a Ray that is connected; the arguments are those of `Describer`.

    Returns:
        For each encoder, by its label, the answers in the order of the batches, or why there are none.
    """
    arguments = (sources_everywhere(encoders), folder.everywhere(), batches, settings, generate)
    rows = answer_batches(Describer, arguments, encoders, len(batches), settings.resources, "image to text")
    return {label: _read([json.loads(row["answer"]) for row in own]) for label, own in rows.items()}


def _read(answers: list[dict[str, Any]]) -> list[Answer] | Missing:
    reason = next((answer["reason"] for answer in answers if "reason" in answer), None)
    return [Answer(**answer) for answer in answers] if reason is None else Missing(reason)
