from functools import partial

import numpy as np
import pytest

from safeclip.artifacts import Folder
from safeclip.encoder.export import save_open_clip
from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import Encoder
from safeclip.encoder.publish import export_checkpoint
from safeclip.encoder.student import merge_student
from safeclip.encoder.worker import Worker
from safeclip.errors import UserError
from tests.encoder.plans import config_for, plan_for, write_rows
from tests.encoder.quadruplets import render_quadruplets


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    run = Folder(str(tmp_path_factory.mktemp("runs") / "demo"))
    write_rows(run)
    return partial(plan_for, run)


def test_a_checkpoint_is_exported_by_itself(plan, tmp_path):
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
