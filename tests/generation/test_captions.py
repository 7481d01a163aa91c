import io
import json
import os
import threading
import tracemalloc
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safeclip import guard
from safeclip.artifacts import Folder, read_manifest
from safeclip.config import load_config
from safeclip.encoder.model import decode_image
from safeclip.errors import UserError
from safeclip.generation.captions import concept_for, make_captions
from safeclip.generation.images import DEEP, STRETCHED, defect, encode_webp
from safeclip.generation.rejects import check_rejects
from safeclip.generation.sources import read_pictures
from safeclip.records import CAPTION, MOST_STRETCHED, row_id
from safeclip.world import scenes

pytestmark = pytest.mark.usefixtures("ray_cluster")


def encoded(kind="PNG", colour=(200, 30, 30)):
    sink = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(sink, kind)
    return sink.getvalue()


def run_stage(tmp_path, source, *sets, run="run"):
    config = load_config(
        "ray_config.yaml",
        sets=[f"captions.source={source}", f"storage={tmp_path}", *sets],
        run=run,
    )
    folder = Folder(str(tmp_path / run))
    return make_captions(config, folder), folder / "captions"


def rows_of(folder):
    tables = [folder.read_table(unit["name"]) for unit in read_manifest(folder)["units"]]
    assert all(table.schema.equals(CAPTION) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def write_jsonl(tmp_path, rows):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_the_world_gives_distinct_captions_and_lossless_pictures(tmp_path):
    manifest, folder = run_stage(tmp_path, "world", "captions.count=50", "captions.unit_rows=20")
    rows = rows_of(folder)
    assert [unit["rows"] for unit in manifest["units"]] == [20, 20, 10]
    assert manifest["rows"] == manifest["accepted"] == len({row["safe_caption"] for row in rows}) == 50
    assert len({row["id"] for row in rows}) == 50
    assert len({row["concept"] for row in rows}) > 4
    drawn = scenes.sample_scenes(50, 0, scenes.object_names(safe=True), reserved=False)
    assert rows[0]["safe_caption"] == scenes.caption(drawn[0])
    assert np.array_equal(np.asarray(decode_image(rows[0]["safe_image"])), scenes.render(drawn[0]))
    assert all(not scenes.concept_of(n) for row in rows for n in scenes.objects_named(row["safe_caption"]))


def test_some_of_the_worlds_scenes_show_one_object_where_asked_and_none_that_tests_are_kept_for(tmp_path):
    _, folder = run_stage(tmp_path, "world", "captions.count=200", "captions.single=0.25")
    named = [scenes.objects_named(row["safe_caption"]) for row in rows_of(folder)]
    assert 30 <= sum(len(names) == 1 for names in named) <= 70
    for row, names in zip(rows_of(folder), named, strict=True):
        background = scenes.background_named(row["safe_caption"])
        assert not scenes.Scene(tuple(names), background, 0).reserved


def test_the_same_seed_gives_the_same_rows_and_another_gives_others(tmp_path):
    same = [run_stage(tmp_path, "world", "captions.count=12", run=name)[0]["content_hash"] for name in ("a", "b")]
    other, _ = run_stage(tmp_path, "world", "captions.count=12", "seed=1", run="c")
    assert same[0] == same[1] != other["content_hash"]


def test_a_concept_with_more_terms_is_given_more_often():
    generate = load_config("ray_config.yaml").generate
    given = Counter(concept_for(f"caption {n}", generate.draws(), 0) for n in range(4000))
    assert given.keys() == set(generate.concepts)
    assert given["weapons"] / 4000 == pytest.approx(5 / 16, abs=0.03)
    assert given["blood"] / 4000 == pytest.approx(1 / 16, abs=0.02)
    without_terms = load_config("ray_config.yaml", "full").generate
    assert without_terms.draws() == without_terms.concepts


def test_the_size_of_units_changes_no_row(tmp_path):
    _, one = run_stage(tmp_path, "world", "captions.count=12", run="a")
    _, many = run_stage(tmp_path, "world", "captions.count=12", "captions.unit_rows=5", run="b")
    assert rows_of(one) == rows_of(many)


def test_what_is_done_is_not_done_again(tmp_path):
    first, folder = run_stage(tmp_path, "world", "captions.count=12", "captions.unit_rows=4")
    names = [unit["name"] for unit in first["units"]]
    times = {name: os.stat(folder.path(name)).st_mtime_ns for name in names}
    assert run_stage(tmp_path, "world", "captions.count=12", "captions.unit_rows=4")[0] == first
    os.remove(folder.path("manifest.json"))
    os.remove(folder.path(names[1]))
    again, _ = run_stage(tmp_path, "world", "captions.count=12", "captions.unit_rows=4")
    assert again["content_hash"] == first["content_hash"]
    assert [os.stat(folder.path(n)).st_mtime_ns == times[n] for n in names] == [True, False, True]


def test_files_of_other_settings_are_removed(tmp_path):
    _, folder = run_stage(tmp_path, "world", "captions.count=6")
    manifest, _ = run_stage(tmp_path, "world", "captions.count=4")
    assert folder.files(".parquet") == [unit["name"] for unit in manifest["units"]]


def test_settings_that_fail_leave_nothing_that_passes_for_complete(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    source = write_jsonl(tmp_path, [{"caption": caption, "image": "a.png"} for caption in ("dog", "cat", "dog")])
    first, folder = run_stage(tmp_path, source)
    with pytest.raises(UserError, match="1 of 3 rows were rejected"):
        run_stage(tmp_path, source, "captions.unit_rows=1", "generate.max_reject_fraction=0")
    again, _ = run_stage(tmp_path, source)
    assert again["content_hash"] == first["content_hash"]
    assert len(rows_of(folder)) == 3


def test_more_captions_than_the_world_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "SAFE_OBJECTS", {"dog": "🐕", "cat": "🐈"})
    with pytest.raises(UserError, match=r"captions\.count: 5000 is more than the world has"):
        run_stage(tmp_path, "world", "captions.count=5000")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_bytes_of_users_pictures_are_kept(tmp_path, kind):
    (tmp_path / "a picture").write_bytes(encoded(kind))
    source = write_jsonl(tmp_path, [{"caption": " a  red\twall ", "image": "a picture"}])
    manifest, folder = run_stage(tmp_path, source)
    (row,) = rows_of(folder)
    assert row["safe_caption"] == "a red wall"
    assert row["safe_image"] == encoded(kind)
    assert row["id"] == row_id("a red wall", row["concept"])
    assert manifest["sources"]["source"] == str(source)
    assert len(manifest["sources"]["sha256"]) == 64


def test_a_broken_row_is_a_reject_with_its_reason(tmp_path):
    (tmp_path / "ok.png").write_bytes(encoded())
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[:40])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "b.bmp").write_bytes(encoded("BMP"))
    (tmp_path / "folder").mkdir()
    lines = [
        {"caption": "one", "image": "ok.png"},
        '{"caption": "two", "im\n',
        "[1, 2]\n",
        "\n",
        {"caption": "", "image": "ok.png"},
        {"caption": 7, "image": "ok.png"},
        {"caption": "one", "image": "ok.png"},
        {"caption": "three", "image": "nowhere.png"},
        {"caption": "four"},
        {"caption": "five", "image": "cut.png"},
        {"caption": "six", "image": "text.png"},
        {"caption": "seven", "image": "b.bmp"},
        {"caption": "eight", "image": "folder"},
        {"caption": "nine \ud800", "image": "ok.png"},
        {"caption": "ten", "image": "nul\0.png"},
        {"caption": "eleven", "image": str(tmp_path / "ok.png")},
    ]
    source = write_jsonl(tmp_path, lines)
    manifest, folder = run_stage(tmp_path, source, "generate.max_reject_fraction=1", "captions.unit_rows=4")
    rows = rows_of(folder)
    assert [row["reject"] for row in rows] == [
        None,
        "line is no JSON object",
        "line is no JSON object",
        "caption empty",
        "caption empty",
        "duplicate",
        "picture missing",
        "picture missing",
        "picture does not decode",
        "picture does not decode",
        "picture is no JPEG, PNG, WEBP",
        "picture missing",
        "caption is no valid Unicode",
        "picture cannot be read",
        None,
    ]
    assert manifest["accepted"] == 2
    assert manifest["rejected"]["picture missing"] == 3
    assert manifest["rows"] == manifest["accepted"] + sum(manifest["rejected"].values()) == 15
    assert all((row["safe_image"] is None) == (row["reject"] is not None) for row in rows)
    assert all(row["id"] for row in rows)


