import dataclasses
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from safeclip.artifacts import Folder, hash_of, read_manifest
from safeclip.config import Config, load_config, save_config
from safeclip.encoder.checkpoint import write_best_epochs
from safeclip.encoder.export import save_open_clip
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder, text_states
from safeclip.encoder.objectives import make_objective
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.progress import Progress, best_epochs, figure
from safeclip.encoder.publish import export_checkpoint, student_hash
from safeclip.encoder.states import held_tokens, state_drift
from safeclip.encoder.student import merge_student, trained_state
from safeclip.encoder.teacher import DRAWN, KEPT, SPLITS, embed_rows, plan_units
from safeclip.encoder.train import check_counts, check_settings, check_states, train_encoder
from safeclip.encoder.worker import Plan, Worker, learning_rate
from safeclip.errors import UserError
from safeclip.generation.redraw import redraw
from safeclip.world import scenes
from tests.encoder.quadruplets import render_quadruplets, write_quadruplets
from tests.processes import work_as_two

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "train.epochs=2", "train.batch=8", "train.learning_rate=0.001", "train.schedule=constant",
    "train.objective=safe-clip", "train.average=1",
    "train.preserve={source: world, count: 20, per_step: 8, unit_rows: 10, drawn: 4}", "train.warmup=0",
    "train.max_gradient=null", "train.select=loss", "train.keep_best=2",
]  # fmt: skip
OBJECTIVE = "tests.encoder.disturbed:Waiting"  # safe-clip, but that a single worker waits for another
DISTURBED = [
    f"train.objective={OBJECTIVE}", "train.min_workers=1", "train.resources.actors=2", "train.checkpoint_steps=1",
]  # fmt: skip
COUNTS = {"train": 25, "validation": 7}


def config_for(storage: object, *sets: str) -> Config:
    return load_config("ray_config.yaml", "embedded", [f"storage={storage}", *SETTINGS, *sets])


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """Where the stage was run once: begun by one worker, gone on with by two, of which one was killed; its output."""
    place = tmp_path_factory.mktemp("runs")
    write_quadruplets(Folder(str(place / "demo")), COUNTS)
    config = config_for(place, *DISTURBED)
    (place / "config.yaml").write_text(save_config(config))
    command = [sys.executable, "-m", "tests.encoder.disturbed", str(place)]
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return place, ended.stdout


@pytest.fixture(scope="module")
def trained(disturbed):
    """The run's folder, and the stage's manifest."""
    run = Folder(str(disturbed[0] / "demo"))
    return run, read_manifest(run / "encoder")


def test_workers_that_join_or_are_lost_are_told(disturbed):
    told = re.findall(r"training goes on after (.+), with (\d) workers", disturbed[1])
    assert len(told) >= 2
    assert [workers for _, workers in (told[0], told[-1])] == ["2", "2"]


def test_the_manifest_tells_what_was_trained(trained):
    run, manifest = trained
    done = manifest["train"]
    assert (done["epochs"], done["steps"], done["workers"]) == (2, 6, 2)
    assert done["objective"] == OBJECTIVE
    assert done["samples_per_second"] > 0
    first, last = (record["loss"] for record in manifest["history"])
    assert first.keys() == {"total", *SafeClip.weights}
    assert last["C(U,V_ref)"] < first["C(U,V_ref)"]
    assert not [p for p in Path(run.path("encoder")).iterdir() if p.name.startswith("training-")]


def test_card_and_losses_of_each_step_lie_beside_the_exports(trained):
    run, manifest = trained
    card = (run / "encoder").read("README.md").decode()
    assert manifest["quadruplets"] in card
    assert OBJECTIVE in card
    tracked = run / "encoder" / "tracker"
    assert len(tracked.files()) >= 6  # one at each checkpoint
    assert all(b"loss/d_G_V_ref" in tracked.read(name) for name in tracked.files())


def test_the_safe_pairs_scenes_are_none_that_tests_are_kept_for(trained):
    run, _ = trained
    folder = run / "encoder" / KEPT
    captions = [c for name in folder.files(".parquet") for c in folder.read_table(name)["safe_caption"].to_pylist()]
    assert len(captions) == 20
    shown = [scenes.Scene(tuple(scenes.objects_named(c)), scenes.background_named(c), 0) for c in captions]
    assert not any(scene.reserved for scene in shown)


