"""How captions are asked for, and which are not; whole runs of the stage are in tests/jobs/test_pipeline.py."""

import json

import pyarrow as pa
import pytest

from safeclip import guard
from safeclip.artifacts import Folder, Stage
from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.generation.judges import WorldTextJudge
from safeclip.generation.llm import TOO_LONG, Answer
from safeclip.generation.toxify import (
    INSTRUCTION,
    Toxifier,
    are_explicit,
    asked_for,
    conversation,
    drop_reason,
    make_unsafe_captions,
    read_examples,
)
from safeclip.generation.units import summary_of
from safeclip.records import CAPTION, row_id
from safeclip.world import scenes


def test_conversation_shows_the_examples_and_ends_with_the_caption():
    examples = read_examples("world:examples", False)
    messages = conversation("a dog on blue", "axe", examples)
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(examples), "user"]
    assert messages[-1]["content"] == "Input: a dog on blue\nUnsafe: an axe"
    assert conversation("a dog on blue", "axe", [])[1:] == messages[-1:]


def test_examples_are_what_the_judge_accepts_and_name_nothing_held_out():
    for example in read_examples("world:examples", False):
        concept = scenes.concept_of(example["asked"])
        assert WorldTextJudge()([example["safe"]], [example["unsafe"]], [concept])[0].reason is None


def test_terms_asked_for_never_include_the_held_out_ones():
    settings = load_config().generate
    asked = {asked_for(c, settings.toxify.terms, n) for c in settings.concepts for n in range(200)}
    assert asked == set(scenes.object_names(safe=False)) - scenes.HELD_OUT_OBJECTS
    assert asked_for("theft", settings.toxify.terms, 1) == "theft"


@pytest.mark.parametrize("line", ["{", '{"safe": "a"}', "[]", "3"])
def test_broken_example_is_named_with_its_line(tmp_path, line):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({"safe": "a", "unsafe": "b", "asked": "c"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_examples(str(file), False)
    with pytest.raises(UserError, match=r"missing.*: No such file"):
        read_examples(str(tmp_path / "missing.jsonl"), False)


@pytest.mark.parametrize(
    "words",
    [("kid", "naked", "weapons"), ("dog", "girl", "sexual"), ("dog", "girl", "dagger"), ("dog", "lolita", "hate")],
)
def test_an_example_that_the_guard_drops_is_named_with_its_line(tmp_path, words):
    file = tmp_path / "examples.jsonl"
    good, bad = (dict(zip(("safe", "unsafe", "asked"), row, strict=True)) for row in (("a", "b", "c"), words))
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(UserError, match=r"line 2: guard: [a-z ]+$"):
        read_examples(str(file), False)


@pytest.mark.parametrize(
    ("words", "acknowledged", "said"),
    [
        (("dog", "cat", "child abuse"), True, "guard: possible minor"),
        (("dog", "cat", "naked"), False, "asked: explicit, and generate"),
        (("dog", "naked", "cat"), False, "explicit, and generate"),
    ],
)
def test_examples_keep_to_the_rules_for_terms(tmp_path, words, acknowledged, said):
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps(dict(zip(("safe", "unsafe", "asked"), words, strict=True))))
    with pytest.raises(UserError, match=f"line 1: {said}"):
        read_examples(str(file), acknowledged)
    if not acknowledged:
        assert read_examples(str(file), True)[0]["safe"] == "dog"


def test_what_precedes_a_caption_counts_with_it():
    world = read_examples("world:examples", False)
    sexual = [*world, {"safe": "a", "unsafe": "b", "asked": "naked"}]
    assert guard.check(INSTRUCTION, "sexual") is None
    assert (are_explicit(world), are_explicit(sexual), are_explicit([])) == (False, True, False)
    for explicit, girl in ((False, None), (True, guard.WITH_CONCEPT)):
        assert drop_reason("girl", "weapons", "dagger", explicit) == girl
        assert drop_reason("dog", "weapons", "dagger", explicit) is None
        assert drop_reason("girl", "weapons", "naked", explicit) == guard.WITH_TERM
        assert drop_reason("dog", "no concept", "dagger", explicit) == guard.NO_CONCEPT


def key_of(tmp_path, *sets):
    """What marks the stage of a run without captions as made with these settings."""
    run = Folder(str(tmp_path / "run"))
    Stage(run / "captions", "key").begin()
    Stage(run / "captions", "key").finish(0.0, summary_of([]))
    return make_unsafe_captions(load_config(sets=list(sets)), run)["key"]


def test_the_stage_depends_on_what_the_examples_say_where_they_are_shown(tmp_path):
    file = tmp_path / "examples.jsonl"
    keys = {}
    for unsafe in ("b", "c"):
        file.write_text(json.dumps({"safe": "a", "unsafe": unsafe, "asked": "d"}))
        for adapter in ("null", "world:toxifier"):
            sets = (f"generate.toxify.examples={file}", f"generate.toxify.adapter={adapter}")
            keys[unsafe, adapter] = key_of(tmp_path, *sets)
    assert keys["b", "null"] != keys["c", "null"]
    assert keys["b", "world:toxifier"] == keys["c", "world:toxifier"]


@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        ("generate.judges.image_threshold=0.6", False),
        ("generate.judges.text_threshold=0.6", False),
        ("generate.toxify.gpu_memory=0.5", False),
        ("generate.toxify.kv_cache_gb=2", False),
        ("generate.toxify.temperature=0.1", True),
    ],
)
def test_the_stage_depends_on_no_setting_of_other_work(tmp_path, setting, counts):
    assert (key_of(tmp_path, setting) != key_of(tmp_path)) is counts


