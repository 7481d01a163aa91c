import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safeclip.errors import UserError
from safeclip.evaluation.zero_shot_sets import open_set


def _png(shade):
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(sink, "PNG")
    return sink.getvalue()


def _write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def test_folders_are_classes(tmp_path):
    for place in ("big_dog/a.png", "big_dog/b.JPG", "cat/c.webp", "cat/notes.txt"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(_png(3))
    (tmp_path / "owl").mkdir()
    (tmp_path / ".cache").mkdir()
    found = open_set("pets", str(tmp_path))
    assert found.classes == ["big dog", "cat", "owl"]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.places == ["big_dog/a.png", "big_dog/b.JPG", "cat/c.webp"]
    assert found.notes == ["zero-shot pets: the class 'owl' has no pictures; it stays among the answers"]
    assert [len(unit.read()) for unit in found.pictures] == [3]
    texts = [text for unit in found.texts() for text in unit.texts]
    assert len(texts) == 3 * len(found.templates)
    assert "a bad photo of a big dog." in texts[:80]


def test_parquet_files_with_names_or_with_numbers_that_their_metadata_names(tmp_path):
    named = pa.table({"image": [_png(1), _png(2), _png(3)], "label": ["owl", "cat", "owl"]})
    _write(tmp_path / "named" / "0.parquet", named)
    found = open_set("pets", str(tmp_path / "named"))
    assert found.classes == ["cat", "owl"]
    assert found.labels.tolist() == [1, 0, 1]
    features = {"info": {"features": {"label": {"names": ["a_dog", "cat"]}}}}
    table = pa.table({"image": [{"bytes": _png(1), "path": None}] * 2, "label": [1, 0]})
    described = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    found = open_set("pets", _write(tmp_path / "numbers.parquet", described))
    assert found.classes == ["a dog", "cat"]
    assert found.labels.tolist() == [1, 0]
    assert found.notes == []
    with pytest.raises(UserError, match=r"numbers.parquet, row 0: the label 1 names no class; give names"):
        open_set("pets", _write(tmp_path / "numbers.parquet", table))


def test_a_file_replaced_in_place_has_another_stamp(tmp_path):
    for place in ("dog/a.png", "cat/b.png"):
        (tmp_path / "folders" / place).parent.mkdir(parents=True)
        (tmp_path / "folders" / place).write_bytes(_png(3))
    _write(tmp_path / "files" / "0.parquet", pa.table({"image": [_png(1)], "label": ["owl"]}))
    for kind, replaced in (("folders", "cat/b.png"), ("files", "0.parquet")):
        before = open_set("pets", str(tmp_path / kind)).stamps()
        assert open_set("pets", str(tmp_path / kind)).stamps() == before
        file = tmp_path / kind / replaced
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        after = open_set("pets", str(tmp_path / kind)).stamps()
        assert [a == b for a, b in zip(before, after, strict=True)].count(False) == 1


def test_what_is_no_data_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluate.zero_shot.pets: .*gone does not exist"):
        open_set("pets", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="holds neither folders of pictures, one for each class, nor Parquet files"):
        open_set("pets", str(tmp_path))
    with pytest.raises(UserError, match="has no column 'label'; it has image, class"):
        open_set("pets", _write(tmp_path / "a.parquet", pa.table({"image": [b""], "class": ["cat"]})))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="parquet is no Parquet file"):
        open_set("pets", str(tmp_path / "b.parquet"))
