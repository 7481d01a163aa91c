"""What tells the weights of generative models and judges from others of the same name."""

import contextlib
import functools
import hashlib
from pathlib import Path

from safeclip.world import WEIGHTS
from safeclip.world.language_model import language_model

_OF_GENERATOR = ("vae.safetensors", "unet.safetensors", "encoder/open_clip_model.safetensors")
_OF_HUB = ("config.json", "model_index.json", "open_clip_config.json", "open_clip_model.safetensors")


@functools.cache
def model_hash(name: str) -> str:
    """Returns what tells a model's weights from others.

    Args:
        name: of a model, as in the config.

    Returns:
        The start of the SHA-256 of its safetensors, where they lie on this machine; else the commit of the hub's
        model, of which open_clip's names stand for some; "not known" where there is neither.
    """
    worlds = {
        "world:generator": [WEIGHTS / file for file in _OF_GENERATOR],
        "world:encoder": [WEIGHTS / "encoder"],
        "world:captioner": [WEIGHTS / "captioner.safetensors"],
    }
    places = worlds.get(name) or [language_model() if name == "world:llm" else Path(name)]
    files = [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("*.safetensors")))]
    if not files:
        return _commit(_hub_name(name))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return f"SHA-256 {digest.hexdigest()[:16]}"


def _hub_name(name: str) -> str:
    """Returns where on the hub a model lies, also of open_clip's `<architecture>/<tag>` and `hf-hub:<name>`."""
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture in open_clip.list_models():
        return open_clip.get_pretrained_cfg(architecture, tag).get("hf_hub", "").rpartition("/")[0]  # less a file
    return name.removeprefix("hf-hub:")


def _commit(name: str) -> str:
    """Returns the commit of a hub's model: the hub's, or that of the copy here where the hub does not answer.

    The hub comes first: it is what the machines that use the model download from, and a copy here may be older.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        with contextlib.suppress(HTTPError, OSError, ValueError):  # offline, refused, or no answer of a hub's
            if "/" in name and (sha := HfApi().model_info(name, timeout=5).sha):
                return f"commit {sha}"
        found = [try_to_load_from_cache(name, file) for file in _OF_HUB]
    except HFValidationError:
        return "not known"
    commits = [Path(path).parent.name for path in found if isinstance(path, str)]
    return f"commit {commits[0]}" if commits else "not known"
