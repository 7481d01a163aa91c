import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclip import guard
from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.generation.llm import TOO_LONG, adapter_folder
from safeclip.records import CAPTION, row_id
from safeclip.toxifier.preferences import (
    NO_CANDIDATES,
    TOO_CLOSE,
    PreferenceDrawer,
    choose_pair,
    is_fluent,
    kept_objects,
    make_preferences,
    read_preferences,
    score_of,
)

SETTINGS = load_config().toxifier.preferences
CANDIDATES = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.sampled_from([None, "a", "b", "c", "d"]),
            "score": st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5]),
            "reject": st.sampled_from([None, "not unsafe in the concept"]),
        }
    ),
    max_size=6,
)


@given(CANDIDATES, st.sampled_from([0.1, 0.3, 1.0]), st.floats(0, 1, exclude_max=True))
def test_a_pair_is_the_best_and_one_that_is_worse_by_the_margin(candidates, margin, share):
    found = choose_pair(candidates, margin, share)
    scored = [c for c in candidates if c["text"] is not None]
    bests = [c for c in scored if all(c["score"] >= other["score"] for other in scored)]
    worse = [c for c in scored if bests and c["score"] <= bests[0]["score"] - margin]
    if found["reject"] is None:
        assert (found["chosen"], None) == (bests[0]["text"], bests[0]["reject"])
        assert found["rejected"] in {c["text"] for c in worse}
        assert found["margin"] >= margin
    else:
        assert found["chosen"] is found["rejected"] is found["margin"] is None
        assert len(scored) < 2 or bests[0]["reject"] is not None or not worse


def test_each_that_is_worse_is_taken_as_often():
    one = {"text": "best", "score": 2.0, "reject": None}
    candidates = [one, {**one, "text": "near", "score": 1.9}]
    candidates += [
        {"text": text, "score": score, "reject": "no"} for text, score in (("copy", 0.7), ("gibberish", 0.1))
    ]
    taken = [choose_pair(candidates, 0.3, n / 10)["rejected"] for n in range(10)]
    assert taken == ["copy"] * 5 + ["gibberish"] * 5


def test_the_reason_is_named():
    one = {"text": "a", "score": 1.0, "reject": None}
    assert choose_pair([one], 0.3, 0)["reject"] == NO_CANDIDATES
    assert choose_pair([one, {**one, "score": 0.9}], 0.3, 0)["reject"] == TOO_CLOSE
    refused = {**one, "reject": "another background"}
    assert choose_pair([refused, {**refused, "score": 0.1}], 0.3, 0)["reject"] == "another background"


def test_a_score_weighs_unsafe_kept_and_fluent():
    candidate = {"unsafe": 1.0, "kept": 0.8, "kept_objects": 0.5, "fluent": True}
    assert score_of(candidate, SETTINGS) == pytest.approx(1 + 0.5 * (0.8 + 0.5) / 2 + 0.25)
    assert score_of({**candidate, "kept_objects": None}, SETTINGS) == pytest.approx(1 + 0.5 * 0.8 + 0.25)
    assert score_of({**candidate, "kept": -0.5, "fluent": False}, SETTINGS) == pytest.approx(1 + 0.5 * 0.25)


@pytest.mark.parametrize(
    ("text", "fluent"),
    [
        ("a dog next to a bomb", True),
        ("a dog", False),
        ("a dog next to a bomb " * 3, False),
        ("a dog next to a a bomb", False),
        ("", False),
    ],
)
def test_fluent_texts_are_about_as_long_and_repeat_no_word(text, fluent):
    assert is_fluent("a dog next to a key", text) is fluent


def test_kept_objects_are_a_share_of_the_sources():
    assert kept_objects("a dog next to a key on a blue background", "a bomb next to a key") == 0.5
    assert kept_objects("a dog next to a key", "a key with a dog") == 1
    assert kept_objects("nothing of the world", "a bomb") == 1


def test_without_captions_or_pairs_the_error_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="captions is not complete"):
        make_preferences(load_config(), Folder(str(tmp_path)), Folder(str(tmp_path)))
    with pytest.raises(UserError, match="0 pairs of 0 captions"):
        read_preferences(Folder(str(tmp_path)))


def test_what_the_guard_drops_with_its_term_and_what_is_too_long_gets_no_candidates(ray_cluster):
    import ray

    sets = ["generate.acknowledge_explicit=true", "generate.toxify.terms.weapons=[naked]"]
    sets += ["generate.toxify.max_tokens=8", "generate.toxify.max_model_len=128", "toxifier.preferences.candidates=2"]
    config = load_config(sets=sets)
    captions = ("girl", "dog " * 120, "dog")
    rows = [{"id": row_id(text, "weapons"), "concept": "weapons", "safe_caption": text} for text in captions]

    def work():
        drawer = PreferenceDrawer(config, adapter_folder("world:toxifier", Folder("")))
        return drawer(pa.Table.from_pylist(rows, CAPTION)).to_pylist()

    dropped, long, drawn = ray.get(ray.remote(max_calls=1)(work).remote())
    assert (dropped["reject"], dropped["candidates"], dropped["chosen"]) == (guard.WITH_TERM, [], None)
    assert (dropped["asked"], dropped["safe_caption"]) == (None, None)
    assert (long["reject"], long["candidates"], long["chosen"]) == (TOO_LONG, [], None)
    assert len(drawn["candidates"]) == 2
