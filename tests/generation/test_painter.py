import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from safeclip.config import Illustrate, TextToImage
from safeclip.encoder.export import to_huggingface
from safeclip.errors import UserError
from safeclip.generation.painter import Painter, load_pipeline
from safeclip.world.models import build_generator
from tests.evaluation.models import small_encoder, small_sdxl

TEXTS = ["a cat next to a dog on a blue background", "a picture of a car on white"]


def settings(model, section=Illustrate):
    return section(model=str(model), steps=2, guidance=2.0, size=64)


@pytest.mark.parametrize("section", [Illustrate, TextToImage])
def test_a_folder_that_is_no_pipeline_is_named_with_its_setting(tmp_path, section):
    with pytest.raises(UserError, match=rf"{section.place}\.model: {tmp_path} cannot be loaded"):
        load_pipeline(settings(tmp_path, section), "cpu")


def test_a_folder_draws_what_the_pipeline_in_it_draws_and_guidance_may_be_given(tmp_path):
    build_generator().save_pretrained(tmp_path)
    folder, world = Painter(settings(tmp_path)), Painter(settings("world:generator"))
    one, other = folder.draw(TEXTS, [1, 2]), world.draw(TEXTS, [1, 2])
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(world.draw(TEXTS, [1, 2], guidance=1.0)[0], other[0])
    assert np.array_equal(world.draw(TEXTS, [1, 2], guidance=2.0)[0], other[0])


def test_a_folder_may_hold_an_sdxl(tmp_path):
    for name, size in {"first": (32, 2), "second": (48, 3)}.items():
        to_huggingface(small_encoder(*size, seed=0).model).save_pretrained(tmp_path / name)
    small_sdxl(tmp_path / "first", tmp_path / "second").save_pretrained(tmp_path / "sdxl")
    painter = Painter(settings(tmp_path / "sdxl"))
    assert isinstance(painter.pipeline, StableDiffusionXLPipeline)
    assert painter.draw(TEXTS[:1], [1])[0].size == (64, 64)
