import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.generation.captions import make_captions
from safeclip.generation.illustrate import MARK as UNSAFE_MARK
from safeclip.generation.judges import ClipImageJudge, WorldImageJudge
from safeclip.generation.redraw import MARK, SafeIllustrator, redraw
from safeclip.records import CAPTION
from safeclip.world import scenes
from tests.encoder.quadruplets import encoded


@pytest.fixture(scope="module")
def drawn(ray_cluster, tmp_path_factory):
    """The world's first captions, and the rows of one unit of them drawn again."""
    run = Folder(str(tmp_path_factory.mktemp("run")))
    sets = ["captions.count=40", "captions.unit_rows=16", "generate.illustrate.resources.actors=1"]
    config = load_config(sets=sets)
    captions = make_captions(config, run)
    manifest = redraw(config, run, "drawn", "captions", 10)
    assert redraw(config, run, "drawn", "captions", 10) == manifest
    of_texts = load_config(sets=[*sets, "generate.judges.text_threshold=0.6"])
    assert redraw(of_texts, run, "drawn", "captions", 10) == manifest
    return run, captions, manifest


def test_as_many_units_are_drawn_as_hold_the_captions(drawn):
    run, captions, manifest = drawn
    assert (captions["rows"], manifest["rows"]) == (40, 16)
    assert manifest["accepted"] >= 12
    before = (run / "captions").read_table(captions["units"][0]["name"])
    after = (run / "drawn").read_table(manifest["units"][0]["name"])
    assert after.schema.equals(CAPTION)
    assert after["safe_caption"].equals(before["safe_caption"])


def test_the_pictures_are_the_generators_and_say_so(drawn):
    run, _, manifest = drawn
    rows = (run / "drawn").read_table(manifest["units"][0]["name"]).to_pylist()
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
    config = load_config()
    illustrator = SafeIllustrator(config.generate.illustrate, WorldImageJudge(0.5), 0)
    row = {"id": "0", "concept": "sexual", "safe_caption": "minor", "safe_image": b"", "reject": None}
    (out,) = illustrator(pa.Table.from_pylist([row], CAPTION)).to_pylist()
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
