"""The job on the world's real LLM, with small numbers: trained, measured, used, and skipped the second time."""

import contextlib
import io
import json

import pytest
from transformers import AutoModelForCausalLM

from jobs.command import run_main
from jobs.train_toxifier import main

SMALL = [
    "captions.count=32", "captions.unit_rows=16", "toxifier.count=24", "toxifier.sft.epochs=1",
    "toxifier.sft.batch=2", "toxifier.sft.learning_rate=0.002", "toxifier.preferences.captions=16",
    "toxifier.preferences.candidates=4", "toxifier.dpo.epochs=1", "toxifier.dpo.batch=2",
    "toxifier.evaluation.captions=4", "toxifier.evaluation.bootstrap=50", "generate.toxify.adapter=run",
    "toxifier.resources.actors=1", "generate.toxify.resources.actors=1",
]  # fmt: skip


def _words(storage):
    return ["--run", "small", *(word for setting in [f"storage={storage}", *SMALL] for word in ("--set", setting))]


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    """Where the run lies, and what the job printed."""
    storage = tmp_path_factory.mktemp("runs")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run_main(main, [*_words(storage), "--evaluate"]) == 0
    return storage, printed.getvalue()


def test_it_trains_measures_and_says_where_it_wrote(trained):
    storage, output = trained
    folder = storage / "small" / "toxifier"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["pairs"]["train"] == 18
    preferences = json.loads((folder / "preferences" / "manifest.json").read_text())
    assert manifest["acknowledge_explicit"] is preferences["acknowledge_explicit"] is False
    assert manifest["preferences"]["pairs"] >= 4
    measured = json.loads((folder / "evaluation.json").read_text())
    for name in ("prompted", "sft", "dpo"):
        row = measured[name]
        assert row["n"] == 4
        assert all(0 <= row[key] <= 1 for key in ("accepted", "kept", "heldout_accepted", "duplicates"))
        assert 1 <= row["candidates"] <= 4
        assert row["tokens_per_second"] > 0
    # Without its adapter the model, which then sees no examples either, would never be accepted.
    assert all(measured[name]["candidates"] < 4 for name in ("sft", "dpo"))
    assert set(measured["gains"]) == {"sft - prompted", "dpo - sft"}
    assert "| prompted |" in output
    assert f"written to {storage}/small/toxifier/evaluation.json" in output


def test_a_second_call_trains_nothing(trained, capsys):
    storage, _ = trained
    assert run_main(main, _words(storage)) == 0
    output = capsys.readouterr().out
    for step in ("sft", "preferences", "dpo", "toxifier"):
        assert f"{step}: complete, skipped" in output


def test_the_merged_weights_load(trained):
    storage, _ = trained
    model = AutoModelForCausalLM.from_pretrained(storage / "small" / "toxifier" / "merged")
    assert model.config.num_hidden_layers == 30
