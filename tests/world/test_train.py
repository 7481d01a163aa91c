from dataclasses import replace

import pytest
import torch

from safeclip.world import train


class CutOffError(Exception):
    pass


def _judge(steps=4, dies_at=None):
    """The judge's own training, a few small steps long, with a cut-off where it is asked for."""
    part = train.PARTS["judge"]

    def make_loss():
        loss, calls = part.make_loss(), []

        def counted(*arguments):
            calls.append(None)
            if len(calls) - 1 == dies_at:
                raise CutOffError
            return loss(*arguments)

        return counted

    return replace(part, steps=steps, batch=8, make_loss=make_loss)


def test_a_training_that_was_cut_off_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    undisturbed = train.train("judge", _judge(), tmp_path / "undisturbed")
    with pytest.raises(CutOffError):
        train.train("judge", _judge(dies_at=3), tmp_path / "cut")
    resumed = train.train("judge", _judge(), tmp_path / "cut")
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_base_models_see_no_reserved_scene_of_two_objects():
    scenes = train.training_scenes(200, 3)
    assert len(scenes) == 200
    assert not [s for s in scenes if s.reserved and len(s.objects) == 2]
    assert {len(s.objects) for s in scenes} == {1, 2}
    assert any(s.concepts for s in scenes)


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.main(["decoder"])
    assert "there are encoder, judge, vae, unet, captioner" in capsys.readouterr().err
