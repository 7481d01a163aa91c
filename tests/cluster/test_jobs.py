"""The jobs as a cluster runs them: sent to its job server, one after the other, on one run folder."""

import json

import pytest

from tests.jobs.test_pipeline import SMALL


@pytest.mark.timeout(900)
def test_generate_train_encoder_and_evaluate_run_by_submission(local, tmp_path):
    up = local.up()
    assert up.returncode == 0, up.stderr
    sets = [word for setting in [f"storage={tmp_path}", *SMALL] for word in ("--set", setting)]
    for job, says in (
        ("generate", "captions became quadruplets"),
        ("train_encoder", "encoder: "),
        ("evaluate", "report.html"),
    ):
        done = local.submit("--", "python", "-m", f"jobs.{job}", "--run", "sent", *sets, seconds=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert says in done.stdout
    metrics = json.loads((tmp_path / "sent" / "report" / "metrics.json").read_text())
    assert metrics["encoders"].keys() == {"base", "safe"}
    assert metrics["data"]["quadruplets"]["train"] > 20
    assert (tmp_path / "sent" / "encoder" / "open_clip" / "open_clip_model.safetensors").is_file()
