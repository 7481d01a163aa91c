"""Where an encoder is loaded from: the embedded world, a folder of either library, a file, a name."""

import copy
import tempfile
from pathlib import Path

import open_clip
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.transformer import to_2tuple

from safeclip.artifacts import Folder
from safeclip.encoder.huggingface import load_huggingface
from safeclip.encoder.model import Encoder
from safeclip.errors import UserError
from safeclip.pretrained import UNREADABLE, cannot_load
from safeclip.world import WEIGHTS


def load_encoder(source: str, device: str = "cpu") -> Encoder:
    """Loads an encoder.

    Args:
        source: `world:encoder`, a folder of open_clip's or of Hugging Face's CLIPModel, or its URL,
            `hf-hub:<name>`, `<architecture>/<pretrained>`, or `<architecture>/<file of weights>`. Weights must be
            `.safetensors`, and no code that lies beside them is run.
        device: where the model is put.

    Raises:
        UserError: there is no such folder, name, architecture or set of weights, or it is pickled.
    """
    if "://" in source:
        return load_from(Folder(source), device)
    if Path(source).is_dir() and not (Path(source) / "open_clip_config.json").is_file():
        return load_huggingface(Path(source), device)
    name, pretrained, quick_gelu = _resolve(source)
    try:
        _check_weights(source, name, pretrained)
        model, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, force_quick_gelu=quick_gelu, require_pretrained=True
        )
        model_cfg = copy.deepcopy(open_clip.get_model_config(name))
        # open_clip hands the config's own tokenizer_kwargs to transformers, and they may ask for the folder's code.
        of_hugging_face = bool(model_cfg["text_cfg"].get("hf_tokenizer_name"))
        tokenizer = open_clip.get_tokenizer(name, **({"trust_remote_code": False} if of_hugging_face else {}))
    except UNREADABLE as error:
        raise cannot_load(f"encoder {source!r}", error) from error
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    preprocess_cfg = dict(model.visual.preprocess_cfg)
    preprocess_cfg["size"] = list(to_2tuple(model.visual.image_size))  # as JSON gives it back
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    return Encoder(model.to(device).eval().requires_grad_(False), tokenizer, preprocess, config, device)


def load_from(source: str | Folder, device: str = "cpu") -> Encoder:
    """Loads an encoder, by way of a temporary copy where it lies in an object store.

    Args:
        source: what `load_encoder` takes, or the folder of an encoder on any file system.
        device: where the model is put.

    Raises:
        UserError: as `load_encoder` does, or there is no such folder.
    """
    if not isinstance(source, Folder):
        return load_encoder(source, device)
    if source.is_local:
        return load_encoder(source.path(), device)
    if not source.exists():
        raise UserError(f"encoder {source.url!r} cannot be loaded: there is no such folder")
    with tempfile.TemporaryDirectory() as local:
        place = f"{local}/encoder"
        source.fs.get(source.path(), place, recursive=True)
        return load_encoder(place, device)


def _check_weights(source: str, name: str, pretrained: str | None) -> None:
    """Refuses pickled weights, which open_clip would read.

    Raises:
        UserError: the weights that open_clip would take for a source are not `.safetensors`, or there are none.
    """
    if name.startswith("local-dir:"):
        file = _find_checkpoint_in_dir(Path(name.removeprefix("local-dir:")))
    elif name.startswith("hf-hub:"):
        file = open_clip.download_pretrained_from_hf(name.removeprefix("hf-hub:"))
    elif pretrained and Path(pretrained).is_file():
        file = pretrained
    else:
        file = open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained))
    if not file:
        raise UserError(f"encoder {source!r} cannot be loaded: there are no weights (open_clip_model.safetensors)")
    if not file.endswith(".safetensors"):
        raise UserError(
            f"encoder {source!r} cannot be loaded: {Path(file).name} is pickled, and only .safetensors is read; "
            "write its tensors again with safetensors.torch.save_file"
        )


def _resolve(source: str) -> tuple[str, str | None, bool]:
    """Returns open_clip's model name, the pretrained tag, and whether the tag's weights want QuickGELU."""
    if source == "world:encoder":
        return f"local-dir:{WEIGHTS / 'encoder'}", None, False
    if source.startswith("hf-hub:"):
        return source, None, False
    if Path(source).is_dir():
        return f"local-dir:{source}", None, False
    architecture, slash, tag = source.partition("/")
    if slash and architecture in open_clip.list_models() and Path(tag).is_file():
        return architecture, tag, False  # the architectures whose names end in -quickgelu have that activation
    if slash and architecture in open_clip.list_models():
        known = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in known:
            some = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
            raise UserError(f"encoder {source!r}: {architecture} has no weights {tag!r}; there are {some}")
        return architecture, tag, bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    raise UserError(
        f"encoder {source!r}: neither a folder nor a known name; "
        "give world:encoder, a folder, hf-hub:<name> or <architecture>/<pretrained>, such as ViT-L-14/openai"
    )
