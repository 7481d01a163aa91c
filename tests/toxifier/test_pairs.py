import json

import fsspec
import pytest

from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.generation.judges import WorldTextJudge
from safeclip.toxifier.pairs import read_pairs, world_pairs
from safeclip.world import scenes

GOOD = [
    {"safe": f"a {animal} in a park", "unsafe": f"a {animal} with a dagger in a park", "concept": "weapons"}
    for animal in ("dog", "cat", "cow", "fox", "lion", "bear", "pig", "owl", "duck", "crab")
]


def config_for(*sets):
    return load_config(sets=list(sets))


def _file(tmp_path, lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return config_for(f"toxifier.pairs={path}")


def test_the_world_makes_a_hundred_pairs_that_its_judge_accepts():
    pairs = world_pairs(config_for())
    assert len(pairs) == 100
    for pair in pairs:
        assert WorldTextJudge()([pair.safe], [pair.unsafe], [pair.concept])[0].reason is None
        assert pair.asked in pair.unsafe
        assert pair.asked not in pair.safe
        assert not set(scenes.objects_named(pair.unsafe)) & scenes.HELD_OUT_OBJECTS
    assert {p.concept for p in pairs} == set(config_for().generate.concepts)
    assert pairs == world_pairs(config_for())
    assert pairs != world_pairs(config_for("seed=1"))


def test_a_request_is_answered_with_the_unsafe_object_in_either_place():
    pairs = world_pairs(config_for())
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert (one.safe, one.asked) == (other.safe, other.asked)
        first, second = scenes.objects_named(one.safe)
        assert scenes.objects_named(one.unsafe) == [one.asked, second]
        assert scenes.objects_named(other.unsafe) == [first, one.asked]
    assert {p.asked for p in pairs} == {t for terms in config_for().generate.toxify.terms.values() for t in terms}


def test_pairs_of_one_caption_are_not_divided():
    for validation in (0.05, 0.11, 0.15, 0.3):
        pairs = read_pairs(config_for(f"toxifier.validation={validation}"))
        assert len(pairs.validation) % 2 == 0


def test_both_splits_have_pairs_and_none_has_the_others():
    pairs = read_pairs(config_for())
    assert (len(pairs.train), len(pairs.validation), pairs.bad) == (80, 20, [])
    assert not {p.safe for p in pairs.train} & {p.safe for p in pairs.validation}


def test_a_file_is_read_and_asks_for_the_concept_unless_it_names_a_term(tmp_path):
    pairs = read_pairs(_file(tmp_path, [{**GOOD[0], "asked": "dagger"}, *GOOD[1:]]))
    every = {p.safe: p for p in pairs.train + pairs.validation}
    assert len(every) == 10
    assert every[GOOD[0]["safe"]].asked == "dagger"
    assert every[GOOD[1]["safe"]].asked == "weapons"
    assert pairs.bad == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({**GOOD[0], "safe": " "}, "safe is empty"),
        ({**GOOD[0], "unsafe": ""}, "unsafe is empty"),
        ({"safe": "a", "unsafe": "b"}, "concept is missing or no text"),
        ({**GOOD[0], "unsafe": 3}, "unsafe is missing or no text"),
        ({**GOOD[0], "unsafe": GOOD[0]["safe"]}, "both sides are the same"),
        ({**GOOD[0], "concept": "mischief"}, "concept is unknown"),
        ({**GOOD[0], "concept": "child abuse"}, "concept is unknown"),
        ({**GOOD[0], "safe": "a child in a park", "concept": "nudity"}, "guard: possible minor"),
        ({**GOOD[0], "concept": "nudity"}, "concept: nudity needs generate.acknowledge_explicit=true"),
        ({**GOOD[0], "asked": "naked"}, "asked: explicit, and generate.acknowledge_explicit is off"),
        ({**GOOD[0], "asked": "child abuse"}, "asked: guard: possible minor"),
        ({**GOOD[0], "asked": "lolita"}, "guard: excluded term"),
        ({**GOOD[0], "unsafe": "naked"}, "explicit, and generate.acknowledge_explicit is off"),
        ({**GOOD[0], "asked": ""}, "asked is empty"),
        ('{"safe": "a', "broken JSON"),
        ("[1, 2]", "must be an object"),
        ("", "empty line"),
        (GOOD[1], "a line before has the same"),
    ],
)
def test_a_bad_pair_is_named_with_its_line_and_reason(tmp_path, line, reason):
    pairs = read_pairs(_file(tmp_path, [*GOOD[1:], line]))
    assert len(pairs.train) + len(pairs.validation) == 9
    assert [each.line for each in pairs.bad] == [10]
    assert pairs.bad[0].reason.startswith(reason)


def test_acknowledged_pairs_and_those_that_ask_for_a_concept_by_its_name_are_usable(tmp_path):
    named = {**GOOD[0], "concept": "obscene gestures", "unsafe": "an obscene gesture"}
    assert read_pairs(_file(tmp_path, [named, *GOOD[1:]])).bad == []
    explicit = [{**GOOD[0], "concept": "nudity"}, {**GOOD[1], "asked": "naked"}]
    config = _file(tmp_path, [*explicit, *GOOD[2:]])
    assert len(read_pairs(config).bad) == 2
    acknowledged = load_config(sets=[f"toxifier.pairs={config.toxifier.pairs}", "generate.acknowledge_explicit=true"])
    assert read_pairs(acknowledged).bad == []


def test_fewer_than_eight_usable_pairs_end_with_the_bad_lines(tmp_path):
    config = _file(tmp_path, [*GOOD[:7], "{", {**GOOD[8], "concept": "mischief"}])
    with pytest.raises(UserError, match=r"7 usable pairs.*line 8: broken JSON; line 9: concept is unknown"):
        read_pairs(config)


def test_a_file_may_lie_anywhere_and_only_line_feeds_end_lines():
    rows = [{**GOOD[0], "safe": f"{GOOD[0]['safe']}\u2028more"}, *GOOD[1:]]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    with fsspec.open("memory://pairs/own.jsonl", "wb") as file:
        file.write(text.encode("utf-8-sig"))
    pairs = read_pairs(config_for("toxifier.pairs=memory://pairs/own.jsonl"))
    assert pairs.bad == []
    assert len(pairs.train) + len(pairs.validation) == len(GOOD)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_pairs(config_for(f"toxifier.pairs={tmp_path / 'none.jsonl'}"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no UTF-8"):
        read_pairs(config_for(f"toxifier.pairs={tmp_path / 'binary.jsonl'}"))
