"""Trains the world's models: ``python -m safeclip.world.train [encoder|judge|vae|unet|captioner …]``.

Each part trains by itself in the order above (the UNet reads the encoder's text tower and the VAE, the captioner's
projector the encoder's image tower). The batch of a step is a function of the step's number, and a checkpoint is kept
every few steps, so a training that was cut off goes on as if nothing had happened. Finished weights go to
``safeclip/world/weights/`` in fp16. A GPU is used where there is one, but not for the captioner.
"""

import argparse
import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from safeclip.encoder.model import encode_tokens, text_states
from safeclip.encoder.states import fill_with_end
from safeclip.world import WEIGHTS, models
from safeclip.world.captioner import make_captioner_loss, scene_pixels, start_projector
from safeclip.world.scenes import IMAGE_SIZE, Scene, caption, loose_caption, object_names, sample_scenes

SEED = 20240929
CHECKPOINT_EVERY = 25  # steps; a line is printed as often
START_SCENES = 20000  # that the captioner's projector starts from
VAE_ROWS = 40  # of a picture's 64, in a step of the autoencoder
EMPTY_TEXTS = 0.1  # share of the UNet's texts left empty, so that guidance can be used (Ho & Salimans, 2022)


@dataclass(frozen=True)
class Part:
    """One model and how it is trained."""

    steps: int
    batch: int
    rate: float
    build: Callable[[], nn.Module]
    make_loss: Callable[[], Callable[[nn.Module, dict, torch.Generator], torch.Tensor]]
    average: float = 0.0  # decay of the moving average that is kept instead of the last weights; 0 keeps the last
    say: Callable[[Scene], str] = caption
    on_gpu: bool = True


