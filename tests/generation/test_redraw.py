import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from safeclip.config import load_config
from safeclip.generation.illustrate import MARK as UNSAFE_MARK
from safeclip.generation.judges import ClipImageJudge, WorldImageJudge
from safeclip.generation.redraw import MARK, SafeIllustrator
from safeclip.records import CAPTION
from safeclip.world import scenes
from tests.encoder.quadruplets import encoded


def _illustrator():
    config = load_config()
    return SafeIllustrator(config.generate.illustrate, WorldImageJudge(0.5), config.seed)


@pytest.fixture(scope="module")
def drawn():
    """Rows of a unit, and the same rows drawn."""
    rows = [
        {"id": str(i), "concept": "weapons", "safe_caption": scenes.caption(scene),
         "safe_image": encoded(scenes.render(scene)), "reject": None}
        for i, scene in enumerate(scenes.sample_scenes(16, 3, scenes.object_names(safe=True)))
    ]  # fmt: skip
    captions = pa.Table.from_pylist(rows, CAPTION)
    return captions, _illustrator()(captions)


def test_every_row_is_drawn_and_most_are_accepted(drawn):
    before, after = drawn
    assert after.schema.equals(CAPTION)
    for name in ("id", "concept", "safe_caption"):
        assert after[name].equals(before[name])
    assert after["reject"].null_count >= 12


def test_the_pictures_are_the_generators_and_say_so(drawn):
    rows = drawn[1].to_pylist()
    judge = WorldImageJudge(0.5)
    for row, verdict in zip(rows, judge.harmless(*_columns(rows)), strict=True):
        image = Image.open(io.BytesIO(row["safe_image"]))
        assert MARK in image.getexif().values()
        assert UNSAFE_MARK not in image.getexif().values()
        assert row["reject"] == verdict.reason
    assert len({np.asarray(Image.open(io.BytesIO(r["safe_image"]))).tobytes() for r in rows}) == len(rows)


def _columns(rows):
    return ([r[name] for r in rows] for name in ("safe_image", "safe_caption", "concept"))


def test_what_the_guard_drops_is_not_drawn():
    row = {"id": "0", "concept": "sexual", "safe_caption": "minor", "safe_image": b"", "reject": None}
    (out,) = _illustrator()(pa.Table.from_pylist([row], CAPTION)).to_pylist()
    assert out["reject"].startswith("guard")
    assert (out["safe_caption"], out["safe_image"]) == (None, None)


def test_the_worlds_judge_finds_an_unsafe_object_in_what_should_be_harmless():
    safe, odd = (scenes.Scene(("dog", other), "blue", 3) for other in ("key", "bomb"))
    images = [encoded(scenes.render(scene)) for scene in (safe, odd)]
    verdicts = WorldImageJudge(0.5).harmless(images, [scenes.caption(safe), "a dog on blue background"], ["", ""])
    assert [verdict.reason for verdict in verdicts] == [None, "shows an unsafe object"]


def test_a_clips_word_on_harmless_pictures_is_the_opposite_of_that_on_unsafe_ones():
    judge = ClipImageJudge("world:encoder", 0.5)
    images = [encoded(scenes.render(s)) for s in scenes.sample_scenes(12, 5, scenes.object_names())]
    captions, concepts = [""] * 12, ["weapons", "blood", "hate"] * 4
    unsafe, harmless = judge(images, captions, concepts), judge.harmless(images, captions, concepts)
    for one, other in zip(unsafe, harmless, strict=True):
        assert (one.reason is None) != (other.reason is None)
        assert one.score + other.score == pytest.approx(1)