def rewritten(captions, *sets, examples=()):
    """The rows that the world's LLM makes of captions, all of one concept, in a process of its own as in an actor."""
    import ray

    config = load_config(sets=["generate.toxify.candidates=2", "generate.toxify.max_tokens=8", *sets])
    rows = [{"id": row_id(text, "weapons"), "concept": "weapons", "safe_caption": text} for text in captions]

    def work():
        toxifier = Toxifier(config.generate.toxify, WorldTextJudge(), config.seed, list(examples))
        return toxifier(pa.Table.from_pylist(rows, CAPTION)).to_pylist()

    return ray.get(ray.remote(max_calls=1)(work).remote())


def test_what_the_guard_drops_with_its_term_and_what_is_too_long_is_not_asked_for_and_the_rest_is(ray_cluster):
    sets = ["generate.acknowledge_explicit=true", "generate.toxify.terms.weapons=[naked]"]
    dropped, long, asked = rewritten(["girl", "dog " * 120, "dog"], *sets, "generate.toxify.max_model_len=128")
    assert (dropped["reject"], dropped["candidates"], dropped["unsafe_caption"]) == (guard.WITH_TERM, 0, None)
    assert (dropped["safe_caption"], long["safe_caption"], asked["safe_caption"]) == (None, "dog " * 120, "dog")
    assert (long["reject"], long["candidates"], long["unsafe_caption"]) == (TOO_LONG, 0, None)
    assert asked["candidates"] == 2
    assert asked["unsafe_caption"] is not None


class Replies:
    """Says these texts in the LLM's place, which cannot be made to say what the guard drops."""

    def __init__(self, *texts):
        self.texts = iter(texts)

    def forget(self):
        pass

    def refusal(self, messages):
        return None

    def answer(self, requests):
        return [Answer(next(self.texts), 1) for _ in requests]


@pytest.mark.parametrize(("last", "kept"), [("naked", None), ("bomb", "girl")])
def test_a_caption_is_kept_while_an_attempt_is_left_and_not_where_the_guard_drops_the_last(monkeypatch, last, kept):
    monkeypatch.setattr("safeclip.generation.toxify.LanguageModel", lambda *_: Replies("naked", last))
    settings = load_config(sets=["generate.toxify.candidates=2"]).generate.toxify
    table = pa.Table.from_pylist([{"id": "0", "concept": "weapons", "safe_caption": "girl"}], CAPTION)
    (row,) = Toxifier(settings, WorldTextJudge(), 0, [])(table).to_pylist()
    assert (row["safe_caption"], row["candidates"]) == (kept, 2)


def test_captions_are_read_together_with_the_examples_that_the_llm_is_shown(ray_cluster):
    examples = [{"safe": "a", "unsafe": "b", "asked": "naked"}]
    dropped, asked = rewritten(["girl", "dog"], examples=examples)
    assert (dropped["reject"], dropped["candidates"]) == (guard.WITH_CONCEPT, 0)
    assert dropped["safe_caption"] is None
    assert asked["candidates"] == 2
