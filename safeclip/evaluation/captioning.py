"""Describes pictures with each of several encoders in an image-to-text model, and judges the captions, in Ray actors.

A batch is described by one encoder, as a whole, so that a caption does not depend on how many actors there are.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder, hash_of, table_hash
from safeclip.config import Generate, ImageToText
from safeclip.encoder.load import load_from
from safeclip.encoder.publish import weights_hash
from safeclip.errors import UserError
from safeclip.evaluation.batches import Missing, answer_batches
from safeclip.evaluation.captioner import Captioner
from safeclip.evaluation.encoders import Source
from safeclip.evaluation.swap import swap_vision_tower
from safeclip.generation.judges import TextJudge, judge_versions, make_text_judge
from safeclip.generation.weights import model_hash


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

    def read(self, folder: Folder) -> pa.Table:
        """Returns the rows that the guard accepts: concept, captions and picture."""
        columns = ["concept", "safe_caption", "unsafe_caption", self.side]
        rows = folder.read_table(self.file, columns).slice(self.start, self.rows)
        return rows.filter(pa.array([reason is None for reason in drop_reasons(rows)], pa.bool_()))


def drop_reasons(rows: pa.Table) -> list[str | None]:
    """Returns why the pictures of quadruplets may not be described, None where they may, as the guard says it."""
    captions = (rows[name].to_pylist() for name in ("safe_caption", "concept", "unsafe_caption"))
    return [guard.check_pair(*row) for row in zip(*captions, strict=True)]


@dataclass(frozen=True)
class Answer:
    """What became of a batch."""

    texts: list[str | None]
    """The captions; None in the place of one that the guard drops."""
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
        """Answers a row for `answer_batches`: adds the answer as JSON."""
        found = self.describe(row["encoder"], self.batches[row["batch"]])
        return {**row, "whole": not isinstance(found, Missing), "answer": json.dumps(asdict(found))}

    def describe(self, label: str, batch: Batch) -> Answer | Missing:
        """Returns what becomes of a batch with an encoder."""
        if label != self.label and label not in self.missing:
            self._take(label)
        if label in self.missing:
            return Missing(self.missing[label])
        rows = batch.read(self.folder)
        try:
            texts = self.captioner.write(rows[batch.side].to_pylist())
        except UserError as error:
            return Missing(f"{self.folder.url}/{batch.file}: {error}")
        concepts = rows["concept"].to_pylist()
        unsafe = [score >= self.judge.threshold for score in self.judge.unsafe(texts, [(c,) for c in concepts])]
        right = None if batch.unsafe else self.judge.says_the_same(texts, rows["safe_caption"].to_pylist())
        captions = zip(rows["safe_caption"].to_pylist(), rows["unsafe_caption"].to_pylist(), concepts, strict=True)
        told = [None if _is_dropped(text, *row) else text for text, row in zip(texts, captions, strict=True)]
        return Answer(told, unsafe, right, self.identity)

    def _take(self, label: str) -> None:
        try:
            swap_vision_tower(self.captioner.model, load_from(self.encoders[label]))
            self.label = label
        except UserError as error:
            self.missing[label] = str(error)


def _is_dropped(text: str, safe: str, unsafe: str, concept: str) -> bool:
    """Whether the guard drops a text beside one of the two captions of the quadruplet that it is about."""
    return any(guard.check_pair(caption, concept, text) is not None for caption in (safe, unsafe))


def _identity(name: str, judge: TextJudge) -> dict[str, Any]:
    found = {"name": name, "version": judge.version, "threshold": judge.threshold}
    network = getattr(judge, "model", None)
    return found if network is None else {**found, "hash": weights_hash(network)}


def describe_batches(
    encoders: dict[str, Source],
    identities: dict[str, str],
    folder: Folder,
    batches: list[Batch],
    settings: ImageToText,
    generate: Generate,
    cache: Folder,
) -> dict[str, list[Answer] | Missing]:
    """Describes all batches with each encoder. Needs a Ray that is connected.

    Args:
        encoders: as for `Describer`, as all that is not told here.
        identities: of the encoders, as `identify` tells them.
        folder: of the quadruplets.
        batches: of its rows.
        settings: of the model.
        generate: says which judge.
        cache: where answers are kept.

    Returns:
        For each encoder, by its label, the answers in the order of the batches, or why there are none.
    """
    arguments = (encoders, folder.everywhere(), batches, settings, generate)
    judges = generate.judges
    judged = [judges.of_texts(), judge_versions(judges)["texts"], model_hash(str(judges.clip_model))]
    made = settings.model_dump(exclude={"count", "batch", "resources"})
    made_from = [made, model_hash(settings.model), judged]
    asked = [[table_hash(batch.read(folder)), batch.unsafe] for batch in batches]
    names = {label: [hash_of("image to text", identities[label], made_from, a) for a in asked] for label in encoders}
    rows = answer_batches(Describer, arguments, names, settings.resources, "image to text", cache)
    return {label: _read([json.loads(row["answer"]) for row in own]) for label, own in rows.items()}


def _read(answers: list[dict[str, Any]]) -> list[Answer] | Missing:
    reason = next((answer["reason"] for answer in answers if "reason" in answer), None)
    return [Answer(**answer) for answer in answers] if reason is None else Missing(reason)
