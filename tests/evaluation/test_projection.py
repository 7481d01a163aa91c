import numpy as np
import pytest

from safeclip.evaluation.projection import SIDES, principal_axes, project
from safeclip.evaluation.retrieval import Embeddings


def _embeddings(rows, width, seed=0):
    sides = np.random.default_rng(seed).normal(size=(4, rows, width))
    return Embeddings(*(sides / np.linalg.norm(sides, axis=2, keepdims=True)).astype(np.float32))


def test_the_axes_are_the_eigenvectors_of_the_largest_variances():
    vectors = np.random.default_rng(0).normal(size=(500, 6)) * [1, 5, 1, 3, 1, 1] + 7
    mean, axes = principal_axes(vectors)
    values, found = np.linalg.eigh(np.cov(vectors.T))
    for k in (0, 1):
        assert abs(axes[:, k] @ found[:, -1 - k]) == pytest.approx(1)
        assert axes[np.abs(axes[:, k]).argmax(), k] > 0
    assert ((vectors - mean) @ axes).var(0, ddof=1) == pytest.approx(values[[-1, -2]])


def test_encoders_share_the_first_one_s_axes_and_show_the_same_rows():
    one, other = _embeddings(50, 8), _embeddings(50, 8, 1)
    found = project({"one": one, "same": one, "other": other, "narrow": _embeddings(50, 4)}, 0, limit=20)
    assert found.own_axes == ["narrow"]
    for side in SIDES:
        assert found.points["one"][side].shape == (20, 2)
        assert np.array_equal(found.points["one"][side], found.points["same"][side])
    alone = project({"other": other}, 0, limit=20)
    assert not np.allclose(alone.points["other"]["safe_text"], found.points["other"]["safe_text"])
    assert np.array_equal(*(np.array(found.bounds(k)) for k in ("one", "other")))
    low, high = found.bounds("one")
    everything = np.concatenate([p for k in ("one", "same", "other") for p in found.points[k].values()])
    assert (low == everything.min(0)).all()
    assert (high == everything.max(0)).all()


def test_likeness_is_that_of_an_unsafe_text_with_its_two_pictures():
    e = _embeddings(10, 8)
    found = project({"a": Embeddings(e.safe_text, -e.unsafe_text, e.unsafe_text, e.unsafe_text)}, 0)
    assert found.likeness["a"] == {"unsafe": pytest.approx(1), "safe": pytest.approx(-1)}
