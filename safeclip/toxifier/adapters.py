"""Two LoRA adapters of the LLM joined into one."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from safeclip.generation.llm import ADAPTER_FILES

_A, _B = ".lora_A.weight", ".lora_B.weight"


def join_adapters(first: Path, second: Path, target: Path) -> None:
    """Writes one adapter that changes a model as two do together.

    With W + s₁B₁A₁ + s₂B₂A₂, the rows of A₁ and A₂ and the scaled columns of B₁ and B₂ side by side give the same
    product, at the sum of the two ranks and a scale of 1.

    Args:
        first: folder of an adapter.
        second: folder of another, of the same modules; trained on the model with the first merged into it, or not.
        target: folder of the joint one, made if need be; its weights are float16.

    Raises:
        ValueError: the two lie on different modules.
    """
    configs = [json.loads((folder / ADAPTER_FILES[0]).read_text()) for folder in (first, second)]
    states = [load_file(folder / ADAPTER_FILES[1]) for folder in (first, second)]
    if states[0].keys() != states[1].keys():
        raise ValueError("the adapters lie on different modules")
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    joint = {}
    for name in states[0]:
        if name.endswith(_A):
            joint[name] = torch.cat([state[name].float() for state in states], dim=0)
        elif name.endswith(_B):
            joint[name] = torch.cat([s * state[name].float() for s, state in zip(scales, states, strict=True)], dim=1)
        else:
            raise ValueError(f"{name} is no weight of a LoRA layer")
    rank = sum(config["r"] for config in configs)
    write_adapter(joint, {**configs[0], "r": rank, "lora_alpha": rank}, target)


def write_adapter(weights: dict[str, torch.Tensor], config: dict[str, Any], target: Path) -> None:
    """Writes an adapter's two files; weights in float16."""
    target.mkdir(parents=True, exist_ok=True)
    (target / ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file({name: value.half().contiguous() for name, value in weights.items()}, target / ADAPTER_FILES[1])
