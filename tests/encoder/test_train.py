import dataclasses
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ray.train import TrainingFailedError
from safetensors.torch import load_file

from safeclip.artifacts import Folder, hash_of, read_manifest
from safeclip.config import save_config
from safeclip.encoder.checkpoint import write_best_epochs
from safeclip.encoder.export import save_open_clip
from safeclip.encoder.load import load_encoder
from safeclip.encoder.objectives import make_objective
from safeclip.encoder.objectives.safe_clip import SafeClip
from safeclip.encoder.publish import export_checkpoint
from safeclip.encoder.teacher import DRAWN, PRESERVED, SPLITS, embed_rows
from safeclip.encoder.train import check_counts, check_settings, check_states, train_encoder
from safeclip.encoder.worker import Worker
from safeclip.errors import UserError
from safeclip.generation.redraw import redraw
from safeclip.world import scenes
from tests.encoder.plans import COUNTS, config_for, plan_for
from tests.encoder.quadruplets import render_quadruplets, write_quadruplets
from tests.processes import train_workers, wait_until

ROOT = Path(__file__).parents[2]
OBJECTIVE = "tests.encoder.disturbed:Waiting"  # safe-clip, but that a single worker waits for another
DISTURBED = [
    f"train.objective={OBJECTIVE}", "train.min_workers=1", "train.resources.actors=2", "train.checkpoint_steps=1",
]  # fmt: skip
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's, of the checkpoints that it would go on from


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
    folder = run / "encoder" / PRESERVED
    captions = [c for name in folder.files(".parquet") for c in folder.read_table(name)["safe_caption"].to_pylist()]
    assert len(captions) == 20
    shown = [scenes.Scene(tuple(scenes.objects_named(c)), scenes.background_named(c), 0) for c in captions]
    assert not any(scene.reserved for scene in shown)


def test_some_of_the_safe_pairs_are_drawn_by_the_generator(trained):
    run, manifest = trained
    names = {name: (run / "encoder" / name).files(".parquet") for name in (PRESERVED, DRAWN)}
    assert (len(names[PRESERVED]), len(names[DRAWN])) == (2, 1)
    drawn = (run / "encoder" / DRAWN).read_table(names[DRAWN][0])
    own = (run / "encoder" / PRESERVED).read_table(names[PRESERVED][0])
    assert drawn["safe_caption"].equals(own["safe_caption"])
    assert not set(drawn["safe_image"].to_pylist()) & set(own["safe_image"].to_pylist())
    assert manifest["train"]["preserved"] == 20 + drawn["reject"].null_count


def test_drawn_pairs_are_not_drawn_again_for_another_judge_of_texts(trained, capsys):
    folder = trained[0] / "encoder"
    config = config_for("unused", "generate.judges.text_threshold=0.6")
    assert redraw(config, folder, DRAWN, PRESERVED, 4) == read_manifest(folder / DRAWN)
    assert capsys.readouterr().out == "drawn: complete, skipped\n"


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
    assert manifest["train"]["best_epochs"] == [
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
    pairs = [unit["hash"] for name in (PRESERVED, DRAWN) for unit in read_manifest(run / "encoder" / name)["units"]]
    assert len(pairs) == 3
    teacher = read_manifest(run / "encoder" / "teacher")
    assert teacher["rows_hash"] == hash_of(manifest["quadruplets"], pairs)


def test_a_complete_stage_is_skipped(trained, capsys):
    run, manifest = trained
    assert train_encoder(config_for("unused", *DISTURBED), run) == manifest
    assert "encoder: complete, skipped" in capsys.readouterr().out


def test_the_disturbed_training_ends_where_an_undisturbed_one_does(trained):
    run, manifest = trained
    alone = Worker(plan_for(run, "alone"))
    while not alone.progress.is_over(alone.train):
        alone.take_epoch()
    for one, two in zip(alone.progress.history, manifest["history"], strict=True):
        for name, loss in two["loss"].items():
            assert one["loss"][name] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
        assert one["validation"]["total"] == pytest.approx(two["validation"]["total"], rel=1e-4)
        assert one["recall_sum"] == pytest.approx(two["recall_sum"])


def test_an_objective_of_states_is_refused_where_texts_have_none():
    encoder = dataclasses.replace(load_encoder("world:encoder"), model=torch.nn.Identity())
    check_states(make_objective("safe-clip"), encoder)
    with pytest.raises(UserError, match="leave them out with --set"):
        check_states(make_objective("apart"), encoder)


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


def checkpoints_to_go_on_from(encoder: Folder) -> list[Folder]:
    trainings = [encoder / name for name in encoder.folders() if name.startswith("training-")]
    begun = [each for each in trainings if each.exists(SNAPSHOT)]
    return [each / name for each in begun for name in each.folders() if name.encode() in each.read(SNAPSHOT)]


def test_a_training_that_was_cut_off_goes_on_from_object_storage_with_more_workers(ray_cluster, s3, capsys):
    run, encoder = Folder(s3), Folder(s3) / "encoder"
    write_quadruplets(run, {"train": 16, "validation": 4})
    sets = [*DISTURBED, "train.preserve=null", "train.max_failures=0"]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(train_encoder, config_for("unused", *sets, "train.resources.actors=1"), run)
        wait_until(lambda: checkpoints_to_go_on_from(encoder), lambda: not first.done())
        (worker,) = train_workers()  # it waits for another
        worker.kill()
        with pytest.raises(TrainingFailedError):
            first.result()
    manifest = train_encoder(config_for("unused", *sets), run)
    assert (manifest["train"]["epochs"], manifest["train"]["workers"]) == (2, 2)
    assert re.search(r"training goes on after epoch (0 and 1 steps|1), with 2 workers", capsys.readouterr().out)
    assert encoder.folders() == ["best", "huggingface", "lora", "open_clip", "teacher", "text_encoder", "tracker"]
    assert load_encoder(f"{s3}/encoder/open_clip").encode_texts(["a dog"]).shape == (1, 128)