def test_some_of_the_safe_pairs_are_drawn_by_the_generator(trained):
    run, manifest = trained
    names = {name: (run / "encoder" / name).files(".parquet") for name in (KEPT, DRAWN)}
    assert (len(names[KEPT]), len(names[DRAWN])) == (2, 1)
    drawn = (run / "encoder" / DRAWN).read_table(names[DRAWN][0])
    own = (run / "encoder" / KEPT).read_table(names[KEPT][0])
    assert drawn["safe_caption"].equals(own["safe_caption"])
    assert not set(drawn["safe_image"].to_pylist()) & set(own["safe_image"].to_pylist())
    assert manifest["train"]["preserved"] == 20 + drawn["reject"].null_count


def test_drawn_pairs_are_not_drawn_again_for_another_judge_of_texts(trained, capsys):
    folder = trained[0] / "encoder"
    config = config_for("unused", "generate.judges.text_threshold=0.6")
    assert redraw(config, folder, DRAWN, KEPT, 4) == read_manifest(folder / DRAWN)
    assert capsys.readouterr().out == "drawn: complete, skipped\n"


def test_a_checkpoint_is_exported_by_itself(trained, plan, tmp_path):
    worker = Worker(plan("exported"))
    worker.take_epoch()
    (tmp_path / "checkpoint").mkdir()
    worker.save(tmp_path / "checkpoint")
    checkpoint, target = Folder(str(tmp_path / "checkpoint")), Folder(str(tmp_path / "exports"))
    export_checkpoint(config_for("unused"), checkpoint, target)
    texts = render_quadruplets(8, seed=9)["unsafe_caption"].to_pylist()
    own = worker.encoder
    expected = Encoder(merge_student(worker.student), own.tokenizer, own.preprocess, own.config).encode_texts(texts)
    found = load_encoder(target.path("open_clip")).encode_texts(texts)
    assert np.allclose(found, expected, atol=1e-5)
    assert (tmp_path / "exports" / "README.md").is_file()
    with pytest.raises(UserError, match="no checkpoint lies here"):
        export_checkpoint(config_for("unused"), target, target)
    other_base = load_encoder("world:encoder")
    other_base.model.logit_scale += 1
    save_open_clip(other_base.model, other_base.config, tmp_path / "base")
    for other in ("lora.rank=4", "lora.alpha=3.0", f"base={tmp_path}/base"):
        with pytest.raises(UserError, match="of another base or other adapters"):
            export_checkpoint(config_for("unused", f"train.{other}"), checkpoint, Folder(str(tmp_path / "other")))
    (tmp_path / "checkpoint" / "epoch-0001.safetensors").unlink()
    with pytest.raises(UserError, match="the weights of its best epoch are missing"):
        export_checkpoint(config_for("unused"), checkpoint, Folder(str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_within_the_first_epoch_has_nothing_to_export(plan, tmp_path):
    worker = Worker(plan("young", "train.checkpoint_steps=2"))
    (tmp_path / "checkpoint").mkdir()
    worker.take_epoch(lambda: worker.save(tmp_path / "checkpoint"))
    with pytest.raises(UserError, match="not yet through an epoch"):
        export_checkpoint(config_for("unused"), Folder(str(tmp_path / "checkpoint")), Folder(str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_exports_of_an_encoder_before_do_not_stay(trained, tmp_path):
    folder = Folder(str(tmp_path))
    (folder / "lora").make()
    train_encoder(config_for("unused", "train.objective=negation"), trained[0], folder)
    exports = {"README.md", "huggingface", "open_clip", "text_encoder"}
    assert {path.name for path in tmp_path.iterdir()} == {*exports, "manifest.json"}


def test_each_of_the_best_epochs_is_exported_by_itself_from_any_storage(trained, tmp_path):
    run, manifest = trained
    history, best = manifest["history"], run / "encoder" / "best"
    order = sorted((1, 2), key=lambda epoch: history[epoch - 1]["validation"]["total"])
    assert manifest["train"]["best_epoch"] == order[0]
    assert manifest["train"]["kept"] == [
        {"epoch": epoch, "loss": history[epoch - 1]["validation"]["total"]} for epoch in order
    ]
    first, second = (f"epoch-{epoch:04d}" for epoch in order)
    assert {Path(entry).name for entry in best.fs.ls(best.path(), detail=False)} == {first, second}
    remote, target = Folder(f"memory://{time.time_ns()}"), Folder(str(tmp_path / "exports"))
    (remote / "epoch-0009").make()
    write_best_epochs(Path((best / first).path()), order[:1], remote)
    assert not remote.exists("epoch-0009")
    export_checkpoint(config_for("unused"), remote / first, target)
    weights = [target.read("open_clip/open_clip_model.safetensors")]
    assert weights[0] == (run / "encoder" / "open_clip").read("open_clip_model.safetensors")
    export_checkpoint(config_for("unused"), best / second, target)
    weights.append(target.read("open_clip/open_clip_model.safetensors"))
    assert weights[0] != weights[1]
    assert f"of epoch {order[1]} |" in target.read("README.md").decode()


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
    run, manifest = trained
    teacher = run / "encoder" / "teacher"
    tables = {name: teacher.read_table(name) for name in teacher.files(".parquet")}
    assert sum(map(len, tables.values())) == 32 + manifest["train"]["preserved"]
    base = load_encoder("world:encoder")
    for split in SPLITS:
        (table,) = [table for name, table in tables.items() if name.startswith(f"{split}-")]
        again = embed_rows(base, (run / "quadruplets" / split).read_table("part-0000.parquet"), split)
        assert table.equals(again)


def test_the_teachers_embeddings_depend_on_what_the_safe_pairs_are_and_not_on_the_names_of_their_files(trained):
    run, manifest = trained
    pairs = [unit["hash"] for name in (KEPT, DRAWN) for unit in read_manifest(run / "encoder" / name)["units"]]
    assert len(pairs) == 3
    teacher = read_manifest(run / "encoder" / "teacher")
    assert teacher["rows_hash"] == hash_of(manifest["quadruplets"], pairs)


def test_a_complete_stage_is_skipped(trained, capsys):
    run, manifest = trained
    assert train_encoder(config_for("unused", *DISTURBED), run) == manifest
    assert "encoder: complete, skipped" in capsys.readouterr().out


@pytest.fixture
def plan(trained):
    run, _ = trained

    def make(key: str, *sets: str) -> Plan:
        config = config_for("unused", *sets)
        quadruplets, teacher = run / "quadruplets", run / "encoder" / "teacher"
        manifest = read_manifest(teacher)
        folders = {split: quadruplets / split for split in SPLITS}
        folders |= {pairs: run / "encoder" / pairs for pairs in (KEPT, DRAWN)}
        units = plan_units(folders, manifest["base"]["hash"], manifest["rows_hash"])
        student = student_hash(manifest["base"]["hash"], config.train.lora)
        return Plan(config.train, config.seed, f"test-{time.time_ns()}-{key}", folders, teacher, units, student)

    return make


def test_the_disturbed_training_ends_where_an_undisturbed_one_does(trained, plan):
    _, manifest = trained
    alone = Worker(plan("alone"))
    while not alone.progress.is_over(alone.train):
        alone.take_epoch()
    for one, two in zip(alone.progress.history, manifest["history"], strict=True):
        for name, loss in two["loss"].items():
            assert one["loss"][name] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
        assert one["validation"]["total"] == pytest.approx(two["validation"]["total"], rel=1e-4)
        assert one["recall_sum"] == pytest.approx(two["recall_sum"])


def gradients_of_a_step(worker: Worker) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    for name, parameter in worker.student.named_parameters():
        if "lora_B" in name:  # zero in a fresh adapter, and then so is the other half's gradient
            torch.nn.init.normal_(parameter, std=0.05, generator=random)
    worker.parallel.train()
    rows, kept, batch = next(worker._steps())
    worker._step(batch, rows, kept)
    return {name: p.grad for name, p in worker.student.named_parameters() if p.requires_grad}


def worst_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of a weight's gradient, relative to the size of what it should be."""
    assert all(gradient.any() for gradient in expected.values())
    return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


@pytest.mark.parametrize("objective", ["safe-clip", "apart"])
def test_small_parts_of_a_step_give_the_gradient_of_the_whole(plan, objective):
    own = f"train.objective={objective}"
    whole = gradients_of_a_step(Worker(plan("whole", own)))
    parts = gradients_of_a_step(Worker(plan("parts", own, "train.micro_batch=3")))  # 24 in a step: 8 + 8 + 8
    assert worst_difference(parts, whole) < 1e-5
    doubled = {name: 2 * gradient for name, gradient in whole.items()}
    assert worst_difference(doubled, whole) == pytest.approx(1)  # the measure can tell


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
    expected, found = trained_state(straight.student), trained_state(second.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(straight.best[name], second.best[name]) for name in expected)
    assert straight.progress.best_loss == second.progress.best_loss
    second.save(tmp_path)
    for resumed in (second, first):
        resumed.load(tmp_path)
        assert resumed.kept.keys() == straight.kept.keys() == {1, 2}
        for epoch, state in straight.kept.items():
            assert all(torch.equal(state[name], resumed.kept[epoch][name]) for name in state)


def test_a_training_cut_off_within_an_epoch_ends_where_an_undisturbed_one_does(plan, tmp_path):
    sets = ["train.lora.dropout=0.1", "train.schedule=cosine", "train.warmup=2", "train.checkpoint_steps=2"]
    straight, first, second = (Worker(plan(key, *sets)) for key in ("straight", "first", "second"))
    saved = []
    straight.take_epoch()
    first.take_epoch(lambda: saved.append(first.progress.step) or first.save(tmp_path))
    assert saved == [2]  # of three
    second.load(tmp_path)
    assert (second.progress.epoch, second.progress.step) == (0, 2)
    record = second.take_epoch()
    expected, found = trained_state(straight.student), trained_state(second.student)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert record["loss"] == straight.progress.history[0]["loss"]


def test_all_weights_can_be_trained(plan, tmp_path):
    worker = Worker(plan("all", "train.lora=null", "train.learning_rate=0.0001", "train.gradient_checkpointing=true"))
    before = trained_state(worker.student)
    worker.take_epoch()
    after = trained_state(worker.student)
    assert len(after) > 100
    assert all(not torch.equal(before[name], after[name]) for name in after if "bias" not in name)
    assert worker.progress.history[0]["validation"]["total"] < 1
    worker.save(tmp_path)
    merged = merge_student(worker.student)
    assert merged.state_dict().keys() == load_encoder("world:encoder").model.state_dict().keys()


def test_gradient_checkpointing_compiling_and_bfloat16_change_little(plan):
    as_they_are = "train.views=null"  # in views the teacher is rounded as the student is, so its targets differ
    plain = gradients_of_a_step(Worker(plan("plain", as_they_are)))
    for setting, worst in (("gradient_checkpointing=true", 1e-5), ("dtype=bfloat16", 0.2)):
        found = gradients_of_a_step(Worker(plan("other", as_they_are, f"train.{setting}")))
        assert worst_difference(found, plain) < worst
    eager, compiled = Worker(plan("eager")), Worker(plan("compiled", "train.compile=true"))
    _, _, batch = next(eager._steps())
    with torch.no_grad():
        one, other = (w._embed(w.towers, batch) for w in (eager, compiled))
        half = Worker(plan("half", "train.dtype=bfloat16"))
        low = half._embed(half.towers, batch)
    assert (one * other).sum(-1).min() > 1 - 1e-5
    assert (one * low).sum(-1).min() > 1 - 1e-2


def _gradients_of_one_of_two(rank: int, plan: Plan, folder: Path) -> None:
    wrap = torch.nn.parallel.DistributedDataParallel
    for parts in (None, 5):
        own = dataclasses.replace(plan, train=plan.train.model_copy(update={"micro_batch": parts}))
        found = gradients_of_a_step(Worker(own, rank, rank, 2, wrap=wrap))
        if rank == 0:
            torch.save(found, folder / f"{parts}.pt")


def test_two_workers_have_the_gradient_of_one(plan, tmp_path):
    sets = ["train.objective=apart", "train.views={share: 0.5}"]  # states, views and all that is gathered
    whole = gradients_of_a_step(Worker(plan("one", *sets)))
    work_as_two(_gradients_of_one_of_two, tmp_path, plan("two", *sets), tmp_path)
    for parts in (None, 5):
        assert worst_difference(torch.load(tmp_path / f"{parts}.pt"), whole) < 1e-5


def test_averaged_adapters_are_the_mean_of_the_last_epochs_and_training_goes_on_from_its_own(plan):
    sets = ["train.epochs=3", "train.select=recall"]  # recalls are perfect, so the last epoch is kept
    plain, averaging = Worker(plan("plain", *sets)), Worker(plan("average", *sets, "train.average=2"))
    ends = []
    for _ in range(3):
        plain.take_epoch()
        averaging.take_epoch()
        ends.append(trained_state(plain.student))
    for name, value in trained_state(averaging.student).items():
        assert torch.equal(value, ends[-1][name])
    assert averaging.progress.best_epoch == 3
    assert list(averaging.kept) == [3, 2]
    for last, state in averaging.kept.items():
        for name, value in state.items():
            torch.testing.assert_close(value, (ends[last - 2][name] + ends[last - 1][name]) / 2)
    assert averaging.best is averaging.kept[3]


def test_validation_does_not_depend_on_the_batch(plan):
    one, other = Worker(plan("8")), Worker(plan("2", "train.batch=2"))
    assert one.validate() == other.validate()


def test_the_teacher_sees_the_views_of_the_safe_pictures_that_the_student_sees(plan):
    """A student that has not moved yet is where the teacher is, whatever views they have of the pictures."""
    sets = ["train.objective=apart", "train.learning_rate=1.0e-12", "train.micro_batch=5"]
    sets.append("train.weights={redirect states: 0, preserve states: 0}")
    worker = Worker(plan("views", *sets, "train.views={share: 1, zoom: 0.3}"))
    distance = worker.take_epoch()["loss"]["preserve image"]
    assert distance == pytest.approx(0, abs=1e-6)
    worker.teacher = None  # the numbers at hand are of the pictures as they are
    assert worker.take_epoch()["loss"]["preserve image"] > 1e-3


@torch.no_grad()
def test_unsafe_texts_are_held_to_the_teachers_states_of_their_own_safe_texts(trained, plan):
    worker = Worker(plan("states", "train.objective=apart"))
    found = worker.validate()["validation"]
    rows = (trained[0] / "quadruplets" / "validation").read_table("part-0000.parquet")
    base, expected = load_encoder("world:encoder"), []
    for unsafe, safe in zip(rows["unsafe_caption"].to_pylist(), rows["safe_caption"].to_pylist(), strict=True):
        own, held_to, read = held_tokens(base.tokenizer([unsafe]), base.tokenizer([safe]))
        wanted = text_states(base.model, held_to) * read.unsqueeze(-1)
        expected.append(float(state_drift(text_states(base.model, own), wanted)))
    assert found["redirect states"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["preserve states"] == pytest.approx(0, abs=1e-5)


def test_an_objective_of_states_is_refused_where_texts_have_none():
    encoder = dataclasses.replace(load_encoder("world:encoder"), model=torch.nn.Identity())
    check_states(make_objective("safe-clip"), encoder)
    with pytest.raises(UserError, match="leave them out with --set"):
        check_states(make_objective("apart"), encoder)


def test_validation_is_of_a_whole_objective_however_far_the_training_is(plan):
    worker = Worker(plan("safer", "train.objective=safer-clip"))
    found = worker.validate()
    worker.progress.epoch = 1
    assert worker.validate() == found


def test_a_loss_that_is_no_number_ends_the_training_with_a_word_on_what_to_do(trained, ray_cluster, tmp_path):
    run, folder = trained[0], Folder(str(tmp_path / "encoder"))
    config = config_for("unused", "train.learning_rate=1.0e+30", "train.resources.actors=1")
    (folder / "tracker").make()
    (folder / "tracker").write("events.earlier", b"")
    with pytest.raises(UserError, match=r"not a finite number in epoch 1; lower train.learning_rate \(1e\+30\)"):
        train_encoder(config, run, folder, run / "encoder")
    assert read_manifest(folder) is None
    assert not folder.exists("open_clip")
    (curve,) = (folder / "tracker").files()
    assert b"loss/total" in (folder / "tracker").read(curve)


def test_another_file_of_safe_pairs_makes_another_encoder(trained, tmp_path, capsys):
    pairs, folder = tmp_path / "pairs.jsonl", Folder(str(tmp_path / "encoder"))
    config = config_for("unused", "train.objective=negation", f"train.preserve.source={pairs}")
    for content, skipped in (("one", False), ("one", True), ("another", False)):
        pairs.write_text(content)
        train_encoder(config, trained[0], folder)
        assert ("complete, skipped" in capsys.readouterr().out) == skipped


def test_the_same_weights_with_another_activation_or_preprocessing_make_another_encoder(tmp_path, capsys):
    run, base = Folder(str(tmp_path / "run")), load_encoder("world:encoder")
    write_quadruplets(run, COUNTS)
    config = config_for("unused", "train.objective=negation", f"train.base={tmp_path}/base")
    changes = [("model_cfg", {}), ("model_cfg", {"quick_gelu": True}), ("preprocess_cfg", {"mean": [0.4] * 3})]
    hashes = []
    for (part, change), skipped in [*((change, False) for change in changes), (changes[-1], True)]:
        save_open_clip(base.model, {**base.config, part: {**base.config[part], **change}}, tmp_path / "base")
        hashes.append(train_encoder(config, run)["base"]["hash"])
        assert ("complete, skipped" in capsys.readouterr().out) == skipped
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.objective=best", "train.objective: 'best' is no objective"),
        ("train.resources.actors=3", "train.batch: 8 does not divide among 3"),
        ("train.preserve.per_step=5", "preserve.per_step: 5 does not divide among 2"),
        ("train.min_workers=3", "train.min_workers: 3 is more than"),
        ("train.weights={C: 1}", "train.weights: no term 'C'"),
    ],
)
def test_settings_that_can_only_fail_are_refused_before_there_are_data(setting, message):
    with pytest.raises(UserError, match=message):
        check_settings(config_for("unused", setting).train)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 0, "validation": 5}, "the train split is empty"),
        ({"train": 20, "validation": 0}, "the validation split is empty"),
        ({"train": 7, "validation": 5}, "train.batch: 8 is more than the 7 training quadruplets"),
    ],
)
def test_quadruplets_that_do_not_do_are_refused_before_workers_start(counts, message):
    with pytest.raises(UserError, match=message):
        check_counts(config_for("unused").train, counts)


