"""The image-to-text model, a LLaVA: how it is loaded, and how it describes pictures."""

from typing import Any

from safeclip.config import ImageToText
from safeclip.device import reserved_device
from safeclip.encoder.model import decode_image
from safeclip.errors import UserError
from safeclip.pretrained import cannot_load, load_model, load_pretrained


def load_captioner(settings: ImageToText, device: str) -> tuple[Any, Any]:
    """Returns a LlavaForConditionalGeneration, in evaluation mode, and its processor.

    Args:
        settings: name it, and the dtype of its weights and activations.
        device: where it runs.

    Raises:
        UserError: nothing that can be loaded lies there.
    """
    import torch

    what = f"{settings.place}.model: {settings.model}"
    try:
        model, processor = _world() if settings.model == "world:captioner" else _pretrained(settings.model, what)
    except (OSError, RuntimeError) as error:  # of the world's; FileNotFoundError is an OSError
        raise cannot_load(what, error) from error
    return model.to(device, getattr(torch, settings.dtype)).eval(), processor


def _world() -> tuple[Any, Any]:
    from safeclip.world.models import build_captioner

    return build_captioner()


def _pretrained(name: str, what: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

    # Another kind of model would be loaded, too: with random weights where the names differ.
    kind = load_pretrained(AutoConfig, name, what).model_type
    if kind != "llava":
        raise UserError(f"{what} cannot be loaded: it is a {kind}, not a llava")
    return load_model(LlavaForConditionalGeneration, name, what), load_pretrained(AutoProcessor, name, what)


class Captioner:
    """Describes pictures, each in the words that are the likeliest one after the other."""

    def __init__(self, settings: ImageToText) -> None:
        """Loads the model.

        Args:
            settings: of the model and of how it writes.

        Raises:
            UserError: the model cannot be loaded.
        """
        self.settings = settings
        self.device = reserved_device()
        self.model, self.processor = load_captioner(settings, self.device)
        self.prompt = settings.prompt.replace("<image>", self.processor.image_token)

    def write(self, images: list[bytes]) -> list[str]:
        """Returns a caption for each encoded picture.

        Raises:
            UserError: a picture does not decode; the message tells which.
        """
        import torch

        pictures = [decode_image(data, f"picture {i} of {len(images)}") for i, data in enumerate(images, 1)]
        inputs = self.processor(images=pictures, text=[self.prompt] * len(pictures), return_tensors="pt")
        inputs = inputs.to(self.device, self.model.dtype)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, max_new_tokens=self.settings.max_tokens, do_sample=False, num_beams=1
            )
        written = tokens[:, inputs["input_ids"].shape[1] :]
        return [" ".join(t.split()) for t in self.processor.batch_decode(written, skip_special_tokens=True)]
