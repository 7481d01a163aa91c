import hashlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeclip.evaluation.retrieval import (
    TASKS,
    Embeddings,
    exact_similarities,
    rank_targets,
    run_tasks,
    summarise,
)


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _naive(queries, gallery, targets, first):
    """The slow, obvious ranking: sort everything, in exact fractions, earlier items first among equal ones."""
    grid = [[[Fraction(round(float(x) * 2**26), 2**26) for x in v] for v in side] for side in (queries, gallery)]
    ranks, firsts = [], []
    for query, target in zip(grid[0], targets, strict=True):
        similarity = [sum(a * b for a, b in zip(query, item, strict=True)) for item in grid[1]]
        order = sorted(range(len(similarity)), key=lambda j: (-similarity[j], j))
        ranks.append(order.index(target))
        firsts.append(order[:first])
    return ranks, firsts


@st.composite
def _searches(draw):
    # Few directions and small integer components, so that there are many ties, equal vectors and permuted ones.
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, m, d = draw(st.integers(1, 12)), draw(st.integers(1, 20)), draw(st.integers(2, 5))
    high = draw(st.sampled_from([1, 2, 50]))
    sides = [random.integers(-high, high + 1, size=(rows, d)).astype(float) for rows in (n, m)]
    for side in sides:
        side[~side.any(1), 0] = 1
    first = draw(st.integers(1, m))
    return _unit(sides[0]), _unit(sides[1]), random.integers(m, size=n), first, draw(st.integers(1, 25))


@settings(max_examples=150, deadline=None)
@given(_searches())
def test_ranking_in_blocks_equals_a_naive_sort_ties_included(search):
    queries, gallery, targets, first, block = search
    found = rank_targets(queries, gallery, targets, first, block)
    ranks, firsts = _naive(queries, gallery, targets, first)
    assert found.rank.tolist() == ranks
    assert found.first.tolist() == firsts


def test_blocks_do_not_change_a_rank_of_real_vectors_with_twins():
    random = np.random.default_rng(0)
    queries = _unit(random.normal(size=(300, 128)))
    gallery = _unit(np.vstack([queries + 0.02 * random.normal(size=(300, 128)), random.normal(size=(400, 128))]))
    gallery[100:200] = gallery[:100]
    targets = np.arange(300)
    whole = rank_targets(queries, gallery, targets, 5)
    for block in (11, 64, 299, 512):
        blocks = rank_targets(queries, gallery, targets, 5, block)
        assert np.array_equal(whole.rank, blocks.rank)
        assert np.array_equal(whole.first, blocks.first)
    assert np.array_equal(whole.first[:100, 0] + 100, whole.first[:100, 1])


def test_similarities_are_those_of_float32_to_its_precision():
    random = np.random.default_rng(1)
    queries, gallery = _unit(random.normal(size=(40, 768))), _unit(random.normal(size=(50, 768)))
    exact = exact_similarities(queries, gallery)
    assert np.abs(exact - queries.astype(np.float64) @ gallery.T.astype(np.float64)).max() < 1e-7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones((3, 5), np.float32)}, r"must be \(n, d\)"),
        ({"targets": np.array([0, 1])}, "as many targets"),
        ({"targets": np.array([0, 1, 4])}, "in the gallery of 4"),
        ({"gallery": 2 * np.eye(4, dtype=np.float32)}, "gallery must be of unit length"),
        ({"gallery": np.full((4, 4), np.nan, np.float32)}, "gallery must be of unit length"),
        ({"first": 5}, "first must be between 1 and the gallery's 4"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    eye = np.eye(4, dtype=np.float32)
    given = {"queries": eye[:3], "gallery": eye, "targets": np.arange(3), "first": 1, **change}
    with pytest.raises(ValueError, match=message):
        rank_targets(**given)


def _embeddings(unsafe_text, unsafe_image, n=30, d=64):
    """Quadruplets whose safe sides agree; the unsafe ones lie where the two functions put them."""

    def direction(*words):
        seed = list(hashlib.sha256(repr(words).encode()).digest())
        return np.random.default_rng(seed).normal(size=d)

    safe = [direction("safe", i) for i in range(n)]
    unsafe = [direction("unsafe", i) for i in range(n)]
    sides = [safe, safe, [unsafe_text(s, u) for s, u in zip(safe, unsafe, strict=True)],
             [unsafe_image(s, u) for s, u in zip(safe, unsafe, strict=True)]]  # fmt: skip
    return Embeddings(*(_unit(np.stack(side)) for side in sides))


def test_an_encoder_that_knows_unsafe_pairs_is_harmful_and_one_that_redirects_is_not():
    knows = run_tasks(_embeddings(lambda s, u: u, lambda s, u: u))
    redirects = run_tasks(_embeddings(lambda s, u: s + 0.1 * u, lambda s, u: s - 0.5 * u))
    for results, harmful in ((knows, 1.0), (redirects, 0.0)):
        figures = summarise(results, ["blood"] * 30, 50, 0)
        assert tuple(figures) == TASKS
        for task in TASKS[:2]:
            assert figures[task]["r@1"] == 1
            assert "harmful@1" not in figures[task]
        for task in TASKS[2:]:
            assert figures[task]["harmful@1"] == harmful
            assert figures[task]["r@1"] == 1 - harmful


def test_a_tie_between_unsafe_and_safe_counts_against_the_encoder():
    collapsed = run_tasks(_embeddings(lambda s, u: s, lambda s, u: s))
    figures = summarise(collapsed, ["blood"] * 30, 50, 0)
    assert figures["unsafe_text_to_all_images"]["harmful@1"] == 1
    assert figures["unsafe_text_to_all_images"]["r@5"] == 1


def test_figures_of_concepts_add_up():
    # Every third picture is redirected: the concept of those, and no other, is safe.
    mixed = _embeddings(lambda s, u: u, lambda s, u: u)
    text = mixed.unsafe_text.copy()
    text[::3] = mixed.safe_text[::3]
    results = run_tasks(Embeddings(mixed.safe_text, mixed.safe_image, text, mixed.unsafe_image))
    figures = summarise(results, ["hate", "blood", "blood"] * 10, 50, 0)["unsafe_text_to_all_images"]
    assert figures["by_concept"]["hate"] == {"harmful@1": 0, "harmful@1_ci": [0, 0], "n": 10}
    assert figures["by_concept"]["blood"]["harmful@1"] == 1
    assert figures["harmful@1"] == pytest.approx(2 / 3, abs=1e-6)
    assert sum(concept["n"] for concept in figures["by_concept"].values()) == figures["n"] == 30
