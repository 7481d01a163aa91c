"""The whole chain in small, by the commands that a user types: jobs submitted, and the pipeline killed in stages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import pipeline
from jobs.command import run_main
from safeclip.artifacts import Folder, read_manifest
from safeclip.generation.judges import WorldTextJudge
from safeclip.records import row_id
from tests.cluster.conftest import local_cluster
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
SMALL = [
    "captions.count=40", "captions.unit_rows=8", "captions.validation=0.2", "captions.test=0.2",
    "generate.max_reject_fraction=0.9", "train.epochs=1", "train.batch=8", "train.preserve.count=16",
    "train.preserve.per_step=8", "train.preserve.unit_rows=8", "train.preserve.drawn=0",
    "evaluate.rendered=24", "evaluate.bootstrap=20", "evaluate.text_to_image=null", "evaluate.image_to_text=null",
    # One actor each: on two cores a second one takes more time to start than it saves. Two draw pictures below.
    "generate.toxify.resources.actors=1", "generate.illustrate.resources.actors=1", "train.resources.actors=1",
    "evaluate.resources.actors=1",
]  # fmt: skip


def _words(storage, run, *more):
    sets = [word for setting in [f"storage={storage}", *SMALL, *more] for word in ("--set", setting)]
    return ["--run", run, *sets]


def _start(storage, run, *more, environment=None):
    command = [sys.executable, "-m", "jobs.pipeline", *_words(storage, run, *more)]
    out = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=out, stderr=subprocess.STDOUT)


def _hashes(run):
    return {p.parent.name: json.loads(p.read_text()).get("content_hash") for p in run.glob("*/manifest.json")}


@pytest.fixture(scope="module")
def local():
    with local_cluster() as local:
        up = local.up()
        assert up.returncode == 0, up.stderr
        yield local


def _submit(local, job, storage):
    done = local.submit("--", "python", "-m", f"jobs.{job}", *_words(storage, "demo"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def undisturbed(local, tmp_path_factory):
    """A run's quadruplets, by a job that is sent to the job server of a local cluster."""
    storage = tmp_path_factory.mktemp("undisturbed")
    _submit(local, "generate", storage)
    return storage / "demo"


def _is_alive(process):
    assert process.poll() is None, process.communicate()[0]
    return True


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def cut_off(local, tmp_path_factory):
    """Where a run lies that the pipeline makes and is killed in three stages, each time started again.

    The captions begun in a Ray that the pipeline started are gone on with in a cluster that it joins, and there the
    pictures begun by one actor by two.
    """
    storage = tmp_path_factory.mktemp("killed")
    joining = {**local.environment, "RAY_ADDRESS": f"127.0.0.1:{local.port}"}
    stages = {
        "unsafe_captions": ([], None),
        "unsafe_images": ([], joining),
        "encoder": (["generate.illustrate.resources.actors=2"], joining),
    }
    for stage, (sets, environment) in stages.items():
        folder = storage / "demo" / stage
        process = _start(storage, "demo", *sets, environment=environment)
        pattern = "teacher" if stage == "encoder" else "*.parquet"
        wait_until(lambda f=folder, p=pattern: any(f.glob(p)), lambda p=process: _is_alive(p))
        _kill(process)
        assert not (folder / "manifest.json").exists()
    return storage


@pytest.fixture(scope="module")
def killed(cut_off, local):
    """The same run, completed by jobs that are sent to the cluster."""
    for job in ("train_encoder", "evaluate"):
        _submit(local, job, cut_off)
    return cut_off / "demo"


def test_captions_become_a_safe_encoder_and_its_report(killed):
    stages = ("captions", "unsafe_captions", "unsafe_images", "quadruplets", "encoder", "report")
    assert all((killed / stage / "manifest.json").is_file() for stage in stages)
    assert (killed / "encoder" / "open_clip" / "open_clip_model.safetensors").is_file()
    assert not (killed / "encoder" / "best").exists(), "only asked for by train.keep_best"
    assert (killed / "report" / "report.html").is_file()
    metrics = json.loads((killed / "report" / "metrics.json").read_text())
    assert metrics["encoders"].keys() == {"base", "safe"}
    assert metrics["data"]["quadruplets"]["train"] > 10
    assert metrics["data"]["accepted"] == sum(metrics["data"]["quadruplets"].values()) > 16
    assert oct((killed / "unsafe_images").stat().st_mode)[-3:] == "700"
    assert "Datasheet" in (killed / "quadruplets" / "datasheet.md").read_text()


def test_killed_in_each_stage_and_started_again_gives_the_same_quadruplets(undisturbed, killed):
    generated = ("captions", "unsafe_captions", "unsafe_images", "quadruplets")
    wanted, got = _hashes(undisturbed), _hashes(killed)
    assert {s: got[s] for s in generated} == {s: wanted[s] for s in generated}
    assert not list(killed.rglob("*.part"))


def test_unsafe_captions_pass_the_judge_again_and_say_what_they_were_made_from(killed):
    stage = Folder(str(killed / "unsafe_captions"))
    manifest = read_manifest(stage)
    assert manifest["rows"] == read_manifest(Folder(str(killed / "captions")))["accepted"]
    assert manifest["accepted"] >= 0.4 * manifest["rows"]
    rows = [row for unit in manifest["units"] for row in stage.read_table(unit["name"]).to_pylist()]
    assert len(rows) == manifest["rows"]
    for row in rows:
        assert 1 <= row["candidates"] <= 4
        (verdict,) = WorldTextJudge()([row["safe_caption"]], [row["unsafe_caption"]], [row["concept"]])
        assert verdict.reason == row["reject"]
        assert row["id"] == row_id(row["safe_caption"], row["concept"])


def test_a_second_call_skips_every_stage(ray_cluster, killed, capsys):
    before = _hashes(killed)
    assert run_main(pipeline.main, _words(killed.parent, "demo")) == 0
    output = capsys.readouterr().out
    assert output.count("skipped") == 6
    assert "report.html" in output
    assert _hashes(killed) == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.objective=best", "train.objective: 'best' is no objective"),
        ("train.base=world:nothing", "encoder 'world:nothing': neither a folder nor a known name"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_generated(
    ray_cluster, tmp_path, capsys, setting, said
):
    assert run_main(pipeline.main, _words(tmp_path, "demo", setting)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_another_config_in_the_same_run_is_refused_by_name(killed, capsys):
    assert run_main(pipeline.main, _words(killed.parent, "demo", "train.epochs=2")) == 1
    said = capsys.readouterr().err
    assert "train.epochs: 1 → 2" in said
    assert "Traceback" not in said
