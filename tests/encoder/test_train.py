import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Config, load_config
from safeclip.encoder.loop import Plan, Progress, Worker, learning_rate
from safeclip.encoder.lora import adapter_state
from safeclip.encoder.model import load_encoder
from safeclip.encoder.objectives import SafeClip
from safeclip.encoder.teacher import embed_rows, plan_units
from safeclip.encoder.train import check_settings, train_encoder
from safeclip.errors import UserError
from tests.encoder.quadruplets import render_quadruplets, write_quadruplets

SETTINGS = [
    "train.epochs=2", "train.batch=8", "train.learning_rate=0.001", "train.schedule=constant",
    "train.lora={alpha: 16.0, dropout: 0.0, targets: null}",
]  # fmt: skip
COUNTS = {"train": 25, "validation": 7}


def config_for(storage: object, *sets: str) -> Config:
    return load_config("ray_config.yaml", "embedded", [f"storage={storage}", *SETTINGS, *sets])


@pytest.fixture(scope="module")
def trained(ray_cluster, tmp_path_factory):
    """The stage, run once with two workers."""
    run = Folder(str(tmp_path_factory.mktemp("runs") / "demo"))
    write_quadruplets(run, COUNTS)
    return run, train_encoder(config_for("unused"), run)


def test_the_manifest_tells_what_was_trained(trained):
    run, manifest = trained
    done = manifest["train"]
    assert (done["objective"], done["epochs"], done["steps"], done["workers"]) == ("safe-clip", 2, 6, 2)
    assert done["samples_per_second"] > 0
    first, last = (record["loss"] for record in manifest["history"])
    assert first.keys() == {"total", *SafeClip.weights}
    assert last["total"] < first["total"]
    assert not [p for p in Path(run.path("encoder")).iterdir() if p.name.startswith("training-")]


def test_the_exports_load_and_have_moved_unsafe_texts_to_the_safe_side(trained):
    run, _ = trained
    base, safe = load_encoder("world:encoder"), load_encoder(run.path("encoder/open_clip"))
    table = render_quadruplets(40, seed=9)
    safe_refs = base.encode_texts(table["safe_caption"].to_pylist())
    before, after = (
        (encoder.encode_texts(table["unsafe_caption"].to_pylist()) * safe_refs).sum(1).mean()
        for encoder in (base, safe)
    )
    assert after > before
    for name in ("huggingface/model.safetensors", "text_encoder/model.safetensors", "lora/adapter_model.safetensors"):
        assert load_file(run.path(f"encoder/{name}"))


def test_the_teachers_embeddings_are_the_base_encoders_bit_for_bit_after_training(trained):
    run, _ = trained
    teacher = run / "encoder" / "teacher"
    found = [teacher.read_table(name) for name in teacher.files(".parquet")]
    assert sum(t.num_rows for t in found) == 32
    base = load_encoder("world:encoder")
    for split, table in zip(("train", "validation"), sorted(found, key=len, reverse=True), strict=True):
        again = embed_rows(base, (run / "quadruplets" / split).read_table("part-0000.parquet"), split)
        assert table.equals(again)


def test_a_complete_stage_is_skipped(trained, capsys):
    run, manifest = trained
    assert train_encoder(config_for("unused"), run) == manifest
    assert "encoder: complete, skipped" in capsys.readouterr().out


@pytest.fixture
def plan(trained):
    run, _ = trained

    def make(key: str, *sets: str) -> Plan:
        config = config_for("unused", *sets)
        quadruplets, teacher = run / "quadruplets", run / "encoder" / "teacher"
        manifest = read_manifest(teacher)
        content = read_manifest(quadruplets)["content_hash"]
        units = plan_units(quadruplets, manifest["base"]["hash"], content)
        return Plan(config.train, config.seed, f"test-{time.time_ns()}-{key}", quadruplets, teacher, units)

    return make


def test_two_workers_train_as_one_does(trained, plan):
    _, manifest = trained
    alone = Worker(plan("alone"))
    while not alone.progress.is_over(alone.train):
        alone.take_epoch()
    for one, two in zip(alone.progress.history, manifest["history"], strict=True):
        for name, loss in two["loss"].items():
            assert one["loss"][name] == pytest.approx(loss, rel=1e-3, abs=1e-5)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-3)
        assert one["validation"]["total"] == pytest.approx(two["validation"]["total"], rel=1e-3)
        assert one["recall_sum"] == pytest.approx(two["recall_sum"])


