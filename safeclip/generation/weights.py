"""What tells the weights of generative models and judges from others of the same name."""

import functools
import hashlib
from pathlib import Path

from safeclip.world import WEIGHTS
from safeclip.world.language_model import language_model

_OF_GENERATOR = ("vae.safetensors", "unet.safetensors", "encoder/open_clip_model.safetensors")


@functools.cache
def model_hash(name: str) -> str:
    """Returns what tells a model's weights from others.

    Args:
        name: of a model, as in the config.

    Returns:
        The start of the SHA-256 of its safetensors, where they lie on this machine; the commit of a hub's model that
        was downloaded to this machine; "not known" elsewhere.
    """
    worlds = {
        "world:generator": [WEIGHTS / file for file in _OF_GENERATOR],
        "world:encoder": [WEIGHTS / "encoder"],
        "world:captioner": [WEIGHTS / "captioner.safetensors"],
    }
    places = worlds.get(name) or [language_model() if name == "world:llm" else Path(name)]
    files = [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("*.safetensors")))]
    if not files:
        return _commit(name)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(2**24):
                digest.update(part)
    return f"SHA-256 {digest.hexdigest()[:16]}"


def _commit(name: str) -> str:
    """Returns the commit of a hub's model in this machine's cache, which names the folder of its files."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file) for file in ("config.json", "model_index.json")]
    except HFValidationError:
        return "not known"
    commits = [Path(path).parent.name for path in found if isinstance(path, str)]
    return f"commit {commits[0]}" if commits else "not known"
