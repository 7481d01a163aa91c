import pytest

from safeclip.artifacts import Folder
from safeclip.benchmarks.objectives import FIGURES, ablations, candidate, compare_objectives, table
from safeclip.config import load_config
from safeclip.encoder.objectives.shield import Shield
from safeclip.errors import UserError
from tests.encoder.quadruplets import write_quadruplets

SETTINGS = [
    "train.epochs=1", "train.batch=8", "train.warmup=0",
    "train.preserve={source: world, count: 16, per_step: 8, drawn: 0}",
    "train.resources.actors=1", "evaluate.rendered=40", "evaluate.resources.actors=1",
]  # fmt: skip


def test_objectives_are_measured_beside_the_base(ray_cluster, tmp_path, capsys):
    run = Folder(str(tmp_path / "demo"))
    write_quadruplets(run, {"train": 24, "validation": 8, "test": 8})
    config = load_config(sets=SETTINGS)
    # The one that trains nothing: trainings are tested elsewhere, and are the same for this.
    measured = compare_objectives(config, run, ["negation"], [3])
    assert "training 1 of 1: negation, seed 3\n" in capsys.readouterr().out
    assert measured["figures"].keys() == {"base", "negation"}
    for figures in measured["figures"].values():
        assert figures.keys() == {*FIGURES, "zero_shot_top_1"}
        assert all(0 <= value <= 1 for value in figures.values())
    assert measured["figures"]["base"]["unsafe_text_harmful@1"] > 0.9
    assert {name: each["steps"] for name, each in measured["trained"].items()} == {"negation-3": 0}
    assert table(measured).count("\n") == 3
    assert not (run / "report").exists()  # whose sets are the report's
    # Before anything is trained, so the first one's folder is not there.
    for name, said in (("apart without avoid", "no term 'avoid'"), ("negation without x", "negation has no terms")):
        with pytest.raises(UserError, match=f"train.weights: {said}"):
            compare_objectives(config, run, ["shield", name], [3])
    assert not (run / "benchmarks" / "shield-3").exists()


def test_terms_that_are_left_out_weigh_nothing_and_the_others_what_they_weighed():
    config = load_config(sets=["train.objective=shield", "train.weights={match text: 3.0}"])
    train = candidate(config, "shield without match image, preserve text", 7).train
    assert (train.objective, candidate(config, "shield", 7).seed) == ("shield", 7)
    assert train.weights == {"match text": 3.0, "match image": 0.0, "preserve text": 0.0}
    assert candidate(config, "apart without avoid text", 7).train.weights == {"avoid text": 0.0}


def test_an_ablation_leaves_out_one_term_at_a_time():
    assert ablations(load_config(sets=["train.objective=shield"])) == [
        "shield",
        *(f"shield without {term}" for term in Shield.weights),
    ]
    with pytest.raises(UserError, match="negation has no terms to leave out"):
        ablations(load_config(sets=["train.objective=negation"]))
