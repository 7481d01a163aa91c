import io
import json

import numpy as np
import pytest
from PIL import Image

from jobs.command import run_main
from jobs.evaluate import main, more_thorough
from safeclip.artifacts import Folder, read_manifest
from safeclip.config import Resources, load_config, save_config
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from safeclip.evaluation.embeddings import embed_sets
from safeclip.evaluation.encoders import choose_comparison
from safeclip.evaluation.evaluate import evaluate, shows_symbols_only
from safeclip.evaluation.retrieval import RECALLS, TASKS, UNSAFE_TASKS
from safeclip.evaluation.sets import EvaluationSet, evaluation_sets, training_captions
from safeclip.evaluation.summary import summary_sentences
from safeclip.world.classes import VARIANTS
from safeclip.world.quadruplets import scene_keys
from safeclip.world.scenes import Scene, render
from tests.evaluation.conftest import ROOT
from tests.evaluation.models import save_small_llava

DRAWN = [f"evaluate.text_to_image.{s}" for s in ("count=2", "steps=1", "resources.actors=1")]
DESCRIBED = [f"evaluate.image_to_text.{s}" for s in ("count=2", "max_tokens=4", "resources.actors=1")]
SETS = ("retrieval", "retrieval_held_out", "retrieval_generated")


def _picture(name):
    sink = io.BytesIO()
    Image.fromarray(render(Scene((name,), "white", 0))).save(sink, "WEBP", lossless=True)
    return sink.getvalue()


def test_metrics_keep_the_contract(report):
    _, _, metrics = report
    assert set(metrics) >= {"run", "profile", "versions", "seconds", "data", "train", "encoders"}
    assert set(metrics["seconds"]) >= {"quadruplets", "encoder", "report"}
    for encoder in ("base", "safe"):
        assert set(metrics["encoders"][encoder]) == {*SETS, "zero_shot"}
        for figures in metrics["encoders"][encoder]["zero_shot"].values():
            assert 0 <= figures["top1_ci"][0] <= figures["top1"] <= figures["top5"] <= figures["top5_ci"][1] <= 1
        for name in SETS:
            found = metrics["encoders"][encoder][name]
            assert set(found) == set(TASKS)
            for task, figures in found.items():
                shares = [f"r@{k}" for k in RECALLS] + (["harmful@1"] if task in UNSAFE_TASKS else [])
                for share in shares:
                    low, high = figures[f"{share}_ci"]
                    assert 0 <= low <= figures[share] <= high <= 1


def test_every_set_has_its_rows(report):
    _, _, metrics = report
    sizes = {name: metrics["encoders"]["base"][name][TASKS[0]]["n"] for name in SETS}
    assert sizes == {"retrieval": 40, "retrieval_held_out": 40, "retrieval_generated": 12}


def test_the_base_encoder_finds_pairs_and_unsafe_items_and_noise_costs_something(report):
    _, _, metrics = report
    base, safe = (metrics["encoders"][k]["retrieval"] for k in ("base", "safe"))
    assert base["safe_text_to_safe_image"]["r@1"] > 0.9
    assert base["unsafe_text_to_all_images"]["harmful@1"] > 0.8
    lost = safe["safe_text_to_safe_image"]["r@1"] - base["safe_text_to_safe_image"]["r@1"]
    assert lost < 0
    changes = metrics["paired_differences"]
    assert changes["from"] == "base"
    change = changes["encoders"]["safe"]["retrieval"]["safe_text_to_safe_image"]["r@1"]
    assert change == pytest.approx(lost, abs=1e-5)


def test_the_world_s_single_objects_are_classified(report):
    _, _, metrics = report
    found = metrics["encoders"]["base"]["zero_shot"]
    assert set(found) == {f"world_{variant}" for variant in VARIANTS}
    assert found["world_upright"]["n"] == 40
    assert found["world_upright"]["top1"] > 0.9
    assert metrics["missing"] == {}
    assert metrics["notes"] == []


def test_embeddings_by_actors_are_the_encoder_s_own_in_the_order_of_ids(report):
    config, run, _ = report
    test = EvaluationSet("x", "", "", run / "quadruplets" / "test")
    found = embed_sets([test], {"base": "world:encoder"}, config.evaluate, run / "embeddings")["x"]
    rows = sorted(test.folder.read_table("00000.parquet").to_pylist(), key=lambda row: row["id"])
    assert found.ids == [row["id"] for row in rows]
    assert found.concepts == [row["concept"] for row in rows]
    encoder, sides = load_encoder("world:encoder"), found.embeddings["base"]
    for side, column in (("safe_text", "safe_caption"), ("unsafe_text", "unsafe_caption")):
        expected = encoder.encode_texts([row[column] for row in rows])
        assert np.abs(getattr(sides, side) - expected).max() < 1e-5
    for column in ("safe_image", "unsafe_image"):
        expected = encoder.encode_images([row[column] for row in rows])
        assert np.abs(getattr(sides, column) - expected).max() < 1e-5


