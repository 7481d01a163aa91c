import importlib.util

import pytest

from safeclip.artifacts import Folder
from safeclip.encoder.tracker import Tracker, make_tracker
from safeclip.errors import UserError


def test_numbers_within_a_dictionary_go_by_its_name():
    noted = []
    tracker = Tracker(lambda step, numbers: noted.append((step, numbers)), lambda: None, lambda done: None)
    tracker.note(3, {"loss": {"total": 1.0, "d(U,S_ref)": 2.0}, "data_wait": 0.1})
    assert noted == [(3, {"loss/total": 1.0, "loss/d_U_S_ref": 2.0, "data_wait": 0.1})]


def test_what_goes_wrong_with_numbers_is_told_once_and_stops_nothing(capsys):
    def refuse(*_):
        raise OSError("the server is away\nfor long")

    tracker = Tracker(refuse, refuse, refuse)
    tracker.note(1, {"loss": 1.0})
    tracker.flush()
    tracker.end(done=True)
    told = "train.tracker: the server is away; the training goes on, its charts may have gaps\n"
    assert capsys.readouterr().out == told


def test_tensorboards_files_lie_in_the_folder_once_flushed(tmp_path):
    folder = Folder(str(tmp_path / "tracker"))
    tracker = make_tracker("tensorboard", folder, "name")
    tracker.note(1, {"loss": {"total": 1.0}})
    assert folder.files() == []
    tracker.flush()
    assert [b"loss/total" in folder.read(name) for name in folder.files()] == [True]
    tracker.flush()
    tracker.note(2, {"loss": {"d(U,S_ref)": 0.5}})
    tracker.flush()
    assert [b"loss/d_U_S_ref" in folder.read(name) for name in folder.files()] == [False, True]
    tracker.note(3, {"loss": {"total": 1.0}})
    tracker.end(done=False)
    assert len(folder.files()) == 3


def test_none_tracks_nothing(tmp_path):
    assert make_tracker(None, Folder(str(tmp_path)), "name") is None


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_named(tmp_path, kind):
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed")
    with pytest.raises(UserError, match=f"train.tracker: {kind} is not installed"):
        make_tracker(kind, Folder(str(tmp_path)), "name")


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow, with a store of its own."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    module = pytest.importorskip("mlflow")
    module.set_tracking_uri((tmp_path / "store").as_uri())
    yield module
    module.set_tracking_uri(None)


def test_a_training_that_goes_on_has_one_run_in_mlflow(tmp_path, mlflow):
    folder, client = Folder(str(tmp_path / "tracker")), mlflow.MlflowClient()

    def runs():
        (experiment,) = [each for each in client.search_experiments() if each.name == "safeclip"]
        return client.search_runs([experiment.experiment_id])

    first = make_tracker("mlflow", folder, "name")
    first.note(1, {"loss": {"d(U,S_ref)": 1.0}, "data_wait": 0.5})
    first.end(done=False)
    assert [(run.info.run_name, run.info.status) for run in runs()] == [("name", "FAILED")]
    second = make_tracker("mlflow", folder, "name")
    for step in range(2, 1500):
        second.note(step, {"loss": {"d(U,S_ref)": 2.0}})
    second.flush()
    assert [run.info.status for run in runs()] == ["RUNNING"]
    second.end(done=True)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/d_U_S_ref")
    assert [(each.step, each.value) for each in history] == [(1, 1.0), *((step, 2.0) for step in range(2, 1500))]


def test_an_mlflow_that_is_away_stops_a_training_where_it_begins_only(tmp_path, mlflow, capsys):
    begun, fresh = Folder(str(tmp_path / "begun")), Folder(str(tmp_path / "fresh"))
    make_tracker("mlflow", begun, "name")
    mlflow.set_tracking_uri("http://127.0.0.1:9")  # where nobody answers
    with pytest.raises(UserError, match=r"train\.tracker: mlflow cannot be had: .*127\.0\.0\.1"):
        make_tracker("mlflow", fresh, "name")
    tracker = make_tracker("mlflow", begun, "name")
    tracker.note(1, {"loss": 1.0})
    tracker.flush()
    assert capsys.readouterr().out.count("the training goes on") == 1
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())


def test_a_training_that_goes_on_has_one_run_in_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    runs = []
    for folder, done in (("one", False), ("one", True), ("other", True)):
        tracker = make_tracker("wandb", Folder(str(tmp_path / folder)), "name")
        tracker.note(1, {"loss": {"d(U,S_ref)": 1.0}})
        tracker.end(done)
        runs.append(tracker.run)
    assert runs[0] == runs[1] != runs[2]
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert {path.stem for path in files} == {f"run-{run}" for run in runs}
    assert all(b"loss/d_U_S_ref" in path.read_bytes() for path in files)
