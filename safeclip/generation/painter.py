"""The text-to-image model, a diffusers pipeline: how it is loaded, and how it draws texts from given noise."""

from pathlib import Path
from typing import Any

from PIL import Image

from safeclip.config import Drawing
from safeclip.device import reserved_device


def load_pipeline(settings: Drawing, device: str) -> Any:
    """Returns a StableDiffusionPipeline or StableDiffusionXLPipeline.

    Args:
        settings: name it, and the dtype of its weights and activations.
        device: where it runs.

    Raises:
        UserError: nothing that can be loaded lies there.
    """
    import torch
    from diffusers import DiffusionPipeline

    from safeclip.pretrained import UNREADABLE, cannot_load, refuse_adapter

    what = f"{settings.place}.model: {settings.model}"
    if settings.model == "world:generator":
        from safeclip.world.models import build_generator

        pipeline: Any = build_generator()
    else:
        try:
            # No safety checker: what it blanks is what is asked for. The judges and the guard stand in its place.
            parts = DiffusionPipeline.load_config(settings.model)
            without = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in parts else {}
            for part in filter(Path.is_dir, (Path(settings.model, name) for name in parts)):
                refuse_adapter(str(part), what)
            pipeline = DiffusionPipeline.from_pretrained(
                settings.model, use_safetensors=True, trust_remote_code=False, **without
            )
        except UNREADABLE as error:
            raise cannot_load(what, error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, getattr(torch, settings.dtype))


class Painter:
    """Draws texts, each from noise of its own."""

    def __init__(self, settings: Drawing) -> None:
        """Loads the model.

        Args:
            settings: of the model and of how it draws.

        Raises:
            UserError: the model cannot be loaded.
        """
        self.settings: Any = settings
        self.device = reserved_device()
        self.pipeline = load_pipeline(settings, self.device)

    def draw(self, texts: list[str], seeds: list[int], guidance: float | None = None) -> list[Image.Image]:
        """Returns a picture for each text, from noise that depends on its seed only.

        Args:
            texts: what to draw.
            seeds: of the noise, one a text.
            guidance: over that of the settings.
        """
        import torch

        return self.pipeline(
            texts,
            generator=[torch.Generator(self.device).manual_seed(seed) for seed in seeds],
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance if guidance is None else guidance,
            height=self.settings.size,
            width=self.settings.size,
        ).images
