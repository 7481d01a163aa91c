import json
import os
import pickle
import stat
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safeclip import artifacts
from safeclip.artifacts import Folder, Stage, for_each, hash_of, read_manifest, saved_config, table_hash
from safeclip.errors import UserError

TABLE = pa.table({"id": ["a", "b"], "picture": [b"\x00\x01", None], "reject": [None, "duplicate"]})


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path):
    places = {
        "local": lambda: str(tmp_path / "runs"),
        "memory": lambda: f"memory://{uuid.uuid4().hex}",
        "s3": lambda: request.getfixturevalue("s3"),
    }
    made = Folder(places[request.param]()) / "demo"
    made.make()
    return made


def test_files_come_back_and_are_listed(folder):
    folder.write("b.json", b"{}")
    folder.write("a.parquet", b"")
    (folder / "inner").make()
    (folder / "inner").write("c.json", b"[]")
    assert folder.files() == ["a.parquet", "b.json"]
    assert folder.files(".json") == ["b.json"]
    assert folder.read("b.json") == b"{}"
    assert (folder / "inner").read("c.json") == b"[]"
    assert folder.exists("b.json")
    assert not folder.exists("c.json")
    folder.write("b.json", b"new")
    assert folder.read("b.json") == b"new"


def test_what_others_write_and_remove_on_an_object_store_is_seen_at_once(s3):
    folder, path = Folder(s3), s3.removeprefix("s3://")
    other = fsspec.filesystem("s3", skip_instance_cache=True)  # knows no more of what this one does than a process
    folder.write("a", b"1")
    assert folder.files() == ["a"]
    other.pipe_file(f"{path}/b", b"2")
    other.pipe_file(f"{path}/inner/c", b"3")
    assert folder.exists("b")
    assert (folder.files(), folder.folders(), folder.sizes()) == (["a", "b"], ["inner"], {"a": 1, "b": 1})
    other.rm_file(f"{path}/a")
    assert not folder.exists("a")
    other.pipe_file(f"{path}/d", b"4")
    folder.remove()
    assert not other.find(path, refresh=True)
    assert not pickle.loads(pickle.dumps(folder.fs)).dircache.use_listings_cache


def test_no_bucket_is_made_of_a_name_that_is_mistyped(s3):
    folder = Folder("s3://testss/runs/demo")
    folder.make()
    assert not folder.exists()
    said = (
        "^s3://testss/runs/demo/a: cannot be written: The specified bucket does not exist; make it, or name another$"
    )
    with pytest.raises(UserError, match=said):
        folder.write("a", b"")
    assert "testss" not in fsspec.filesystem("s3").ls("", refresh=True)


def test_without_credentials_a_store_is_not_taken_for_empty(s3, monkeypatch):
    folder = Folder(s3)
    folder.write("a", b"")
    folder.fs.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said = rf"^{s3}.*: Unable to locate credentials; give every machine credentials \(AWS_ACCESS_KEY_ID and"
    try:
        for use in (folder.exists, lambda: folder.write("a", b"")):
            with pytest.raises(UserError, match=said):
                use()
    finally:
        folder.fs.clear_instance_cache()


def test_many_files_are_read_in_the_order_of_their_names(folder):
    names = [f"{number}" for number in range(40)]
    for name in names:
        folder.write(name, name.encode())
    assert for_each(folder.read, names) == [name.encode() for name in names]
    with pytest.raises(FileNotFoundError):
        for_each(folder.read, ["0", "none"])


def test_links_are_what_they_lead_to(tmp_path):
    (tmp_path / "store" / "inner").mkdir(parents=True)
    (tmp_path / "store" / "b.png").write_bytes(b"b")
    links = tmp_path / "links"
    links.mkdir()
    for name, place in {"a.png": "b.png", "dogs": "inner", "gone.png": "nowhere"}.items():
        (links / name).symlink_to(tmp_path / "store" / place)
    assert Folder(str(links)).files() == ["a.png"]
    assert Folder(str(links)).folders() == ["dogs"]


def test_a_folder_that_was_removed_in_part_is_not_complete(folder, monkeypatch):
    Stage(folder, "key").finish(0.0, {})
    folder.write("a.parquet", b"")

    def cut_off(path, recursive):
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(folder.fs, "rm", cut_off)
        with pytest.raises(OSError, match="cut off"):
            folder.remove()
    assert folder.files() == ["a.parquet"]
    assert read_manifest(folder) is None
    folder.remove()
    assert not folder.exists()


def test_what_several_write_at_once_is_whole_at_any_time(tmp_path):
    folder, sizes = Folder(str(tmp_path)), (10, 2_000_000)

    def write(size):
        for _ in range(30):
            folder.write("a", b"." * size)

    write(sizes[0])
    with ThreadPoolExecutor(2) as pool:
        writing = [pool.submit(write, size) for size in sizes]
        while not all(each.done() for each in writing):
            assert len(folder.read("a")) in sizes
        for each in writing:
            each.result()
    assert os.listdir(tmp_path) == ["a"]