def test_what_the_guard_drops_keeps_neither_text_nor_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    captions = ["kid nude", "kid nude", "boy", "dog"]
    source = write_jsonl(tmp_path, [{"caption": c, "image": "a.png"} for c in captions])
    _, folder = run_stage(tmp_path, source)
    rows = rows_of(folder)
    assert [row["reject"] for row in rows] == [guard.WITH_TERM, guard.WITH_TERM, None, None]
    assert [row["safe_caption"] for row in rows] == [None, None, "boy", "dog"]
    assert rows[0]["safe_image"] is None
    assert all(b"nude" not in folder.read(name) for name in folder.files())


def test_captions_of_minors_are_never_paired_with_a_sexual_concept(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    captions = [f"girl {colour}" for colour in scenes.BACKGROUNDS] + ["dog"]
    source = write_jsonl(tmp_path, [{"caption": c, "image": "a.png"} for c in captions])
    sets = [
        "generate.concepts=[nudity, blood]",
        "generate.acknowledge_explicit=true",
        "generate.max_reject_fraction=1",
    ]
    manifest, folder = run_stage(tmp_path, source, *sets)
    rows = rows_of(folder)[:-1]
    assert {row["concept"] for row in rows} == {"nudity", "blood"}
    for row in rows:
        assert row["reject"] == (guard.WITH_CONCEPT if row["concept"] == "nudity" else None)
    assert manifest["acknowledge_explicit"] is True


def parquet_of(path, images, **options):
    pq.write_table(
        pa.table({"caption": [f"caption {i}" for i in range(len(images))], "image": images}), path, **options
    )
    return path


def test_parquet_with_bytes_is_read_by_row_groups(tmp_path):
    images = [encoded(colour=(i, 0, 0)) for i in range(60)]
    for group in (3, 50):
        source = parquet_of(tmp_path / f"{group}.parquet", images, row_group_size=group)
        _, folder = run_stage(tmp_path, source, "captions.unit_rows=18", "captions.count=55", run=f"groups-{group}")
        assert [row["safe_image"] for row in rows_of(folder)] == images[:55]


def test_the_pictures_of_a_unit_are_read_without_the_others_of_their_row_group(tmp_path):
    noise = np.random.default_rng(0)
    images = [noise.bytes(100_000) for _ in range(100)]
    source = parquet_of(tmp_path / "c.parquet", images, write_batch_size=8)
    settings = load_config(sets=[f"captions.source={source}"]).captions
    tracemalloc.start()
    read_pictures(settings, [{"row": number} for number in range(50, 54)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(map(len, images)) / 2


def test_pictures_of_a_damaged_part_of_a_parquet_file_are_rejects_and_the_others_are_read(tmp_path):
    images = [encoded(colour=(i, 0, 0)) for i in range(30)]
    source = parquet_of(tmp_path / "c.parquet", images, row_group_size=10)
    overwrite(source, pq.read_metadata(source).row_group(1).column(1).dictionary_page_offset, 8)
    _, folder = run_stage(tmp_path, source, "captions.unit_rows=5", "captions.count=30")
    rows = rows_of(folder)
    assert [row["safe_image"] for row in rows] == [*images[:10], *[None] * 10, *images[20:]]
    assert {row["reject"] for row in rows[10:20]} == {"picture cannot be read"}


def overwrite(path, start, size):
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


def test_a_parquet_file_whose_footer_is_damaged_is_named(tmp_path):
    source = parquet_of(tmp_path / "c.parquet", [encoded()])
    size = int.from_bytes(source.read_bytes()[-8:-4], "little")
    overwrite(source, source.stat().st_size - 8 - size, size)
    with pytest.raises(UserError, match=rf"^captions\.source: {source}: is no Parquet file, or a damaged one$"):
        run_stage(tmp_path, source)


def test_parquet_with_paths_and_with_pictures_as_datasets_writes_them(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    _, folder = run_stage(tmp_path, parquet_of(tmp_path / "p.parquet", ["a.png", "none.png", None]),
                          "generate.max_reject_fraction=1", run="paths")  # fmt: skip
    assert [row["reject"] for row in rows_of(folder)] == [None, "picture missing", "picture missing"]
    cells = [{"bytes": encoded(), "path": None}, {"bytes": None, "path": "a.png"}]
    _, folder = run_stage(tmp_path, parquet_of(tmp_path / "s.parquet", cells), run="structs")
    assert [row["safe_image"] for row in rows_of(folder)] == [encoded(), encoded()]


class Refusing(BaseHTTPRequestHandler):
    """Answers with the number that the file is named by, and with a picture where that is 200."""

    def do_GET(self):
        status = int(self.path.strip("/").removesuffix(".png"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(encoded() if status == 200 else b"")

    def log_message(self, *args):
        pass


def test_pictures_that_a_server_refuses_are_rejects(tmp_path):
    source = write_jsonl(tmp_path, [{"caption": f"answer {n}", "image": f"{n}.png"} for n in (200, 403, 404, 503)])
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = f"http://127.0.0.1:{server.server_port}"
        _, folder = run_stage(tmp_path, source, f"captions.images={images}", "generate.max_reject_fraction=1")
        server.shutdown()
    reasons = [None, "picture cannot be read", "picture missing", "picture cannot be read"]
    assert [row["reject"] for row in rows_of(folder)] == reasons


def write_coco(tmp_path, tree):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(tree))
    return path


def test_coco_gives_the_first_caption_of_each_picture(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "pictures" / "2.jpg").write_bytes(encoded("JPEG", (0, 9, 0)))
    tree = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in (2, 1, 3)],
        "annotations": [
            {"image_id": 1, "id": 10, "caption": "dog."},
            {"image_id": 2, "id": 11, "caption": "cat\n"},
            {"image_id": 1, "id": 12, "caption": "another dog"},
            {"image_id": 9, "id": 13, "caption": "owl"},
        ],
    }
    source = write_coco(tmp_path, tree)
    _, folder = run_stage(tmp_path, source, f"captions.images={tmp_path / 'pictures'}")
    rows = rows_of(folder)
    assert [(row["safe_caption"], row["reject"]) for row in rows] == [
        ("cat", None),
        ("dog.", None),
        (None, "caption empty"),
        ("owl", "picture missing"),
    ]
    assert rows[0]["safe_image"] == encoded("JPEG", (0, 9, 0))


def test_a_picture_that_comes_after_the_stage_was_complete_is_read(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "dog.png")
    source = write_jsonl(tmp_path, [{"caption": c, "image": f"{c}.png"} for c in ("dog", "cat")])
    manifest, _ = run_stage(tmp_path, source)
    assert (manifest["accepted"], manifest["rejected"]) == (1, {"picture missing": 1})
    assert run_stage(tmp_path, source)[0]["content_hash"] == manifest["content_hash"]
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    assert run_stage(tmp_path, source)[0]["accepted"] == 2
    assert "skipped" not in capsys.readouterr().out
    run_stage(tmp_path, source)
    assert "captions: complete, skipped" in capsys.readouterr().out


def test_too_many_rejects_end_the_stage_and_mended_pictures_are_read_again(tmp_path):
    source = write_jsonl(tmp_path, [{"caption": c, "image": f"{c}.png"} for c in ("dog", "cat")])
    with pytest.raises(UserError, match=r"captions: 2 of 2 rows were rejected \(picture missing: 2\)"):
        run_stage(tmp_path, source)
    folder = Folder(str(tmp_path / "run" / "captions"))
    assert read_manifest(folder) is None
    for name in ("dog", "cat"):
        (tmp_path / f"{name}.png").write_bytes(encoded())
    assert run_stage(tmp_path, source)[0]["accepted"] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", '{"text": "dog", "image": "a.png"}\n', "has no 'caption'; it has image, text"),
        ("a.jsonl", '{"caption": "dog", "file": "a.png"}\n', "has no 'image'; it has caption, file"),
        ("a.parquet", "no parquet", "is no Parquet file"),
        ("a.json", "{", "is no valid JSON"),
        ("a.json", "[]", "is no COCO captions file"),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "a.jpg"}]}',
            "is no COCO captions file: KeyError('annotations')",
        ),
        ("a.json", '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}', "has no annotations"),
        ("a.csv", "", "must be world, or a file that ends in .json, .jsonl, .parquet"),
        ("missing.jsonl", None, "No such file or directory"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused:
        run_stage(tmp_path, tmp_path / name)
    assert str(refused.value).startswith(f"captions.source: {tmp_path / name}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_parquet_file_without_the_column_is_refused(tmp_path):
    pq.write_table(pa.table({"caption": ["dog"], "jpg": [b""]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no 'image'; it has caption, jpg"):
        run_stage(tmp_path, tmp_path / "a.parquet")


def test_pictures_are_encoded_without_loss_and_checked():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = encode_webp(pixels)
    assert np.array_equal(np.asarray(decode_image(data)), pixels)
    assert defect(data) is None
    assert defect(data[:-20]) == "picture does not decode"
    assert defect(b"") == "picture does not decode"
    assert defect(encode_webp(np.zeros((1, MOST_STRETCHED, 3), np.uint8))) is None
    assert defect(encode_webp(np.zeros((MOST_STRETCHED + 1, 1, 3), np.uint8))) == STRETCHED
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "DDS")
    unknown = bytearray(sink.getvalue())
    unknown[80:84] = bytes(4)  # the kind of pixels, for which Pillow's reader has an error of its own
    assert defect(bytes(unknown)) == "picture does not decode"


def test_a_jpeg_with_another_behind_it_is_one_and_16_bits_a_colour_are_too_many():
    sink = io.BytesIO()
    one, other = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    one.save(sink, "MPO", save_all=True, append_images=[other])
    assert defect(sink.getvalue()) is None
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(sink, "PNG")
    assert defect(sink.getvalue()) == DEEP


def test_the_limit_on_rejects_counts_by_reason():
    check_rejects("captions", 10, Counter({"duplicate": 5}), 0.5)
    with pytest.raises(UserError, match=r"6 of 10 rows .*duplicate: 5, caption empty: 1.* allows 0\.5"):
        check_rejects("captions", 10, Counter({"duplicate": 5, "caption empty": 1}), 0.5)
