"""Models of transformers that anyone may have made: no code that lies beside one is run, and nothing is unpickled."""

from typing import Any

from safetensors import SafetensorError
from transformers import dynamic_module_utils
from transformers.utils import find_adapter_config_file

from safeclip.errors import UserError

# For so many seconds transformers asks on the terminal where nobody said whether code may run, and open_clip says
# nothing of a text tower.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""What transformers, diffusers and open_clip raise for files that are missing, broken or of another kind."""


def load_pretrained(kind: Any, source: str, what: str, **settings: Any) -> Any:
    """Returns what a class of transformers makes of a folder or a hub's name.

    Args:
        kind: the class.
        source: the folder or the name.
        what: is loaded, for messages.
        settings: more for `from_pretrained`.

    Raises:
        UserError: it cannot be loaded, or only by code of its own.
    """
    try:
        return kind.from_pretrained(source, trust_remote_code=False, **settings)
    except UNREADABLE as error:
        raise cannot_load(what, error) from error


def load_model(kind: Any, source: str, what: str, **settings: Any) -> Any:
    """Returns a model, as `load_pretrained` does, from `.safetensors`.

    Raises:
        UserError: it cannot be loaded, or only by code of its own, or its weights are pickled, or it is an adapter.
    """
    refuse_adapter(source, what)
    return load_pretrained(kind, source, what, use_safetensors=True, **settings)


def refuse_adapter(source: str, what: str) -> None:
    """Refuses a model that a LoRA adapter lies beside: transformers would load it, too, from a pickle if need be.

    Raises:
        UserError: there is one, or there is no such model.
    """
    try:
        adapter = find_adapter_config_file(source)
    except UNREADABLE as error:
        raise cannot_load(what, error) from error
    if adapter is not None:
        raise UserError(
            f"{what} cannot be loaded: a LoRA adapter lies there (adapter_config.json); merge it into its model first"
        )


def cannot_load(what: str, error: Exception) -> UserError:
    """Returns an error of what could not be loaded, in one line."""
    said = str(error).strip() or type(error).__name__
    reason = "it has code of its own, which is never run" if "trust_remote_code" in said else said.splitlines()[0]
    return UserError(f"{what} cannot be loaded: {reason}")
