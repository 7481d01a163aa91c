"""The whole chain in small, by the commands that a user types: undisturbed, and killed in each stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "captions.count=80", "captions.unit_rows=16", "captions.validation=0.2", "captions.test=0.2",
    "generate.max_reject_fraction=0.9", "train.epochs=1", "train.batch=8", "train.preserve.count=48",
    "train.preserve.per_step=8", "evaluate.rendered=40", "evaluate.bootstrap=20",
    # One actor each: on two cores a second one takes more time to start than it saves.
    "generate.toxify.resources.actors=1", "generate.illustrate.resources.actors=1", "train.resources.actors=1",
    "evaluate.resources.actors=1",
]  # fmt: skip


def _command(storage, run, *more):
    sets = [word for setting in [f"storage={storage}", *SMALL, *more] for word in ("--set", setting)]
    return [sys.executable, "-m", "jobs.pipeline", "--run", run, *sets]


def _start(storage, run, *more):
    return subprocess.Popen(
        _command(storage, run, *more), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _finish(process):
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def _hashes(run):
    return {p.parent.name: json.loads(p.read_text()).get("content_hash") for p in run.glob("*/manifest.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    storage = tmp_path_factory.mktemp("runs")
    output = _finish(_start(storage, "demo"))
    return storage / "demo", output


@pytest.mark.timeout(900)
def test_captions_become_a_safe_encoder_and_its_report(undisturbed):
    run, output = undisturbed
    stages = ("captions", "unsafe_captions", "unsafe_images", "quadruplets", "encoder", "report")
    assert all((run / stage / "manifest.json").is_file() for stage in stages)
    assert "report.html" in output
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert set(metrics["encoders"]) == {"base", "safe"}
    assert metrics["data"]["accepted"] == sum(metrics["data"]["quadruplets"].values()) > 30
    assert oct((run / "unsafe_images").stat().st_mode)[-3:] == "700"
    assert "Datasheet" in (run / "quadruplets" / "datasheet.md").read_text()


@pytest.mark.timeout(300)
def test_a_second_call_skips_every_stage(undisturbed):
    run, _ = undisturbed
    before = _hashes(run)
    output = _finish(_start(run.parent, "demo"))
    assert output.count("skipped") == 6
    assert _hashes(run) == before


@pytest.mark.timeout(120)
def test_another_config_in_the_same_run_is_refused_by_name(undisturbed):
    run, _ = undisturbed
    process = _start(run.parent, "demo", "train.epochs=2")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "train.epochs: 1 → 2" in output
    assert "Traceback" not in output


def _wait_for(process, found, seconds=400):
    until = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "took too long"
        time.sleep(0.2)


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(1200)
def test_killed_in_each_stage_and_started_again_gives_the_same_quadruplets(undisturbed, tmp_path):
    expected, run = undisturbed[0], tmp_path / "demo"
    for stage in ("unsafe_captions", "unsafe_images", "encoder"):
        process = _start(tmp_path, "demo")
        pattern = "teacher" if stage == "encoder" else "*.parquet"
        _wait_for(process, lambda s=stage, p=pattern: any((run / s).glob(p)))
        _kill(process)
        assert not (run / stage / "manifest.json").exists()
    _finish(_start(tmp_path, "demo"))
    generated = ("captions", "unsafe_captions", "unsafe_images", "quadruplets")
    wanted, got = _hashes(expected), _hashes(run)
    assert {s: got[s] for s in generated} == {s: wanted[s] for s in generated}
    assert not list(run.rglob("*.part"))
