"""The pairs that the toxifier is first trained on: a safe caption, its unsafe version, the concept, what is asked."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from safeclip import guard
from safeclip.concepts import CONCEPTS, check_concepts
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.generation.sources import read_lines
from safeclip.records import row_share

FEWEST = 8  # usable pairs
_NAMED = 5  # bad lines in a message
Row = TypeVar("Row")


@dataclass(frozen=True)
class Pair:
    """A safe caption and its unsafe version."""

    safe: str
    unsafe: str
    concept: str
    asked: str
    """What the LLM is asked for: a term of the concept, or the concept."""


@dataclass(frozen=True)
class BadPair:
    """A line that is no usable pair. Its text is not kept."""

    line: int
    reason: str


@dataclass(frozen=True)
class Pairs:
    """All pairs of a source, split by a hash."""

    train: list[Pair]
    validation: list[Pair]
    bad: list[BadPair]

    def summary(self) -> dict[str, Any]:
        """Returns what a manifest says of them: numbers, the bad lines, and a hash of the usable ones."""
        usable = [[asdict(pair) for pair in part] for part in (self.train, self.validation)]
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "bad": [asdict(each) for each in self.bad],
            "hash": hashlib.sha256(json.dumps(usable).encode()).hexdigest()[:16],
        }


def read_pairs(config: Config) -> Pairs:
    """Reads the pairs that `toxifier.pairs` names.

    Args:
        config: `toxifier` says where they are and how they are split, `generate` which concepts there are.

    Raises:
        UserError: the file is missing or no text, or fewer than eight pairs are usable; the message names bad lines.
    """
    settings = config.toxifier
    rows = world_pairs(config) if settings.pairs == "world" else read_lines("toxifier.pairs", settings.pairs)
    pairs: dict[str, Pair] = {}
    bad = []
    for line, row in enumerate(rows, 1):
        pair = _pair(row, config.generate.acknowledge_explicit)
        reason = pair if isinstance(pair, str) else "a line before has the same" if _key(pair) in pairs else None
        if reason is not None:
            bad.append(BadPair(line, reason))
        elif isinstance(pair, Pair):
            pairs[_key(pair)] = pair
    if len(pairs) < FEWEST:
        raise UserError(
            f"toxifier.pairs: {settings.pairs} has {len(pairs)} usable pairs, fewer than {FEWEST}{told(bad)}"
        )
    usable = list(pairs.values())
    return Pairs(*hold_out(usable, settings.validation, lambda p: row_share(config.seed, "toxifier", p.safe)), bad)


def hold_out(rows: list[Row], share: float, place: Callable[[Row], float]) -> tuple[list[Row], list[Row]]:
    """Splits rows into those to train on and those that only measure, one at least.

    Args:
        rows: what to split.
        share: of the rows that measure.
        place: a number in [0, 1) of a row's own, such as `row_share`; the lowest measure, so that an added row moves
            hardly any other. Rows of the same place stay together.
    """
    ordered = sorted(rows, key=place)
    held = max(1, round(share * len(ordered)))
    while held < len(ordered) and place(ordered[held]) == place(ordered[held - 1]):
        held += 1
    return ordered[held:], ordered[:held]


def told(bad: list[BadPair]) -> str:
    """Returns the bad lines as the end of a sentence, the first few in full."""
    if not bad:
        return ""
    named = "; ".join(f"line {each.line}: {each.reason}" for each in bad[:_NAMED])
    return f" ({named}{f'; and {len(bad) - _NAMED} more' if len(bad) > _NAMED else ''})"


def _key(pair: Pair) -> str:
    return f"{pair.safe}\0{pair.unsafe}"


def _pair(row: Any, acknowledge_explicit: bool) -> Pair | str:
    """Returns a line's pair, or why it is none."""
    if isinstance(row, Pair):
        return row
    if not row.strip():
        return "empty line"
    try:
        entry = json.loads(row)
    except ValueError:
        return "broken JSON"
    if not isinstance(entry, dict):
        return "must be an object with safe, unsafe and concept"
    values = {}
    for name in ("safe", "unsafe", "concept"):
        value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            return f"{name} is empty" if value == "" or isinstance(value, str) else f"{name} is missing or no text"
        values[name] = " ".join(value.split())
    asked = entry.get("asked", values["concept"])
    if not isinstance(asked, str) or not asked.strip():
        return "asked is empty or no text"
    pair = Pair(**values, asked=asked.strip())
    if pair.concept not in CONCEPTS:
        return "concept is unknown"
    if pair.safe == pair.unsafe:
        return "both sides are the same"
    if dropped := guard.check_pair(pair.safe, pair.concept, f"{pair.unsafe}\n{pair.asked}"):
        return dropped
    try:
        check_concepts([pair.concept], acknowledge_explicit, "concept")
    except UserError as error:
        return str(error)
    if refused := guard.check_asked(pair.asked, pair.concept, acknowledge_explicit):
        return f"asked: {refused}"
    texts = () if acknowledge_explicit else (pair.safe, pair.unsafe)
    return guard.EXPLICIT if any(guard.is_sexual(text, pair.concept) for text in texts) else pair


def world_pairs(config: Config) -> list[Pair]:
    """Makes pairs by the world's grammar: an unsafe object in the place of one of the two that a caption names.

    Each request is answered twice, once with each place: were it once, the LLM would learn by heart which place it
    was, and its validation loss would rise while its answers get better. They depend on the run's seed. Their scenes
    are none that tests are kept for, and their terms those of `generate.toxify.terms`.
    """
    from safeclip.world import scenes

    concepts, terms = config.generate.concepts, config.generate.toxify.terms
    drawn = scenes.sample_scenes(
        -(-config.toxifier.count // 2), _SEED + config.seed, scenes.object_names(safe=True), reserved=False
    )
    pairs = []
    for number in range(config.toxifier.count):
        request, side = divmod(number, 2)
        scene, concept = drawn[request], concepts[request % len(concepts)]
        known = terms.get(concept) or [concept]
        asked = known[request // len(concepts) % len(known)]
        objects = tuple(asked if place == side else name for place, name in enumerate(scene.objects))
        safe = scenes.caption(scene)
        unsafe = scenes.caption(scenes.Scene(objects, scene.background, scene.seed), scenes.template_of(scene))
        pairs.append(Pair(safe, unsafe, concept, asked))
    return pairs


_SEED = 7_000_000  # keeps the draw apart from that of a run's captions
