import json

import pytest

from jobs.benchmark import main
from jobs.command import run_main
from safeclip.benchmarks.side_by_side import compared, take_turns


def test_candidates_take_turns_and_ratios_are_taken_turn_by_turn():
    calls = []
    runs = take_turns({label: lambda label=label: calls.append(label) for label in "ab"}, 3)
    assert calls == ["a", "b"] * 3
    assert {label: len(values) for label, values in runs.items()} == {"a": 3, "b": 3}
    # The ratio of the medians would be 1.
    found = compared({"a": [1.0, 2.0, 9.0], "b": [2.0, 1.0, 3.0]}, "s", [("a", "b")], {})
    assert found["ratios"]["a/b"] == {"median": 2.0, "min": 0.5, "max": 3.0}
    assert found["candidates"]["a"] == {"unit": "s", "median": 2.0, "runs": [1.0, 2.0, 9.0]}


def test_the_benchmark_of_ranking_keeps_the_layout(tmp_path, capsys):
    file = tmp_path / "evaluate.json"
    sizes = ["--queries", "900", "--items", "3000", "--width", "64", "--repeats", "2"]
    assert run_main(main, ["evaluate", *sizes, "--json", str(file)]) == 0
    measured = json.loads(file.read_text())
    assert set(measured) >= {"machine", "candidates", "ratios", "figures"}
    assert {label: len(c["runs"]) for label, c in measured["candidates"].items()} == {"ranking": 2, "matmul": 2}
    assert measured["ratios"]["ranking/matmul"]["min"] > 0
    assert measured["figures"]["peak_gib"] > 0.01
    assert 0.3 < measured["figures"]["r@1"] < 0.95
    assert "ranking/matmul" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("benchmark", "word"),
    [
        ("evaluate", "queries"),
        ("evaluate", "items"),
        ("evaluate", "width"),
        ("evaluate", "repeats"),
        ("train", "repeats"),
    ],
)
def test_no_size_is_nothing(benchmark, word, capsys):
    assert run_main(main, [benchmark, f"--{word}", "0"]) == 2
    assert capsys.readouterr().err.endswith(f"error: --{word} 0: must be at least 1\n")


def test_a_benchmark_replaces_nothing(tmp_path, capsys):
    assert run_main(main, ["objectives", "--replace", "--set", f"storage={tmp_path}"]) == 2
    assert "error: --replace: a benchmark makes nothing of a run" in capsys.readouterr().err
