import shutil

import pytest

from safeclip.artifacts import Folder
from safeclip.config import load_config
from safeclip.errors import UserError
from safeclip.evaluation.encoders import choose_comparison, default_comparison, identify
from safeclip.world import WEIGHTS


@pytest.fixture
def run(tmp_path):
    (tmp_path / "demo" / "encoder" / "open_clip").mkdir(parents=True)
    return Folder(str(tmp_path / "demo"))


def test_other_encoders_get_a_folder_of_their_own(run):
    config = load_config()
    own = default_comparison(config, run)
    assert (own.folder, own.own) == (run / "report", True)
    exported = f"{run.url}/encoder"
    assert choose_comparison(config, run, ["base=world:encoder", f"safe={exported}"]) == own
    assert choose_comparison(config, run, []) == own
    others = [
        ["base=world:encoder", f"other={exported}"],
        [f"safe={exported}", "base=world:encoder"],
        ["base=world:encoder", "other=ViT-B-32/openai"],
    ]
    chosen = [choose_comparison(config, run, words) for words in others]
    assert not any(comparison.own for comparison in chosen)
    folders = [comparison.folder for comparison in chosen]
    assert len({own.folder, *folders}) == 4
    assert folders[0].name.startswith("report-base-other-")
    assert choose_comparison(config, run, others[0]).folder == folders[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["world:encoder"], "write it as label=source"),
        (["base="], "write it as label=source"),
        (["a/b=world:encoder"], "write it as label=source"),
        (["a=world:encoder", "a=ViT-B-32/openai"], "the label a is taken"),
    ],
)
def test_a_wrong_word_is_refused(run, words, message):
    with pytest.raises(UserError, match=message):
        choose_comparison(load_config(), run, words)


def test_encoders_are_told_apart_by_weights_and_not_by_place(tmp_path):
    shutil.copytree(WEIGHTS / "encoder", tmp_path / "copy")
    found = identify({"base": "world:encoder", "copy": Folder(str(tmp_path / "copy"))})
    assert found["base"] == found["copy"]
    with pytest.raises(UserError, match=r"encoder 'nowhere': neither a folder nor a known name"):
        identify({"other": "nowhere"})
