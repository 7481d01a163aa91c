import numpy as np
import pytest

from safeclip.evaluation.fidelity import clip_scores, frechet_distance, frechet_figures


def features(count, width, seed, shift=0.0):
    """Correlated features of unit length."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, width)) @ random.normal(size=(width, width)) + shift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def root(matrix):
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.clip(values, 0, None))) @ vectors.T


def slow_frechet(one, other):
    """As the formula says; tr (A B)^½ is tr (A^½ B A^½)^½, which is symmetric."""
    a, b = (np.cov(rows.astype(np.float64), rowvar=False) for rows in (one, other))
    apart = one.astype(np.float64).mean(0) - other.astype(np.float64).mean(0)
    half = root(a)
    return apart @ apart + np.trace(a) + np.trace(b) - 2 * np.trace(root(half @ b @ half))


def test_the_score_is_a_hundred_times_the_cosine_and_never_negative():
    images, texts = features(20, 6, 0), features(20, 6, 1)
    texts[0], texts[1] = images[0], -images[1]
    cosines = [
        sum(float(a) * float(b) for a, b in zip(*rows, strict=True)) for rows in zip(images, texts, strict=True)
    ]
    assert clip_scores(images, texts) == pytest.approx([100 * max(0, c) for c in cosines])
    assert clip_scores(images, texts)[:2] == pytest.approx([100, 0])


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_distance_is_that_of_the_formula(shift):
    real, drawn = features(60, 8, 0), features(50, 8, 1, shift)
    expected = slow_frechet(real, drawn)
    assert expected > 0.01
    assert frechet_distance(real, drawn) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-6)
    assert frechet_figures(real[:50], drawn) == {"frechet_distance": round(frechet_distance(real[:50], drawn), 6)}


def test_equal_sets_are_no_distance_apart():
    real = features(40, 8, 0)
    assert 0 <= frechet_distance(real, real[::-1].copy()) < 1e-6


def test_no_more_pictures_than_dimensions_are_too_few():
    real, drawn = features(8, 8, 0), features(8, 8, 1)
    with pytest.raises(ValueError, match="8 and 8 pictures are too few for 8 dimensions"):
        frechet_distance(real, drawn)
    found = frechet_figures(real, drawn)
    assert list(found) == ["notes"]
    assert "there are 8 pictures and 8 dimensions" in found["notes"][0]
    assert "frechet_distance" in frechet_figures(features(9, 8, 0), features(9, 8, 1))
