"""Preferences for DPO: candidates of the supervised model, scored; of each caption, the best and a worse one."""

import functools
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder, Stage, hash_of, read_manifest
from safeclip.config import Config, Preferences
from safeclip.errors import UserError
from safeclip.generation.judges import TextJudge, encoder_beside, make_text_judge
from safeclip.generation.llm import LanguageModel, Request, adapter_hash
from safeclip.generation.toxify import asked_for, conversation
from safeclip.generation.units import first_units, plan_units, remove_others, run_units, summary_of
from safeclip.records import row_seed, row_share
from safeclip.toxifier.pairs import FEWEST

CANDIDATE = pa.struct([
    ("text", pa.string()),  # null where the guard dropped it
    ("unsafe", pa.float32()),  # the judge's score in the concept; 0 where it rejects the text
    ("kept", pa.float32()),  # cosine to the source in the untouched text encoder
    ("kept_objects", pa.float32()),  # share of the source's objects that are named; null outside the world
    ("fluent", pa.bool_()),  # length and repetition within bounds
    ("score", pa.float32()),  # weighted sum of the above
    ("reject", pa.string()),  # why the judge or the guard rejects it
])  # fmt: skip

PREFERENCE = pa.schema([
    ("id", pa.string()),
    ("concept", pa.string()),
    ("asked", pa.string()),  # the term asked for
    ("safe_caption", pa.string()),
    ("candidates", pa.list_(CANDIDATE)),
    ("chosen", pa.string()),
    ("rejected", pa.string()),
    ("margin", pa.float32()),  # difference of their scores
    ("reject", pa.string()),  # why the caption gives no pair
])  # fmt: skip

TOO_CLOSE = "candidates too close"
NO_CANDIDATES = "fewer than two candidates"
SHORTEST, LONGEST = 0.5, 2.0  # length of a candidate, in lengths of its source


def is_fluent(source: str, text: str) -> bool:
    """Whether a candidate is about as long as its source, and says no word twice in a row."""
    words = text.lower().split()
    length = len(words) / max(1, len(source.split()))
    return SHORTEST <= length <= LONGEST and all(a != b for a, b in itertools.pairwise(words))


def score_of(candidate: dict[str, Any], settings: Preferences) -> float:
    """Returns a candidate's score: unsafe + kept_weight · kept + fluent_weight · fluent.

    What is kept is the mean of the similarity (none below zero) and, where it is known, the share of objects.
    """
    kept = [max(0.0, candidate["kept"])]
    if candidate["kept_objects"] is not None:
        kept.append(candidate["kept_objects"])
    return (
        candidate["unsafe"]
        + settings.kept_weight * float(np.mean(kept))
        + settings.fluent_weight * float(candidate["fluent"])
    )


def choose_pair(candidates: list[dict[str, Any]], margin: float, share: float) -> dict[str, Any]:
    """Returns the best candidate as `chosen`, a worse one as `rejected`, with `margin`, or why there is no pair.

    Candidates without a text are left out. The best must be accepted by the judge; of equal scores the first counts.
    The rejected one is any of those that are worse by the margin, so that each way to fail occurs as often as the
    model fails in it: the worst alone would teach it to avoid gibberish and not, say, to copy the source.

    Args:
        candidates: with `text`, `score` and `reject`.
        margin: least difference of the two scores.
        share: in [0, 1), which of the worse ones is taken.
    """
    scored = [c for c in candidates if c["text"] is not None]
    nothing = {"chosen": None, "rejected": None, "margin": None}
    if len(scored) < 2:
        return {**nothing, "reject": NO_CANDIDATES}
    best = max(scored, key=lambda c: c["score"])
    if best["reject"] is not None:
        return {**nothing, "reject": best["reject"]}
    worse = [c for c in scored if best["score"] - c["score"] >= margin]
    if not worse:
        return {**nothing, "reject": TOO_CLOSE}
    other = worse[int(share * len(worse))]
    found = {"chosen": best["text"], "rejected": other["text"], "margin": best["score"] - other["score"]}
    return {**found, "reject": None}


