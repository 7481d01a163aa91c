"""What lies beside the weights of a model that anyone may have made: code is not run, and a pickle is not read."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from safeclip.config import Illustrate, ImageToText
from safeclip.encoder.export import export_encoder
from safeclip.encoder.load import load_encoder
from safeclip.errors import UserError
from safeclip.evaluation.captioner import load_captioner
from safeclip.generation.llm import model_path
from safeclip.generation.painter import load_pipeline
from safeclip.world.models import build_generator
from tests.evaluation.models import save_small_llava, small_encoder
from tests.toxifier.models import save_tiny_model

ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "llm")
    save_small_llava(small_encoder(32, 2, seed=0), folder / "llava")
    build_generator().save_pretrained(folder / "pipeline")
    export_encoder(load_encoder("world:encoder"), folder / "encoder")
    return folder


LOADERS = {
    "llm": lambda folder: model_path(str(folder)),
    "llava": lambda folder: load_captioner(ImageToText(model=str(folder)), "cpu"),
    "pipeline": lambda folder: load_pipeline(Illustrate(model=str(folder), steps=1, guidance=1, size=64), "cpu"),
    "encoder": lambda folder: load_encoder(str(folder / "huggingface")),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_model_without_code_and_pickles_loads(models, kind):
    LOADERS[kind](models / kind)


def change(file: Path, **settings):
    """Writes settings into a JSON file, which need not be there."""
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **settings}))


def write_code(folder: Path, ran: Path) -> None:
    """Writes an `own.py` whose classes, whatever they are, make a file when it runs."""
    names = ["Config", "Model", "Processor", "Tokenizer", "Pipeline"]
    classes = "".join(f"class {name}(CLIPTokenizer):\n    pass\n" for name in names)
    touch = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nfrom transformers import CLIPTokenizer\n"
    (folder / "own.py").write_text(touch + classes)


def own_config(folder):
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    return folder


def own_tokenizer(folder):
    auto_map = {"AutoTokenizer": ["own.Tokenizer", None]}
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=auto_map)
    return folder


def own_processor(folder):
    change(folder / "processor_config.json", processor_class="Own", auto_map={"AutoProcessor": "own.Processor"})
    return folder


def own_part(folder):
    change(folder / "model_index.json", unet=["own", "Model"])
    return folder / "unet"


def own_pipeline(folder):
    change(folder / "model_index.json", _class_name=["own", "Pipeline"])
    return folder


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("llm", own_config),
        ("llm", own_tokenizer),
        ("llava", own_config),
        ("llava", own_processor),
        ("pipeline", own_part),
        ("pipeline", own_pipeline),
    ],
)
def test_a_folders_code_is_not_run_even_where_somebody_would_say_yes(models, tmp_path, monkeypatch, kind, own):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    shutil.copytree(models / kind, tmp_path / kind)
    ran = tmp_path / "ran"
    write_code(own(tmp_path / kind), ran)
    with pytest.raises(UserError, match="cannot be loaded: it has code of its own, which is never run"):
        LOADERS[kind](tmp_path / kind)
    assert not ran.exists()


def test_the_code_of_a_text_tower_is_not_run_even_where_somebody_would_say_yes(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    write_code(own_config(tmp_path), ran)
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "hf_pooler_type": "mean_pooler"}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    (tmp_path / "own-text-tower.json").write_text(
        json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(tmp_path / "own-text-tower.json")
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UserError, match="cannot be loaded: it has code of its own, which is never run"):
        load_encoder(f"own-text-tower/{tmp_path}/weights.safetensors")
    assert not ran.exists()


PLACES = {"llm": ".", "llava": ".", "pipeline": "text_encoder", "encoder": "huggingface"}


@pytest.mark.parametrize("kind", LOADERS)
def test_an_adapter_beside_a_model_is_refused_before_its_pickle_is_read(models, tmp_path, kind):
    shutil.copytree(models / kind, tmp_path / kind)
    place = tmp_path / kind / PLACES[kind]
    change(place / "adapter_config.json", **ADAPTER)
    torch.save({}, place / "adapter_model.bin")
    with pytest.raises(UserError, match=r"a LoRA adapter lies there \(adapter_config.json\); merge it"):
        LOADERS[kind](tmp_path / kind)


@pytest.mark.parametrize(
    ("kind", "weights", "said"),
    [
        ("llm", "model.safetensors", r"it has no \.safetensors, and pickled weights are not read"),
        ("llava", "model.safetensors", r"no file named model\.safetensors"),
        ("pipeline", "text_encoder/model.safetensors", r"no file named model\.safetensors"),
        (
            "pipeline",
            "unet/diffusion_pytorch_model.safetensors",
            r"no file named diffusion_pytorch_model\.safetensors",
        ),
        ("encoder", "huggingface/model.safetensors", r"no file named model\.safetensors"),
    ],
)
def test_pickled_weights_are_refused(models, tmp_path, kind, weights, said):
    shutil.copytree(models / kind, tmp_path / kind)
    file = tmp_path / kind / weights
    name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
    torch.save(load_file(file), file.with_name(name))
    file.unlink()
    with pytest.raises(UserError, match=rf"cannot be loaded: .*{said}"):
        LOADERS[kind](tmp_path / kind)
