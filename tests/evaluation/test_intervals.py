import numpy as np
import pytest

from safeclip.evaluation.intervals import (
    bootstrap_means,
    exact_interval,
    interval,
    median_with_interval,
    paired_differences,
    with_intervals,
)


def test_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        lower, upper = interval(bootstrap_means(random.random((200, 1)) < 0.3, 200, trial))[0]
        covered += lower <= 0.3 <= upper
    assert 180 <= covered <= 199


def test_the_interval_of_a_rare_outcome_covers_the_truth_at_least_95_times_in_100():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        outcomes = random.random(200) < 0.004  # in 45 of 100 trials there is none
        lower, upper = with_intervals({"rate": outcomes}, 100, trial)["rate_ci"]
        covered += lower <= 0.004 <= upper
    assert covered >= 0.95 * 300


@pytest.mark.parametrize("n", [1, 7, 300])
def test_outcomes_that_are_all_alike_have_the_exact_interval(n):
    lower, upper = exact_interval(0, n)
    assert lower == 0
    assert (1 - upper) ** n == pytest.approx(0.025)
    assert exact_interval(1, n) == pytest.approx((1 - upper, 1))
    found = with_intervals({"none": np.zeros(n, bool), "all": np.ones(n, bool), "number": np.zeros(n)}, 20, 0)
    assert found["none_ci"] == pytest.approx([0, upper], abs=1e-6)
    assert found["all_ci"] == pytest.approx([1 - upper, 1], abs=1e-6)
    assert found["number_ci"] == [0, 0]


def test_interval_is_as_wide_as_theory_says():
    values = np.arange(400)[:, None] < 100
    lower, upper = interval(bootstrap_means(values, 4000, 0))[0]
    assert upper - lower == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.1)


def test_equal_rows_are_drawn_for_measures_of_equal_length():
    ones = np.random.default_rng(0).random((50, 1))
    both = bootstrap_means(np.hstack([ones, 2 * ones]), 20, 5)
    assert np.allclose(2 * both[:, 0], both[:, 1])
    assert np.allclose(bootstrap_means(ones, 20, 5)[:, 0], both[:, 0])
    assert not np.allclose(bootstrap_means(ones, 20, 6)[:, 0], both[:, 0])


def test_figures_name_mean_interval_and_number():
    found = with_intervals({"r@1": np.array([True, False, True, True]), "sure": np.ones(4)}, 500, 0)
    assert found["r@1"] == 0.75
    assert 0 <= found["r@1_ci"][0] < 0.75 < found["r@1_ci"][1] <= 1
    assert found["sure_ci"] == [1, 1]
    assert found["n"] == 4


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="nothing to resample"):
        bootstrap_means(np.empty((0, 1)), 10, 0)


def test_a_median_lies_within_its_interval_which_narrows_with_more_values():
    random = np.random.default_rng(0)
    widths = []
    for n in (100, 10_000):
        found = median_with_interval("median_rank", random.integers(1, 1000, size=n), 200, 0)
        low, high = found["median_rank_ci"]
        assert low <= found["median_rank"] <= high
        assert low <= 500 <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_paired_differences_are_narrower_than_those_of_two_intervals():
    random = np.random.default_rng(0)
    first = random.random(500) < 0.5
    other = first ^ (random.random(500) < 0.03)
    other[:20] = ~first[:20]
    found = paired_differences({"r@1": other}, {"r@1": first}, 500, 0)
    assert found["r@1"] == pytest.approx(other.mean() - first.mean(), abs=1e-6)
    low, high = found["r@1_ci"]
    assert low <= found["r@1"] <= high
    bounds = with_intervals({"r@1": first}, 500, 0)["r@1_ci"]
    assert high - low < (bounds[1] - bounds[0]) / 1.5
    assert paired_differences({"r@1": first}, {"r@1": first}, 50, 0)["r@1_ci"] == [0, 0]