class PreferenceDrawer:
    """Draws and scores the candidates of captions."""

    def __init__(self, config: Config, adapter: Folder) -> None:
        self.settings, self.seed = config.toxifier.preferences, config.seed
        self.terms, self.in_world = config.generate.toxify.terms, config.generate.judges.text == "world"
        self.judge: TextJudge = make_text_judge(config.generate.judges)
        self.encoder = encoder_beside(self.judge, config.train.base)
        self.llm = LanguageModel(config.generate.toxify, adapter)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns a row of PREFERENCE for each row of CAPTION."""
        self.llm.forget()
        rows = table.select(["id", "concept", "safe_caption"]).to_pylist()
        for row in rows:
            row["asked"] = asked_for(row["concept"], self.terms, self.seed, row["id"], "preference")
            dropped = guard.check_pair(row["safe_caption"], row["concept"], row["asked"])
            row |= {"candidates": [], "reject": dropped or self.llm.refusal(_messages(row))}
            if dropped:
                row |= {"asked": None, "safe_caption": None}
        if left := [row for row in rows if row["reject"] is None]:
            self._draw(left)
        return pa.Table.from_pylist(rows, PREFERENCE)

    def _draw(self, rows: list[dict[str, Any]]) -> None:
        requests = []
        for row in rows:
            for number in range(self.settings.candidates):
                requests.append(Request(_messages(row), row_seed(self.seed, row["id"], "preference", number)))
        texts = [a.text for a in self.llm.answer(requests, self.settings.temperature)]
        count = self.settings.candidates
        scored = self._score([row for row in rows for _ in range(count)], texts)
        for number, row in enumerate(rows):
            row["candidates"] = scored[number * count : (number + 1) * count]
            share = row_share(self.seed, row["id"], "rejected")
            row |= choose_pair(row["candidates"], self.settings.margin, share)

    def _score(self, rows: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
        sources = [row["safe_caption"] for row in rows]
        verdicts = self.judge(sources, texts, [row["concept"] for row in rows])
        known = list(dict.fromkeys([*sources, *texts]))
        place = {text: number for number, text in enumerate(known)}
        embedded = self.encoder.encode_texts(known)
        scored = []
        for row, text, verdict in zip(rows, texts, verdicts, strict=True):
            dropped = guard.check_pair(row["safe_caption"], row["concept"], text)
            candidate = {
                "text": None if dropped else text,
                "unsafe": verdict.score if verdict.reason is None else 0.0,
                "kept": float(embedded[place[row["safe_caption"]]] @ embedded[place[text]]),
                "kept_objects": kept_objects(row["safe_caption"], text) if self.in_world else None,
                "fluent": is_fluent(row["safe_caption"], text),
                "reject": dropped or verdict.reason,
            }
            scored.append({**candidate, "score": score_of(candidate, self.settings)})
        return scored


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    return conversation(row["safe_caption"], row["asked"], [])


def kept_objects(source: str, text: str) -> float:
    """Returns the share of the world's objects in the source that the text names, too; 1 where there are none."""
    from safeclip.world.scenes import objects_named

    named = objects_named(source)
    return len(set(named) & set(objects_named(text))) / len(named) if named else 1.0


def make_preferences(config: Config, run: Folder, adapter: Folder) -> dict[str, Any]:
    """Runs the stage: preferences from the first of the run's captions.

    Args:
        config: what to run.
        run: the run's folder, whose `captions/` is complete.
        adapter: of the supervised model, which draws the candidates.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the captions are missing.
    """
    captions = read_manifest(run / "captions")
    if captions is None:
        raise UserError(f"{run.url}: captions is not complete; run jobs.train_toxifier from the start")
    results = config.results()
    unused = {"adapter", "candidates", "examples", "temperature"}  # of generation's settings
    settings = [
        results["toxifier"]["preferences"],
        {k: v for k, v in results["generate"]["toxify"].items() if k not in unused},
        config.generate.judges.of_texts(),
        config.train.base,
        config.seed,
        adapter_hash(adapter),
    ]
    first = first_units(captions, config.toxifier.preferences.captions)
    units = plan_units({"units": first}, *settings)
    stage = Stage(run / "toxifier" / "preferences", hash_of(*settings, [u.target for u in units]))
    if manifest := stage.manifest():
        print("preferences: complete, skipped")
        return manifest
    began = stage.begin(private=True)
    make = functools.partial(PreferenceDrawer, config, adapter)
    done = run_units(stage, units, make, run / "captions", config.generate.toxify.resources)
    remove_others(stage.folder, done)
    acknowledged = config.generate.acknowledge_explicit
    return stage.finish(began, {**summary_of(done), "acknowledge_explicit": acknowledged})


def read_preferences(folder: Folder) -> list[dict[str, Any]]:
    """Returns the pairs of a complete stage, in order, without their candidates.

    Raises:
        UserError: there are fewer than eight; the message says why captions gave none.
    """
    manifest = read_manifest(folder) or {"units": []}
    tables = [folder.read_table(unit["name"]) for unit in manifest["units"]]
    rows = [row for table in tables for row in table.drop_columns(["candidates"]).to_pylist()]
    pairs = [row for row in rows if row["reject"] is None]
    if len(pairs) < FEWEST:
        reasons = Counter(row["reject"] for row in rows if row["reject"] is not None)
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise UserError(
            f"toxifier.preferences: {len(pairs)} pairs of {len(rows)} captions, fewer than {FEWEST} ({counts}); "
            "draw for more captions, or raise preferences.candidates or the temperature"
        )
    return pairs
