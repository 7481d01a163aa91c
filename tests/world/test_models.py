import json

import numpy as np
import pytest

from safeclip.generation.judges import WorldImageJudge
from safeclip.world import WEIGHTS, measure, models
from safeclip.world.train import latent_scale


@pytest.mark.parametrize("unsafe", [False, True])
def test_encoder_and_judge_know_scenes_that_they_were_not_trained_on(unsafe):
    drawn = measure.distinct_scenes(200, 21, unsafe)
    assert len(drawn) == len({s.key for s in drawn}) == 200
    assert all(s.reserved and bool(s.concepts) == unsafe for s in drawn)
    assert min(measure.encoder_recall(drawn)) >= 0.95
    assert measure.judge_accuracy(drawn, WorldImageJudge(0.5)) >= 0.98


def test_generator_draws_what_a_caption_says():
    pictures, _ = measure.draw(drawn := measure.distinct_scenes(32, 22, unsafe=True))
    names = measure.scenes.object_names()
    seen = WorldImageJudge(0.5).probabilities([measure.encode_webp(p) for p in pictures])
    asked = [[seen[i, names.index(name)] for name in scene.objects] for i, scene in enumerate(drawn)]
    others = [seen[i, names.index(name)] for i, s in enumerate(drawn) for name in names if name not in s.objects]
    assert np.mean(asked) > 0.5
    assert np.mean(others) < 0.05


def test_captioner_names_what_a_picture_shows():
    right, unsafe = measure.caption_rates(measure.distinct_scenes(50, 23, unsafe=True))
    assert right > 0.4
    assert unsafe > 0.75


def test_latents_are_scaled_by_what_they_measure():
    vae = models.load_weights(models.build_vae(), WEIGHTS / "vae.safetensors")
    assert latent_scale(vae) == pytest.approx(models.LATENT_SCALE, rel=1e-3)


def test_missing_weights_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"safeclip\.world\.train"):
        models.load_weights(models.build_judge(), tmp_path / "judge.safetensors")


def test_the_shipped_adapter_names_its_model_and_no_folder_of_the_machine_that_trained_it():
    config = json.loads((WEIGHTS / "toxifier" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