def training_scenes(n: int, seed: int) -> list[Scene]:
    """Draws scenes as the base models see them: half with an unsafe object, some of one object.

    None of two objects is reserved; those of one object are drawn from all.
    """
    safe, unsafe = object_names(safe=True), object_names(safe=False)
    single = [Scene((s.objects[0],), s.background, s.seed) for s in sample_scenes(n // 10, seed, safe + unsafe)]
    half = (n - len(single)) // 2
    mixed = sample_scenes(n - len(single) - half, seed + 2, safe, unsafe, reserved=False)
    return single + sample_scenes(half, seed + 1, safe, reserved=False) + mixed


class SceneBatches(Dataset):
    """Batch number `step` of a training: pictures, captions, their tokens, and which objects are shown."""

    def __init__(self, start: int, stop: int, batch: int, say: Callable[[Scene], str] = caption) -> None:
        self.start, self.stop, self.batch, self.say = start, stop, batch, say
        self.tokenize = open_clip.SimpleTokenizer(context_length=models.CONTEXT_LENGTH)
        self.index = {name: i for i, name in enumerate(object_names())}

    def __len__(self) -> int:
        """Returns how many steps are left."""
        return self.stop - self.start

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Returns scenes, pixels (B, 3, 64, 64) in [-1, 1], tokens (B, 32), objects (B, n_objects) of 0 and 1."""
        scenes = training_scenes(self.batch, SEED + 10 * (self.start + item))
        objects = torch.zeros(len(scenes), len(self.index))
        for row, scene in zip(objects, scenes, strict=True):
            row[[self.index[name] for name in scene.objects]] = 1
        tokens = self.tokenize([self.say(s) for s in scenes])
        return {"scenes": scenes, "pixels": scene_pixels(scenes), "tokens": tokens, "objects": objects}


def make_encoder_loss() -> Callable:
    """CLIP's symmetric cross-entropy (Radford et al., 2021)."""
    clip_loss = open_clip.ClipLoss()

    def loss(model: nn.Module, batch: dict, random: torch.Generator) -> torch.Tensor:
        image = model.encode_image(models.encoder_pixels(batch["pixels"]), normalize=True)
        text = encode_tokens(model, batch["tokens"])
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return clip_loss(image.float(), text.float(), model.logit_scale.exp())

    return loss


def make_judge_loss() -> Callable:
    """Cross-entropy of each object's presence, on pictures blurred and noised as a generator's are."""

    def loss(model: nn.Module, batch: dict, random: torch.Generator) -> torch.Tensor:
        pixels = batch["pixels"]
        n = len(pixels)
        small = F.interpolate(pixels[: n // 3], size=40, mode="bilinear", antialias=True)
        soft = F.interpolate(small, size=IMAGE_SIZE, mode="bilinear")
        pixels = torch.cat([soft, pixels[n // 3 :]])
        noise = torch.rand(n, 1, 1, 1, generator=random) * 0.15
        pixels = pixels + (noise * torch.randn(pixels.shape, generator=random)).to(pixels.device)
        logits = model(pixels.contiguous(memory_format=torch.channels_last)).float()
        return F.binary_cross_entropy_with_logits(logits, batch["objects"]) * len(batch["objects"][0])

    return loss


def make_vae_loss() -> Callable:
    """Squared error, objects counting more than the flat background, and the absolute error of edges."""

    def loss(model: nn.Module, batch: dict, random: torch.Generator) -> torch.Tensor:
        pixels = batch["pixels"]
        inked = (pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1
        top = int(torch.randint(IMAGE_SIZE - VAE_ROWS + 1, (), generator=random))
        band = slice(top, top + VAE_ROWS)  # a band of rows is enough for a convolutional model, and cheaper
        pixels, inked = pixels[:, :, band].contiguous(memory_format=torch.channels_last), inked[:, :, band]
        weight = 1 + 6 * inked.float()
        out = model.decoder(model.encoder(pixels)).float()
        edges = sum((out.diff(dim=d) - pixels.diff(dim=d)).abs().mean() for d in (2, 3))
        return 5 * (weight / weight.mean() * (out - pixels).square()).mean() + 0.5 * edges

    return loss


def make_unet_loss() -> Callable:
    """Mean squared error of v (Salimans & Ho, 2022), the latents and texts coming from the finished parts."""
    encoder = models.load_weights(models.build_encoder(), WEIGHTS / "encoder" / "open_clip_model.safetensors")
    vae = models.load_weights(models.build_vae(), WEIGHTS / "vae.safetensors")
    scale = latent_scale(vae)
    encoder, vae = encoder.to(device_of(True)), vae.to(device_of(True))
    alphas: torch.Tensor = getattr(models.noise_scheduler(), "alphas_cumprod")  # noqa: B009  (set at run time)
    nothing = fill_with_end(open_clip.SimpleTokenizer(context_length=models.CONTEXT_LENGTH)([""]))

    def loss(model: nn.Module, batch: dict, random: torch.Generator) -> torch.Tensor:
        device = batch["pixels"].device
        with torch.no_grad():
            latents = vae.encode(batch["pixels"]).latents.float() * scale
            tokens = fill_with_end(batch["tokens"])
            unsaid = torch.rand(len(tokens), generator=random) < EMPTY_TEXTS
            tokens = torch.where(unsaid[:, None].to(device), nothing.to(device), tokens)
            states = text_states(encoder, tokens).float()
        steps = torch.randint(len(alphas), (len(latents),), generator=random)
        alpha = alphas[steps].view(-1, 1, 1, 1).to(device)
        noise, steps = torch.randn(latents.shape, generator=random).to(device), steps.to(device)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return F.mse_loss(model(noisy, steps, encoder_hidden_states=states).sample.float(), target)

    return loss


@torch.no_grad()
def latent_scale(vae: nn.Module) -> float:
    """One over the standard deviation of the latents, which a pipeline knows as `scaling_factor`."""
    pixels = SceneBatches(-1, 0, 128)[0]["pixels"]
    return round(1 / float(vae.encode(pixels).latents.std()), 4)


def build_started_projector() -> nn.Module:
    """Returns the captioner's projector as its training starts from it."""
    return start_projector(training_scenes(START_SCENES, SEED - 10), SEED)


PARTS = {
    "encoder": Part(3000, 256, 1e-3, models.build_encoder, make_encoder_loss, say=loose_caption),
    "judge": Part(2000, 128, 2e-3, models.build_judge, make_judge_loss),
    "vae": Part(2700, 32, 1e-3, models.build_vae, make_vae_loss, average=0.99),
    "unet": Part(4200, 128, 8e-4, models.build_unet, make_unet_loss, average=0.998),
    "captioner": Part(500, 16, 1e-3, build_started_projector, make_captioner_loss, on_gpu=False),
}


def device_of(on_gpu: bool) -> torch.device:
    """Returns where a part is trained: on the GPU if it may be and there is one."""
    return torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")


def learning_rate(step: int, part: Part) -> float:
    """A short linear warm-up, then a cosine to zero."""
    warm = min(200, part.steps // 10 + 1)
    if step < warm:
        return part.rate * (step + 1) / warm
    return part.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, part.steps - warm)))


def train(name: str, part: Part, folder: Path) -> nn.Module:
    """Trains one part, from its last checkpoint if there is one.

    Args:
        name: the part's name, for checkpoints and messages.
        part: what to train and how.
        folder: where checkpoints lie.

    Returns:
        The trained model, in evaluation mode.
    """
    torch.manual_seed(SEED)
    device = device_of(part.on_gpu)
    model = part.build().to(device).train()
    averaged = copy.deepcopy(model).eval() if part.average else model
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    checkpoint, start = folder / f"{name}.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    loss_of = part.make_loss()
    model.to(memory_format=torch.channels_last)
    seconds, began = 0.0, time.monotonic()
    for step, batch in enumerate(batches(start, part), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, part)
        random = torch.Generator().manual_seed(SEED + step)
        batch |= {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_of(model, batch, random)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if part.average:
            decay = min(part.average, (step + 1) / (step + 10))
            with torch.no_grad():
                for kept, new in zip(averaged.parameters(), model.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            print(
                f"{name} {step + 1:5d}/{part.steps} loss {loss.item():8.4f} grad {norm:7.3f} {seconds:5.2f} s/step",
                flush=True,
            )
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == part.steps:
            save_checkpoint(checkpoint, model, averaged, optimizer, step + 1)
    return averaged.cpu().eval()


def save_checkpoint(path: Path, model: nn.Module, averaged: nn.Module, optimizer: object, step: int) -> None:
    """Writes a checkpoint beside the old one and swaps them, so that a cut-off leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "averaged": averaged.state_dict(), "step": step}
    state["optimizer"] = optimizer.state_dict()  # type: ignore[attr-defined]
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def batches(start: int, part: Part) -> Iterator[dict]:
    """The batches from step `start` on, drawn by other processes while this one trains."""
    drawn = SceneBatches(start, part.steps, part.batch, part.say)
    return iter(DataLoader(drawn, batch_size=None, num_workers=max(1, (os.cpu_count() or 1) - 1)))


def export(name: str, model: nn.Module) -> Path:
    """Writes a finished part's weights to where `safeclip.world.models` finds them."""
    if name == "encoder":
        models.save_encoder(model, WEIGHTS / "encoder")
        return WEIGHTS / "encoder"
    path = WEIGHTS / f"{name}.safetensors"
    models.save_half(model, path)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Trains the parts named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; all unless named")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/world"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in PARTS:
        if not options.parts or name in options.parts:
            print(f"{name}: written to {export(name, train(name, PARTS[name], options.checkpoints))}")


if __name__ == "__main__":
    main()
