import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from safeclip.config import load_config
from safeclip.generation.illustrate import MARK, Illustrator, encode_picture
from safeclip.generation.judges import WorldImageJudge
from safeclip.records import UNSAFE_CAPTION
from safeclip.world import scenes


def _captions(n):
    drawn = scenes.sample_scenes(n, 3, scenes.object_names(safe=True), ["bomb", "skull", "cigarette"])
    rows = [
        {"id": str(i), "concept": "weapons", "safe_caption": "", "unsafe_caption": scenes.caption(s), "candidates": 1,
         "text_score": 1.0, "reject": None}
        for i, s in enumerate(drawn)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, UNSAFE_CAPTION)


def _illustrator(*sets):
    config = load_config(sets=list(sets))
    judge = WorldImageJudge(config.generate.judges.image_threshold)
    return Illustrator(config.generate.illustrate, judge, config.seed)


def _pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)


def test_pictures_depend_on_their_row_and_not_on_the_batch():
    sets = ["generate.illustrate.tries=1"]
    all_sets = [[*sets, f"generate.illustrate.batch={batch}"] for batch in (2, 8)]
    by_two, by_eight = (_illustrator(*s)(_captions(8)).to_pylist() for s in all_sets)
    for a, b in zip(by_two, by_eight, strict=True):
        assert a["seed"] == b["seed"]
        assert np.abs(_pixels(a["unsafe_image"]) - _pixels(b["unsafe_image"])).max() <= 2
    again = _illustrator(*all_sets[0])(_captions(8)).to_pylist()
    assert again == by_two


def test_every_row_is_written_and_accepted_ones_pass_the_judge_again():
    illustrator = _illustrator("generate.illustrate.tries=2")
    captions = _captions(12)
    rows = illustrator(captions).to_pylist()
    assert [r["id"] for r in rows] == captions["id"].to_pylist()
    verdicts = illustrator.judge([r["unsafe_image"] for r in rows], captions["unsafe_caption"].to_pylist(), [""] * 12)
    assert [v.reason for v in verdicts] == [r["reject"] for r in rows]
    assert all(r["tries"] == 2 or r["reject"] is None for r in rows)


def test_what_the_guard_drops_is_neither_drawn_nor_kept():
    captions = _captions(2).to_pylist()
    captions[0].update(unsafe_caption="minor", concept="sexual")
    rows = _illustrator()(pa.Table.from_pylist(captions, UNSAFE_CAPTION)).to_pylist()
    assert rows[0]["reject"].startswith("guard")
    assert rows[0]["unsafe_caption"] is None
    assert rows[0]["unsafe_image"] is rows[0]["seed"] is None
    assert rows[1]["unsafe_image"] is not None


@pytest.mark.parametrize("quality", [90, 100])
def test_pictures_say_what_they_are(quality):
    image = Image.open(io.BytesIO(encode_picture(Image.new("RGB", (8, 8), "red"), quality)))
    assert image.format == "WEBP"
    assert MARK in image.getexif().values()
