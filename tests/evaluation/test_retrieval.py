import hashlib

import numpy as np
import pytest

from safeclip.evaluation.retrieval import TASKS, Embeddings, compare, run_tasks, summarise


def _unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


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
    hate = figures["by_concept"]["hate"]
    assert (hate["harmful@1"], hate["r@1"], hate["r@10"], hate["n"]) == (0, 1, 1, 10)
    assert (hate["harmful@1_ci"], hate["r@1_ci"]) == ([0, 0.308497], [0.691503, 1])
    assert figures["by_concept"]["blood"]["harmful@1"] == 1
    assert figures["harmful@1"] == pytest.approx(2 / 3, abs=1e-6)
    assert sum(concept["n"] for concept in figures["by_concept"].values()) == figures["n"] == 30


def test_median_ranks_count_from_one():
    figures = summarise(run_tasks(_embeddings(lambda s, u: u, lambda s, u: u)), ["blood"] * 30, 50, 0)
    assert figures["safe_text_to_safe_image"]["median_rank"] == 1
    # The unsafe pair stands before everything else, the safe one anywhere.
    assert figures["unsafe_text_to_all_images"]["median_rank"] > 2


def test_differences_are_those_of_the_figures():
    knows = run_tasks(_embeddings(lambda s, u: u, lambda s, u: u))
    redirects = run_tasks(_embeddings(lambda s, u: s + 0.1 * u, lambda s, u: s - 0.5 * u))
    found = compare(redirects, knows, 50, 0)
    assert found["safe_text_to_safe_image"]["r@1"] == 0
    assert found["unsafe_text_to_all_images"]["harmful@1"] == -1
    assert found["unsafe_text_to_all_images"]["r@1_ci"] == [1, 1]