def test_a_run_without_quadruplets_is_refused(tmp_path):
    with pytest.raises(UserError, match="quadruplets is not complete"):
        train_encoder(config_for("unused"), Folder(str(tmp_path)))


def test_a_teacher_that_gives_no_numbers_is_named_before_training():
    encoder = load_encoder("world:encoder")
    encoder.encode_pixels = lambda pixels: np.full((len(pixels), 4), np.nan, np.float32)
    table = render_quadruplets(3, seed=1)
    with pytest.raises(
        UserError, match=f"row {table['id'][0]}: the base encoder's embedding of its safe image is no"
    ):
        embed_rows(encoder, table, "train/a.parquet")


def test_rows_without_the_teachers_embeddings_are_refused(plan):
    whole = plan("of others")
    targets = {unit.split: unit.target for unit in whole.units}
    units = [dataclasses.replace(unit, target=targets["validation"]) for unit in whole.units]
    with pytest.raises(UserError, match="not of these rows; remove"):
        Worker(dataclasses.replace(whole, units=units))


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


def test_the_epoch_of_the_highest_recall_can_be_the_one_that_is_kept():
    progress = Progress()
    measured = [(1.0, 2.0), (0.9, 1.9), (0.95, 2.5), (0.96, 2.5), (0.97, 2.4)]
    records = [{"epoch": n, "validation": {"total": a}, "recall_sum": b} for n, (a, b) in enumerate(measured, 1)]
    assert [progress.note(record, "recall") for record in records] == [True, False, True, True, False]
    assert (progress.best_epoch, progress.waited) == (4, 2)


