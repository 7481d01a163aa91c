import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeclip.evaluation.ranking import error_bound, exact_similarities, rank_targets


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


def _by_float64(queries, gallery, targets, first):
    """Ranks by the exact similarities of everything at once."""
    similarity = exact_similarities(queries, gallery)
    order = np.argsort(-similarity, axis=1, kind="stable")
    return (order == targets[:, None]).argmax(1), order[:, :first]


@pytest.mark.parametrize("spread", [0, 1e-7, 1e-5, 1e-3])
def test_items_closer_than_float32_tells_apart_are_ranked_exactly(spread):
    # Items crowd around few directions: all, many or few of them lie within the error of a float32 product.
    random = np.random.default_rng(3)
    centres = _unit(random.normal(size=(6, 256)))
    gallery = _unit(centres[random.integers(6, size=500)] + spread * random.normal(size=(500, 256)))
    queries = _unit(centres[random.integers(6, size=90)] + 0.05 * random.normal(size=(90, 256)))
    targets = random.integers(500, size=90)
    ranks, firsts = _by_float64(queries, gallery, targets, 7)
    for block in (64, 500):
        found = rank_targets(queries, gallery, targets, 7, block)
        assert np.array_equal(found.rank, ranks)
        assert np.array_equal(found.first, firsts)


def test_no_float32_product_errs_by_more_than_the_bound():
    random = np.random.default_rng(4)
    for width in (2, 64, 768):
        # Long sums of one sign round most.
        one, other = (_unit(1 + 0.1 * random.random((200, width))) for _ in range(2))
        error = np.abs(one @ other.T - exact_similarities(one, other)).max()
        assert 0 < error <= error_bound(width)


def test_a_gallery_on_disk_that_is_longer_than_the_queries_is_read_in_parts(tmp_path):
    random = np.random.default_rng(5)
    large, small = _unit(random.normal(size=(20_000, 16))), _unit(random.normal(size=(30, 16)))
    np.save(tmp_path / "large.npy", large)
    on_disk = np.load(tmp_path / "large.npy", mmap_mode="r")
    targets = random.integers(20_000, size=30)
    ranks, firsts = _by_float64(small, large, targets, 3)
    found = rank_targets(small, on_disk, targets, 3)
    assert np.array_equal(found.rank, ranks)
    assert np.array_equal(found.first, firsts)
    back = random.integers(30, size=20_000)
    assert np.array_equal(rank_targets(on_disk, small, back).rank, _by_float64(large, small, back, 1)[0])


def test_a_gallery_on_disk_is_read_in_parts(tmp_path):
    random = np.random.default_rng(0)
    written = np.memmap(tmp_path / "gallery", np.float32, "w+", shape=(200_000, 64))
    for start in range(0, len(written), 10_000):
        part = random.standard_normal((10_000, 64), dtype=np.float32)
        written[start : start + 10_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    written.flush()
    gallery = np.memmap(tmp_path / "gallery", np.float32, "r", shape=written.shape)
    targets = random.integers(len(gallery), size=20)
    tracemalloc.start()
    found = rank_targets(gallery[targets], gallery, targets, 3, block=1024, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.rank == 0).all()
    assert (found.first[:, 0] == targets).all()
    assert peak < gallery.nbytes / 4
