import importlib.util

import pytest

from safeclip.artifacts import Folder
from safeclip.encoder.tracker import Tracker, make_tracker
from safeclip.errors import UserError


def test_numbers_within_a_dictionary_go_by_its_name():
    noted = []
    tracker = Tracker(lambda step, numbers: noted.append((step, numbers)), lambda: None)
    tracker.note(3, {"loss": {"total": 1.0, "C": 2.0}, "data_wait": 0.1})
    assert noted == [(3, {"loss/total": 1.0, "loss/C": 2.0, "data_wait": 0.1})]


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


def test_none_tracks_nothing(tmp_path):
    assert make_tracker(None, Folder(str(tmp_path)), "name") is None


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_named(tmp_path, kind):
    if importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is installed")
    with pytest.raises(UserError, match=f"train.tracker: {kind} is not installed"):
        make_tracker(kind, Folder(str(tmp_path)), "name")
