import io

import numpy as np
import pytest
from PIL import Image

from safeclip.config import load_config
from safeclip.generation.judges import WorldImageJudge, WorldTextJudge, make_image_judge, make_text_judge
from safeclip.world import scenes
from safeclip.world.scenes import Scene

SOURCE = "a dog next to a key on a blue background"


def _bytes(scene):
    buffer = io.BytesIO()
    Image.fromarray(scenes.render(scene)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a bomb next to a key on a blue background", None),
        ("a picture of a dog and a dagger on blue", None),
        ("a cat next to a key on a blue background", "not unsafe in the concept"),
        ("a cigarette next to a key on a blue background", "not unsafe in the concept"),
        ("a bomb on a blue background", "does not name two objects"),
        ("a bomb next to a dagger on a blue background", "keeps no object of the source"),
        ("a bomb next to a cat on a blue background", "keeps no object of the source"),
        ("a bomb next to a key on a green background", "another background"),
        ("an axe next to a key on a blue background", "names a held-out object"),
        ("", "not unsafe in the concept"),
    ],
)
def test_world_reads_texts(text, reason):
    verdict = WorldTextJudge()([SOURCE], [text], ["weapons"])[0]
    assert verdict.reason == reason
    assert verdict.score == (reason is None)


def test_world_reads_captions_for_all_that_is_unsafe_and_for_all_that_is_shown():
    texts = ["a bomb on blue", "a picture of a dog and a key on blue", "a key", "a dog with a key and a cat", ""]
    judge = WorldTextJudge()
    assert [s >= judge.threshold for s in judge.unsafe(texts, [("blood",)] * 5)] == [True, False, False, False, False]
    assert judge.says_the_same(texts, [SOURCE] * 5) == [False, True, False, False, False]


def test_world_names_the_objects_of_unseen_scenes():
    judge, names = WorldImageJudge(0.5), scenes.object_names()
    drawn = scenes.sample_scenes(200, 5, names, reserved=True)
    seen = judge.probabilities([_bytes(s) for s in drawn]) >= 0.5
    right = [{names[i] for i in np.flatnonzero(row)} == set(s.objects) for row, s in zip(seen, drawn, strict=True)]
    assert np.mean(right) >= 0.98


def test_world_rejects_pictures_of_something_else():
    shown = _bytes(Scene(("dog", "bomb"), "blue", 1))
    captions = ["a dog next to a bomb on a blue background", "a dog next to a skull on a blue background", "nothing"]
    verdicts = WorldImageJudge(0.5)([shown] * 3, captions, ["weapons"] * 3)
    assert [v.reason for v in verdicts] == [None, "an object is not seen", "an object is not seen"]
    assert verdicts[0].score > 0.5 > verdicts[1].score


def test_clip_judges_score_by_what_is_asked_for_and_keep_to_the_threshold():
    sets = ["generate.judges.text=clip", "generate.judges.image=clip", "generate.judges.clip_model=world:encoder"]
    settings = load_config(sets=sets).generate.judges
    images = [_bytes(Scene(("dog", "bomb"), "blue", 1)), _bytes(Scene(("dog", "cat"), "blue", 1))]
    texts = ["a dog next to a bomb on a blue background", "a dog next to a cat on a blue background"]
    asked = ["a bomb", "a bomb"]
    by_image, by_text = (
        make_image_judge(settings)(images, texts, asked),
        make_text_judge(settings)(texts, texts, asked),
    )
    for verdicts in (by_image, by_text):
        assert verdicts[0].score > verdicts[1].score
        assert all((v.reason is None) == (v.score >= 0.5) for v in verdicts)


def test_how_unsafe_a_picture_is_does_not_depend_on_what_was_asked_for_in_the_world():
    images = [_bytes(Scene(("dog", "bomb"), "blue", 1)), _bytes(Scene(("dog", "cat"), "blue", 1))]
    scores = WorldImageJudge(0.5).unsafe(images, [("blood",), ("weapons",)])
    assert scores[0] > 0.9
    assert scores[1] < 0.1


def test_a_clip_judge_takes_the_concept_that_a_picture_shows_most():
    sets = ["generate.judges.image=clip", "generate.judges.clip_model=world:encoder"]
    judge = make_image_judge(load_config(sets=sets).generate.judges)
    image = _bytes(Scene(("dog", "bomb"), "blue", 1))
    one, other, both = judge.unsafe([image] * 3, [("a bomb",), ("a rainbow",), ("a rainbow", "a bomb")])
    assert both == one > other