def test_a_resumed_training_ends_where_an_undisturbed_one_does(plan, tmp_path):
    sets = ["train.lora.dropout=0.1", "train.schedule=cosine", "train.average=2"]
    straight = Worker(plan("straight", *sets))
    straight.take_epoch()
    straight.take_epoch()
    first = Worker(plan("first", *sets))
    first.take_epoch()
    first.save(tmp_path)
    second = Worker(plan("second", *sets))
    second.load(tmp_path)
    second.take_epoch()
    expected, found = adapter_state(straight.student), adapter_state(second.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(straight.best[name], second.best[name]) for name in expected)
    assert straight.progress.best_loss == second.progress.best_loss


def test_averaged_adapters_are_the_mean_of_the_last_epochs_and_training_goes_on_from_its_own(plan):
    plain, averaging = (
        Worker(plan("plain", "train.epochs=3")),
        Worker(plan("average", "train.epochs=3", "train.average=2")),
    )
    ends = []
    for _ in range(3):
        plain.take_epoch()
        averaging.take_epoch()
        ends.append(adapter_state(plain.student))
    for name, value in adapter_state(averaging.student).items():
        assert torch.equal(value, ends[-1][name])
    assert averaging.progress.best_epoch == 3
    for name, value in averaging.best.items():
        torch.testing.assert_close(value, (ends[1][name] + ends[2][name]) / 2)


def test_validation_does_not_depend_on_the_batch(plan):
    one, other = Worker(plan("8")), Worker(plan("2", "train.batch=2"))
    assert one.validate() == other.validate()


def test_a_loss_that_is_no_number_ends_the_epoch(plan):
    worker = Worker(plan("diverging", "train.learning_rate=1.0e+30"))
    assert worker.take_epoch() is None


@pytest.mark.parametrize(
    ("counts", "sets", "message"),
    [
        ({"train": 0, "validation": 5}, [], "the train split is empty"),
        ({"train": 20, "validation": 0}, [], "the validation split is empty"),
        ({"train": 7, "validation": 5}, [], "train.batch: 8 is more than the 7 training quadruplets"),
        ({"train": 20, "validation": 5}, ["train.objective=best"], "train.objective: 'best' is no objective"),
        ({"train": 20, "validation": 5}, ["train.resources.actors=3"], "train.batch: 8 does not divide among 3"),
    ],
)
def test_what_can_only_fail_is_refused_before_workers_start(counts, sets, message):
    with pytest.raises(UserError, match=message):
        check_settings(config_for("unused", *sets).train, counts)


def test_a_run_without_quadruplets_is_refused(tmp_path):
    with pytest.raises(UserError, match="quadruplets is not complete"):
        train_encoder(config_for("unused"), Folder(str(tmp_path)))


def test_a_broken_picture_is_named_before_training(tmp_path):
    table = render_quadruplets(3, seed=1)
    images = table["unsafe_image"].to_pylist()
    images[1] = images[1][:40]
    broken = table.set_column(table.column_names.index("unsafe_image"), "unsafe_image", [images])
    with pytest.raises(UserError, match=f"train/a.parquet, row {table['id'][1]}: unsafe_image does not decode"):
        embed_rows(load_encoder("world:encoder"), broken, "train/a.parquet")


def test_training_stops_when_neither_loss_nor_recall_gets_better():
    train = config_for("unused", "train.epochs=50", "train.patience=2").train
    progress = Progress()
    better = [(1.0, 2.0), (0.9, 1.9), (0.95, 2.5), (0.95, 2.4), (0.96, 2.5)]
    kept = []
    for epoch, (loss, recall) in enumerate(better, 1):
        assert not progress.is_over(train)
        progress.epoch = epoch
        kept.append(progress.note({"epoch": epoch, "validation": {"total": loss}, "recall_sum": recall}))
    assert kept == [True, True, False, False, False]
    assert progress.is_over(train)
    assert progress.best_epoch == 2


def test_the_cosine_schedule_falls_from_the_rate_to_zero():
    train = config_for("unused", "train.schedule=cosine").train
    rates = [learning_rate(step, 10, train) for step in range(11)]
    assert rates[0] == train.learning_rate
    assert rates[10] == pytest.approx(0)
    assert np.all(np.diff(rates) < 0)
