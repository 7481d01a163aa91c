import itertools
import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from safeclip.artifacts import Folder, Stage, open_run, read_manifest
from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.generation.captions import DUPLICATE, make_captions
from safeclip.generation.quadruplets import REPEATED, join_rows, make_quadruplets, purge, split_of
from safeclip.generation.units import summary_of, write_unit
from safeclip.records import CAPTION, SPLITS, UNSAFE_CAPTION, UNSAFE_IMAGE, row_id


def _tables(ids, pictures=None):
    """Three stages' rows; every fifth id has no accepted unsafe caption, every seventh no accepted picture.

    Each has a safe picture of its own, or one of so many.
    """
    shown = {i: str(int(i, 16) % pictures) if pictures else i for i in ids}
    safe = [
        {"id": i, "concept": "weapons", "safe_caption": f"safe {i}", "safe_image": shown[i].encode()} for i in ids
    ]
    return [pa.Table.from_pylist(safe, CAPTION), *_made_of(safe)]


def _made_of(safe):
    texts = [
        {**r, "unsafe_caption": f"unsafe {r['id']}", "candidates": 1, "text_score": 1.0,
         "reject": "no" if n % 5 == 0 else None}
        for n, r in enumerate(safe)
    ]  # fmt: skip
    images = [
        {"id": r["id"], "unsafe_caption": r["unsafe_caption"], "unsafe_image": b"u", "seed": 1, "tries": 1,
         "image_score": 0.9, "reject": "no" if n % 7 == 0 else None}
        for n, r in enumerate(texts) if r["reject"] is None
    ]  # fmt: skip
    texts = [{k: r[k] for k in UNSAFE_CAPTION.names} for r in texts]
    return [pa.Table.from_pylist(texts, UNSAFE_CAPTION), pa.Table.from_pylist(images, UNSAFE_IMAGE)]


def _run(tmp_path, ids, units=3, pictures=None):
    config = load_config(sets=[f"storage={tmp_path}"])
    run = open_run(config)
    for name in ("captions", "unsafe_captions", "unsafe_images"):
        (run / name).make()
    statistics = {name: [] for name in ("captions", "unsafe_captions", "unsafe_images")}
    for index in range(units):
        for name, table in zip(statistics, _tables(ids[index::units], pictures), strict=True):
            statistics[name].append(write_unit(run / name, f"{index:05d}.parquet", table))
    for name, found in statistics.items():
        Stage(run / name, "key").finish(0.0, summary_of(found))
    return config, run


def _quadruplets(run):
    folders = [run / "quadruplets" / split for split in SPLITS]
    return [row for f in folders for name in f.files(".parquet") for row in f.read_table(name).to_pylist()]


IDS = [row_id(f"caption {n}", "weapons") for n in range(120)]


def test_quadruplets_are_the_rows_that_every_stage_accepted(tmp_path):
    config, run = _run(tmp_path, IDS)
    manifest = make_quadruplets(config, run)
    rows = []
    for split in SPLITS:
        folder = run / "quadruplets" / split
        found = [r for file in folder.files(".parquet") for r in folder.read_table(file).to_pylist()]
        assert {r["split"] for r in found} == {split}
        assert len(found) == manifest["data"]["quadruplets"][split]
        rows += found
    assert len({r["id"] for r in rows}) == len(rows) == manifest["rows"]
    assert all(r["unsafe_caption"] == f"unsafe {r['id']}" and r["safe_caption"] == f"safe {r['id']}" for r in rows)
    assert manifest["data"]["captions"] == 120
    assert manifest["rows"] + sum(manifest["data"]["rejected"].values()) == 120
    sheet = (run / "quadruplets").read("datasheet.md").decode()
    assert "OpenMoji" in sheet
    assert "world:llm" in sheet


def test_a_caption_that_occurs_twice_becomes_one_quadruplet_with_its_picture(ray_cluster, tmp_path):
    lines = []
    for n in [*range(40), *range(5)]:
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"caption": f"picture number {n}", "image": f"{n}.png"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    sets = [f"storage={tmp_path}", f"captions.source={tmp_path / 'captions.jsonl'}", "captions.count=null"]
    config = load_config(sets=sets)
    run = open_run(config)
    (unit,) = make_captions(config, run)["units"]
    rows = (run / "captions").read_table(unit["name"]).to_pylist()
    assert Counter(row["reject"] for row in rows) == {None: 40, DUPLICATE: 5}
    for name, table in zip(("unsafe_captions", "unsafe_images"), _made_of(rows[:40]), strict=True):
        (run / name).make()
        Stage(run / name, "key").finish(0.0, summary_of([write_unit(run / name, unit["name"], table)]))
    make_quadruplets(config, run)
    found = _quadruplets(run)
    assert len({row["safe_caption"] for row in found}) == len(found) > 20
    assert all(row["safe_image"] for row in found)


