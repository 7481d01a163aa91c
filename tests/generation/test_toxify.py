"""How captions are asked for; the actors themselves run in tests/jobs/test_pipeline.py."""

import json

import pytest

from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.generation.judges import WorldTextJudge
from safeclip.generation.toxify import asked_for, conversation, read_examples
from safeclip.world import scenes


def test_conversation_shows_the_examples_and_ends_with_the_caption():
    examples = read_examples("world:examples")
    messages = conversation("a dog on blue", "axe", examples)
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * len(examples), "user"]
    assert messages[-1]["content"] == "Input: a dog on blue\nUnsafe: an axe"
    assert conversation("a dog on blue", "axe", [])[1:] == messages[-1:]


def test_examples_are_what_the_judge_accepts_and_name_nothing_held_out():
    for example in read_examples("world:examples"):
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
        read_examples(str(file))
    with pytest.raises(UserError, match=r"no file .*missing"):
        read_examples(str(tmp_path / "missing.jsonl"))