def test_scenes_of_the_rendered_sets_occur_in_no_training(report):
    _, run, _ = report
    trained = scene_keys(training_captions(run))
    assert len(trained) == 36
    for name in ("rendered", "held_out"):
        table = (run / "report" / "sets" / name).read_table("00000.parquet")
        captions = table["safe_caption"].to_pylist() + table["unsafe_caption"].to_pylist()
        assert not trained & scene_keys(captions)


def test_a_complete_report_is_skipped(report, capsys):
    config, run, _ = report
    manifest = evaluate(config, run)
    assert "complete, skipped" in capsys.readouterr().out
    assert manifest["sets"] == {"retrieval": 40, "retrieval_held_out": 40, "retrieval_generated": 12}


def test_equal_encoders_get_equal_figures_and_without_rendered_sets_the_test_split_is_the_main_one(
    report, tmp_path, capsys
):
    config, run, metrics = report
    # The same run, but the "safe" encoder is a copy of the base one.
    run.fs.copy(run.path(), str(tmp_path / "copy"), recursive=True)
    copy = Folder(str(tmp_path / "copy"))
    weights = ROOT / "safeclip" / "world" / "weights" / "encoder"
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (copy / "encoder" / "open_clip").write(name, (weights / name).read_bytes())
    for name, data in (("dog", _picture("dog")), ("cow", _picture("cow")), ("dog", b"no picture")):
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name / f"{len(data)}.webp").write_bytes(data)
    changed = {
        "rendered": 0,
        "zero_shot": {"pets": str(tmp_path / "pets"), "gone": str(tmp_path / "gone")},
        "text_to_image": load_config(sets=DRAWN).evaluate.text_to_image,
        "image_to_text": load_config(sets=DESCRIBED).evaluate.image_to_text,
        "resources": Resources(actors=1),
    }
    bare = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changed)})
    evaluate(bare, copy)
    out = capsys.readouterr().out
    assert "skipped" not in out
    # The pictures and the names of the pets are new, and embedded once for the two equal encoders.
    assert "embeddings: 6 units, 2 of them now" in out
    assert "zero-shot pets: 1 pictures do not decode and are left out (dog/10.webp)" in out
    assert f"evaluate.zero_shot.gone: {tmp_path}/gone does not exist" in out
    found = json.loads((copy / "report").read("metrics.json"))
    assert list(found["sets"]) == ["retrieval"]
    assert found["encoders"]["base"] == found["encoders"]["safe"]
    assert found["encoders"]["base"]["zero_shot"]["pets"]["n"] == 2
    assert list(found["missing"]) == ["zero_shot.gone"]
    assert found["encoders"]["base"]["retrieval"] == metrics["encoders"]["base"]["retrieval_generated"]
    drawn = found["encoders"]["base"]["text_to_image"]
    assert (drawn["n"], drawn["n_safe"], drawn["replaced"]) == (2, 2, "text_encoder")
    assert found["text_to_image"]["judge"]["version"] == "world judge 1"
    change = found["paired_differences"]["encoders"]["safe"]["text_to_image"]
    assert (change["unsafe_rate"], change["safe_prompt_accuracy_ci"]) == (0, [0, 0])
    described = found["encoders"]["base"]["image_to_text"]
    assert (described["n"], described["n_safe"], described["replaced"]) == (2, 2, "vision_tower")
    assert found["image_to_text"]["judge"]["version"] == "world vocabulary 1"
    assert 0 < drawn["clip_score"] <= 100
    assert (change["clip_score"], change["clip_score_ci"]) == (0, [0, 0])
    assert sum("frechet_distance is missing" in note for note in found["notes"]) == 1
    assert "frechet_distance is missing" in out


def test_another_run_s_encoder_is_not_shown_as_this_run_s_whatever_its_label(report):
    config, run, metrics = report
    bare = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"rendered": 0})})
    other = choose_comparison(bare, run, ["base=world:encoder", "safe=world:encoder"])
    evaluate(bare, run, other)
    found = json.loads(other.folder.read("metrics.json"))
    assert (metrics["own"], found["own"]) == (True, False)
    assert "encoder" not in found["seconds"]
    assert metrics["train"]["objective"] == "safe-clip"
    assert found["train"] == {}
    assert "safe-clip" not in other.folder.read("report.html").decode()


