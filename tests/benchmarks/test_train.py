"""The comparison of training on a CPU: its course, on a tiny encoder."""

import json

import open_clip
import pytest

from safeclip.benchmarks.train import TURNS, compare_training
from tests.benchmarks.test_train_gpu import TINY


def test_every_candidate_is_measured_one_worker_and_two_in_turn(tmp_path):
    (tmp_path / "tiny-for-the-cpu.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    found = compare_training(1, "tiny-for-the-cpu")
    json.dumps(found)
    runs = {label: candidate["runs"] for label, candidate in found["candidates"].items()}
    ours = f"ours_{found['compared']['ours']}"
    assert runs["ours"] == runs[ours]
    assert {label: len(each) for label, each in runs.items()} == {
        **dict.fromkeys(("reference_recipe", "ours_float32", "ours_bfloat16", "ours_bfloat16_dropout", "ours"), 1),
        **dict.fromkeys(("one_worker", "two_workers"), TURNS),
    }
    ratios = [two / one for one, two in zip(runs["one_worker"], runs["two_workers"], strict=True)]
    assert found["ratios"]["two_workers/one_worker"]["max"] == pytest.approx(max(ratios), rel=1e-2)
    assert 0 <= found["figures"]["data_wait"] < 1
