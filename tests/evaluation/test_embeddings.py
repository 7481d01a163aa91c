import io
import itertools

import numpy as np
from PIL import Image

from safeclip.artifacts import Folder
from safeclip.config import Evaluate, Resources
from safeclip.encoder.load import load_encoder
from safeclip.evaluation.embeddings import embed_sets, encode_tolerantly, read_cached, write_cached
from safeclip.evaluation.sets import EvaluationSet
from safeclip.world.quadruplets import rendered_quadruplets, trained_unsafe_objects


def _png(shade):
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (shade,) * 3).save(sink, "PNG")
    return sink.getvalue()


def test_what_is_kept_comes_back_and_what_is_cut_off_counts_as_missing(tmp_path):
    cache = Folder(str(tmp_path))
    random = np.random.default_rng(0)
    embeddings = {name: random.normal(size=(5, 7)).astype(np.float32) for name in ("text", "image")}
    embeddings["image"][2] = np.nan
    assert read_cached(cache, "a.parquet") is None
    write_cached(cache, "a.parquet", embeddings)
    found = read_cached(cache, "a.parquet")
    assert found.keys() == embeddings.keys()
    for name, values in embeddings.items():
        assert np.array_equal(found[name], values, equal_nan=True)
    whole = cache.read("a.parquet")
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.parquet").write_bytes(whole[:length])
        assert read_cached(cache, "a.parquet") is None


def test_a_file_without_rows_among_others_adds_nothing(ray_cluster, s3):
    rows = rendered_quadruplets(3, 3, trained_unsafe_objects())
    whole, cut = (EvaluationSet(name, "", "", Folder(s3) / name) for name in ("whole", "cut"))
    for source, starts in ((whole, (0, 3)), (cut, (0, 0, 2, 3, 3))):
        source.folder.make()
        for i, (start, stop) in enumerate(itertools.pairwise(starts)):
            source.folder.write_table(f"{i}.parquet", rows.slice(start, stop - start))
    settings = Evaluate(batch=2, resources=Resources(actors=1))
    found = embed_sets([whole, cut], {"base": "world:encoder"}, settings, Folder(s3) / "cache")
    assert found["cut"].ids == found["whole"].ids
    assert set(found["cut"].files) == {"1.parquet", "2.parquet"}
    for side in ("safe_text", "unsafe_image"):
        one, other = (getattr(found[name].embeddings["base"], side) for name in ("whole", "cut"))
        assert np.abs(one - other).max() < 1e-5


def test_pictures_that_do_not_decode_get_no_numbers_and_the_others_theirs():
    encoder = load_encoder("world:encoder")
    good, other = _png(10), _png(200)
    found = encode_tolerantly(encoder, [b"no picture", good, None, {"bytes": other, "path": None}, good[:60]])
    assert np.isfinite(found).all(1).tolist() == [False, True, False, True, False]
    assert np.abs(found[[1, 3]] - encoder.encode_images([good, other])).max() < 1e-6
    assert not np.isfinite(encode_tolerantly(encoder, [b""])).any()