def test_a_report_is_made_again_for_a_model_that_was_missing_and_for_a_replaced_picture(report, tmp_path, capsys):
    config, run, _ = report
    run.fs.copy(run.path(), str(tmp_path / "copy"), recursive=True)
    copy = Folder(str(tmp_path / "copy"))
    described = load_config(sets=[*DESCRIBED, f"evaluate.image_to_text.model={tmp_path}/llava"]).evaluate
    (tmp_path / "pets" / "dog").mkdir(parents=True)
    (tmp_path / "pets" / "dog" / "0.webp").write_bytes(_picture("dog"))
    changed = {"rendered": 0, "image_to_text": described.image_to_text, "resources": Resources(actors=1)}
    changed["zero_shot"] = {"pets": str(tmp_path / "pets")}
    bare = config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changed)})
    assert list(evaluate(bare, copy)["missing"]) == ["image_to_text"]
    save_small_llava(load_encoder("world:encoder"), tmp_path / "llava")
    assert evaluate(bare, copy)["missing"] == {}
    assert json.loads((copy / "report").read("metrics.json"))["encoders"]["safe"]["image_to_text"]["n"] == 2
    assert "skipped" not in capsys.readouterr().out
    evaluate(bare, copy)
    assert "report: complete, skipped" in capsys.readouterr().out
    (tmp_path / "pets" / "dog" / "0.webp").write_bytes(_picture("cow"))
    evaluate(bare, copy)
    assert "skipped" not in capsys.readouterr().out


def test_the_job_prints_table_summary_and_where_the_report_lies(report, tmp_path, capsys):
    config, run, metrics = report
    words = ["--config", str(tmp_path / "config.yaml")]
    (tmp_path / "config.yaml").write_text(save_config(config))
    assert run_main(main, words) == 0
    out = capsys.readouterr().out
    assert "Unsafe picture → all texts         harmful@1" in out
    assert summary_sentences(metrics)[0] in out
    assert f"written to {run.url}/report/report.html" in out
    assert run_main(main, [*words, "--run", "other"]) == 1
    assert capsys.readouterr().err.endswith("other: quadruplets is not complete; run jobs.generate first\n")


def test_a_thorough_report_has_more_of_what_is_drawn_and_described_and_lies_beside_the_other(report, tmp_path):
    config = load_config(ROOT / "ray_config.yaml", "embedded")
    more = more_thorough(config).evaluate
    assert more.text_to_image.count == 5 * config.evaluate.text_to_image.count
    assert more.image_to_text.count == 5 * config.evaluate.image_to_text.count
    assert (more.bootstrap, more.rendered) == (10 * config.evaluate.bootstrap, config.evaluate.rendered)
    small, run, metrics = report
    (tmp_path / "config.yaml").write_text(save_config(small))
    words = ["--config", str(tmp_path / "config.yaml"), "--set", "evaluate.resources.actors=1", "--thorough"]
    assert run_main(main, words) == 0
    thorough = json.loads((run / "report-thorough").read("metrics.json"))
    usual, finer = (m["encoders"]["safe"]["retrieval"] for m in (metrics, thorough))
    assert [finer[task]["r@1"] for task in TASKS] == [usual[task]["r@1"] for task in TASKS]
    assert finer != usual  # the intervals are of ten times as many resamples


def test_what_is_missing_is_named(report, tmp_path):
    config, _, _ = report
    with pytest.raises(UserError, match=r"quadruplets is not complete; run jobs\.generate first"):
        evaluate(config, Folder(str(tmp_path)))
    with pytest.raises(UserError, match="there is no test split"):
        evaluation_sets(Folder(str(tmp_path)), 10, 0, Folder(str(tmp_path / "sets")))


def test_an_encoder_that_was_trained_on_other_quadruplets_is_not_measured_as_the_runs_own(report, tmp_path):
    config, run, _ = report
    other = Folder(str(tmp_path))
    for stage, content in (("quadruplets", "other"), ("encoder", "hash")):
        manifest = {**read_manifest(run / stage), "content_hash": content}
        (other / stage).make()
        (other / stage).write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match=r"was trained on other quadruplets; run jobs\.train_encoder first"):
        evaluate(config, other, choose_comparison(config, run, []))


def test_only_the_worlds_own_pictures_are_shown_as_they_are():
    def config(*sets):
        return load_config(ROOT / "ray_config.yaml", "embedded", list(sets))

    assert shows_symbols_only(config())
    assert not shows_symbols_only(config("captions.source=mine.jsonl"))
    assert not shows_symbols_only(config("generate.illustrate.model=some/diffusion"))
    assert not shows_symbols_only(config("evaluate.text_to_image.model=some/diffusion"))
    assert shows_symbols_only(config("evaluate.text_to_image=null"))
    assert not shows_symbols_only(load_config(ROOT / "ray_config.yaml", "full"))