def test_tables_come_back_whole(folder):
    folder.write_table("t.parquet", TABLE)
    assert folder.read_table("t.parquet").equals(TABLE)


def test_of_a_table_no_other_columns_are_read_than_those_named(folder):
    pictures = [bytes([n]) * 1000 for n in range(40)]
    folder.write_table("t.parquet", pa.table({"id": list(range(40)), "picture": pictures}))
    data = bytearray(folder.read("t.parquet"))
    begins = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(0).column(1).dictionary_page_offset
    data[begins : begins + 8] = b"\xff" * 8
    folder.write("t.parquet", bytes(data))
    with pytest.raises(OSError, match="page"):
        folder.read_table("t.parquet")
    assert folder.read_table("t.parquet", ["id"]).to_pydict() == {"id": list(range(40))}


def test_a_folder_that_is_not_there_has_no_files(folder):
    missing = folder / "missing"
    assert not missing.exists()
    assert missing.files() == []
    missing.remove()
    folder.write("a", b"1")
    folder.remove()
    assert not folder.exists()


def test_a_manifest_marks_a_stage_complete_for_its_key_only(folder):
    stage = Stage(folder / "captions", "key")
    stage.folder.make()
    assert stage.manifest() is None
    written = stage.finish(time.time() - 1, {"rows": 3})
    assert written == stage.manifest() == read_manifest(stage.folder)
    assert (written["stage"], written["key"], written["rows"]) == ("captions", "key", 3)
    assert written["seconds"] >= 1
    assert written["versions"]["ray"]
    assert Stage(folder / "captions", "other").manifest() is None
    assert Stage(Folder(f"{stage.folder.url}/"), "key").name == "captions"


def test_beginning_anew_ends_what_the_manifest_of_other_settings_marked_complete(folder):
    stage, other = (Stage(folder / "captions", key) for key in ("key", "other"))
    before = time.time()
    assert before <= stage.begin() <= time.time()
    stage.finish(before, {})
    other.begin()
    assert stage.manifest() is other.manifest() is read_manifest(stage.folder) is None


def test_a_damaged_manifest_says_what_to_do(folder):
    folder.write("manifest.json", b"{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged; remove the folder"):
        read_manifest(folder)


def test_a_folder_without_a_run_is_named(folder):
    with pytest.raises(UserError, match=r"no run lies here"):
        saved_config(folder)


def test_a_write_that_fails_half_way_leaves_the_earlier_file(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("a.json", b"whole")

    def full(self, path, value, **options):
        with open(path, "wb") as file:
            file.write(value[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(folder.fs), "pipe_file", full)
    with pytest.raises(UserError, match=r"a\.json: cannot be written: No space left on device"):
        folder.write("a.json", b"other")
    assert folder.read("a.json") == b"whole"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/runs: cannot be made"):
        Folder(str(tmp_path / "file" / "runs")).make()


@pytest.mark.parametrize(
    ("url", "said"), [("gs://bucket/runs", "Please install gcsfs"), ("nosuch://runs", "Protocol not known")]
)
def test_a_file_system_that_is_not_installed_is_named_with_its_package(url, said):
    for use in (Folder(url).exists, Folder(url).make, lambda: Folder(url).is_local):
        with pytest.raises(UserError, match=f"^{url}: {said}"):
            use()


def test_a_private_folder_is_its_owners_alone(tmp_path):
    folder = Folder(str(tmp_path / "unsafe_images"))
    folder.make(private=True)
    assert stat.S_IMODE(os.stat(folder.path()).st_mode) == 0o700


def test_hashes_depend_on_the_data_only():
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert hash_of("a", "b") != hash_of("ab") != hash_of("b", "a")
    assert len(hash_of()) == 16


def test_the_hash_of_a_table_is_of_its_rows_in_order():
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert table_hash(chunked) == table_hash(TABLE)
    assert table_hash(TABLE.take([1, 0])) != table_hash(TABLE)
    assert table_hash(TABLE.set_column(1, "picture", [[b"\x00\x02", None]])) != table_hash(TABLE)
    assert table_hash(TABLE.rename_columns(["id", "image", "reject"])) != table_hash(TABLE)


def test_the_hash_survives_a_file(folder):
    folder.write_table("t.parquet", TABLE)
    assert table_hash(folder.read_table("t.parquet")) == table_hash(TABLE)


def test_a_manifest_is_json_that_others_can_read(folder):
    Stage(folder, "k").finish(time.time(), {"units": []})
    assert json.loads(folder.read("manifest.json"))["units"] == []


def test_versions_are_those_installed():
    assert artifacts.versions()["pyarrow"] == pa.__version__
