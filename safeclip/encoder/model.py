"""The encoder, any open_clip CLIP: embeddings of texts and encoded pictures.

The preprocessing of pictures comes in two halves: `resize_image` gives uint8 pixels, which are small enough to keep,
and `normalize_pixels` makes of them what the image tower takes.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import Compose

from safeclip.errors import UserError
from safeclip.records import DEEP_MODES, MOST_STRETCHED

ENCODE_BATCH = 128  # rows that pass through a tower at once


def decode_image(
    data: bytes, name: str = "picture", formats: Sequence[str] | None = None, most_pixels: int | None = None
) -> Image.Image:
    """Returns an encoded picture (WebP, JPEG, PNG) as RGB.

    Args:
        data: the picture's file.
        name: of the picture, in messages.
        formats: Pillow's names of those that are read; all that Pillow reads unless given.
        most_pixels: how many it may have; as many as Pillow reads unless given.

    Raises:
        UserError: the bytes are no picture, a broken one, one too large, too narrow to be resized, or of more than
            8 bits a colour; the message starts with `name`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        width, height = image.size
        if most_pixels is not None and width * height > most_pixels:
            raise UserError(f"{name} has {width}×{height} pixels; it may have at most {most_pixels:,}")
        if max(width, height) > MOST_STRETCHED * min(width, height):
            raise UserError(
                f"{name} is {width}×{height}; its longer side may be at most {MOST_STRETCHED} times its shorter one"
            )
        if image.mode in DEEP_MODES:
            raise UserError(f"{name} has more than 8 bits a colour; convert it first")
        return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # no list would be complete: each of Pillow's readers has failures of its own
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{name} does not decode as an image ({reason})") from error


def trim_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """Returns tokens (B, L) without the columns behind every row's end, which is the largest token of a row.

    What is zero need not be padding: zero is also the token of a "!" with more behind it.
    """
    return tokens[:, : int(tokens.argmax(1).max()) + 1] if len(tokens) else tokens


def encode_tokens(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Returns text embeddings (B, d) of unit length.

    A causal tower that pools at the end token gives the same embedding without the padding behind it, so the padding
    that all rows share is cut off first; any other tower sees all tokens.
    """
    if not is_causal(model):
        return model.encode_text(tokens, normalize=True)
    tokens = trim_tokens(tokens)
    return pool_states(model, text_states(model, tokens), tokens)


def text_states(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Returns a causal tower's states (B, L, w) at each of tokens (B, L), which a text-to-image model reads."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    return model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length].to(x.dtype)))


def pool_states(model: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the embeddings (B, d), of unit length, that a causal tower makes of its states (B, L, w)."""
    pooled = states[torch.arange(len(states), device=states.device), tokens.argmax(1)]
    projection = model.text_projection
    projected = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return F.normalize(projected, dim=-1)


def is_causal(model: Any) -> bool:
    """Returns whether an encoder's text tower is causal and pools at the end token."""
    causal = isinstance(model, open_clip.CLIP) and model.attn_mask is not None
    return causal and model.text_pool_type == "argmax" and model.text_projection is not None


@dataclass
class Encoder:
    """A CLIP in evaluation mode, with what belongs to it."""

    model: torch.nn.Module
    """The `open_clip.CLIP`."""
    tokenizer: Callable[[list[str]], torch.Tensor]
    """Texts to tokens (n, L), int64, padded with zeros."""
    preprocess: Compose
    """A picture to float32 pixels (3, H, W), resized and normalised."""
    config: dict[str, Any]
    """open_clip's `model_cfg` and `preprocess_cfg`, from which the same encoder can be built."""
    device: str = "cpu"

    def resize_image(self, image: Image.Image) -> np.ndarray:
        """Returns a picture at the encoder's size: uint8 of shape (3, H, W)."""
        for transform in self.preprocess.transforms[:-2]:  # all but "to a tensor" and "normalise"
            image = transform(image)
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Of a resized picture, (3, H, W)."""
        height, width = self.config["preprocess_cfg"]["size"]
        return 3, height, width

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns uint8 pixels (B, 3, H, W) as the image tower takes them, float32."""
        config = self.config["preprocess_cfg"]
        mean, std = (torch.tensor(config[k], device=pixels.device).view(1, 3, 1, 1) for k in ("mean", "std"))
        return (pixels.float() / 255 - mean) / std

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns text embeddings (n, d), float32 of unit length."""
        if not len(texts):
            return np.zeros((0, self.width), np.float32)
        return self.encode_tokens(self.tokenizer(list(texts)))

    @torch.no_grad()
    def encode_tokens(self, tokens: torch.Tensor) -> np.ndarray:
        """Returns embeddings (n, d) of texts as tokens (n, L), at least one, float32 of unit length."""
        parts = (encode_tokens(self.model, part.to(self.device)) for part in tokens.split(ENCODE_BATCH))
        return np.concatenate([part.float().cpu().numpy() for part in parts])

    @torch.no_grad()
    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Returns embeddings (n, d) of resized pictures, uint8 (n, 3, H, W), float32 of unit length."""
        parts = []
        for start in range(0, len(pixels), ENCODE_BATCH):
            some = torch.from_numpy(pixels[start : start + ENCODE_BATCH]).to(self.device)
            parts.append(self.model.encode_image(self.normalize_pixels(some), normalize=True).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Returns embeddings (n, d) of encoded pictures, float32 of unit length.

        Raises:
            UserError: a picture does not decode; the message tells which.
        """
        decoded = (decode_image(data, f"picture {i} of {len(images)}") for i, data in enumerate(images, 1))
        pixels = [self.resize_image(image) for image in decoded]
        return self.encode_pixels(np.stack(pixels)) if pixels else np.zeros((0, self.width), np.float32)

    @property
    def width(self) -> int:
        """The embeddings' size, d."""
        return int(self.config["model_cfg"]["embed_dim"])