@pytest.mark.parametrize("select", ["loss", "recall"])
def test_the_best_epochs_are_those_that_few_others_beat(select):
    random = np.random.default_rng(0)

    def beats(one, other):
        a, b = (figure(record, select) for record in (one, other))
        if select == "loss":
            return a < b or (a == b and one["epoch"] < other["epoch"])
        return a > b or (a == b and one["epoch"] > other["epoch"])

    for _ in range(100):
        history, progress, before = [], Progress(), set()
        count = int(random.integers(1, 5))
        for epoch in range(1, int(random.integers(2, 12))):
            loss, recall = random.choice([1.0, 2.0, 3.0, math.nan, math.inf]), float(random.integers(4))
            history.append({"epoch": epoch, "validation": {"total": loss}, "recall_sum": recall})
            progress.note(history[-1], select)
            numbers = [record for record in history if math.isfinite(figure(record, select))]
            beaten = {record["epoch"]: sum(beats(other, record) for other in numbers) for record in numbers}
            expected = sorted((epoch for epoch in beaten if beaten[epoch] < count), key=beaten.get)
            found = best_epochs(history, select, count)
            assert found == expected
            assert progress.best_epoch == (found[0] if found else 0)
            assert set(found) <= before | {epoch}, "the weights of the others are gone"
            before = set(found)


def test_the_cosine_schedule_falls_from_the_rate_to_zero():
    train = config_for("unused", "train.schedule=cosine").train
    rates = [learning_rate(step, 10, train) for step in range(11)]
    assert rates[0] == train.learning_rate
    assert rates[10] == pytest.approx(0)
    assert np.all(np.diff(rates) < 0)
