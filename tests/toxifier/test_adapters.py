import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from safeclip.artifacts import Folder
from safeclip.generation.llm import merge_adapter
from safeclip.toxifier.adapters import join_adapters
from tests.toxifier.models import save_tiny_model


def _adapter(base, folder, rank, alpha, seed, targets=("q_proj", "v_proj")):
    """Saves an adapter of random weights, in place of one that was trained."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    )
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def test_a_joint_adapter_changes_the_model_as_two_in_turn_do(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    first = _adapter(base, tmp_path / "first", 4, 8, 1)
    second = _adapter(base, tmp_path / "second", 2, 6, 2)
    join_adapters(first, second, tmp_path / "joint")
    assert json.loads((tmp_path / "joint" / "adapter_config.json").read_text())["r"] == 6
    in_turn = AutoModelForCausalLM.from_pretrained(base)
    for folder in (first, second):
        in_turn = merge_adapter(in_turn, Folder(str(folder)))
    at_once = merge_adapter(AutoModelForCausalLM.from_pretrained(base), Folder(str(tmp_path / "joint")))
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected, found = in_turn(tokens).logits, at_once(tokens).logits
        untouched = AutoModelForCausalLM.from_pretrained(base)(tokens).logits
    assert (expected - untouched).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)  # weights are stored in float16


def test_adapters_of_different_modules_cannot_be_joined(tmp_path):
    base = save_tiny_model(tmp_path / "base")
    first = _adapter(base, tmp_path / "first", 4, 8, 1)
    second = _adapter(base, tmp_path / "second", 4, 8, 2, targets=("q_proj",))
    with pytest.raises(ValueError, match="different modules"):
        join_adapters(first, second, tmp_path / "joint")