def test_hash_is_of_the_content(tmp_path):
    hashes = [make_quadruplets(*_run(tmp_path / name, ids))["content_hash"] for name, ids in
              (("one", IDS), ("same", IDS), ("other", IDS[:-9]))]  # fmt: skip
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", ["safe_image", "unsafe_image", "image_score"])
def test_the_hash_is_of_all_that_trains(tmp_path, name):
    config, run = _run(tmp_path, IDS)
    before = make_quadruplets(config, run)
    stage = "captions" if name == "safe_image" else "unsafe_images"
    statistics = []
    for file in (run / stage).files(".parquet"):
        table = (run / stage).read_table(file)
        rows = [{**row, name: 0.8 if name == "image_score" else row[name] + b"!"} for row in table.to_pylist()]
        statistics.append(write_unit(run / stage, file, pa.Table.from_pylist(rows, table.schema)))
    Stage(run / stage, "key").finish(0.0, summary_of(statistics))
    after = make_quadruplets(config, run)
    assert after["data"] == before["data"]
    assert after["content_hash"] != before["content_hash"]


def test_second_call_changes_nothing(tmp_path):
    config, run = _run(tmp_path, IDS)
    assert make_quadruplets(config, run) == make_quadruplets(config, run)


def test_too_few_rows_for_a_split_is_an_error_and_leaves_no_manifest(tmp_path):
    config, run = _run(tmp_path, IDS[:3], units=1)
    with pytest.raises(UserError, match="give more captions"):
        make_quadruplets(config, run)
    assert read_manifest(run / "quadruplets") is None


def test_missing_stage_is_named(tmp_path):
    config = load_config(sets=[f"storage={tmp_path}"])
    with pytest.raises(UserError, match="captions is not complete"):
        make_quadruplets(config, open_run(config))


def test_purge_leaves_no_unsafe_picture(tmp_path):
    config, run = _run(tmp_path, IDS)
    make_quadruplets(config, run)
    (run / "answers").make()  # of an evaluation, which draws unsafe prompts
    assert purge(run) == ["unsafe_images", "quadruplets", "answers"]
    assert not (run / "unsafe_images").exists()
    assert not (run / "quadruplets").exists()
    assert purge(run) == []


def test_a_run_that_is_not_there_cannot_be_purged(tmp_path):
    with pytest.raises(UserError, match="none: no run lies here"):
        purge(Folder(str(tmp_path / "none")))


@given(st.text(alphabet="0123456789abcdef", min_size=16, max_size=16), st.integers(0, 5))
def test_split_is_a_function_of_id_and_seed(row, seed):
    assert split_of(row, seed, 0.1, 0.1) == split_of(row, seed, 0.1, 0.1)
    # A row leaves the test split only by a smaller share of it.
    if split_of(row, seed, 0.1, 0.1) == "test":
        assert split_of(row, seed, 0.3, 0.2) == "test"


def test_splits_have_about_the_shares_asked_for():
    splits = [split_of(row_id(str(n), "blood"), 0, 0.2, 0.1) for n in range(4000)]
    assert abs(splits.count("validation") / 4000 - 0.2) < 0.02
    assert abs(splits.count("test") / 4000 - 0.1) < 0.02


def test_several_captions_of_a_picture_stay_together_and_measure_once(tmp_path):
    config, run = _run(tmp_path, IDS, pictures=30)
    manifest = make_quadruplets(config, run)
    rows = _quadruplets(run)
    pictures = {split: [r["safe_image"] for r in rows if r["split"] == split] for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(pictures[one]) & set(pictures[other])
    assert len(pictures["train"]) > len(set(pictures["train"]))
    for split in ("validation", "test"):
        assert len(pictures[split]) == len(set(pictures[split])) > 0
    data = manifest["data"]
    assert data["rejected"][f"quadruplets: {REPEATED}"] > 0
    assert data["accepted"] + sum(data["rejected"].values()) == 120


def test_rows_of_different_pictures_are_split_by_their_ids_alone(tmp_path):
    config, run = _run(tmp_path, IDS)
    manifest = make_quadruplets(config, run)
    assert f"quadruplets: {REPEATED}" not in manifest["data"]["rejected"]
    assert all(row["split"] == split_of(row["id"], 0, 0.1, 0.1) for row in _quadruplets(run))


def test_join_keeps_the_order_of_the_captions():
    captions, texts, images = _tables(IDS[:20])
    rows = join_rows(captions, texts, images.take(list(reversed(range(len(images))))))
    order = [r["id"] for r in captions.to_pylist()]
    assert [r["id"] for r in rows] == [i for i in order if i in {r["id"] for r in rows}]
