"""Pictures travel encoded; this encodes, decodes and checks them."""

import io
import struct
import warnings

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MISSING, UNREADABLE, UNDECODABLE, FORMAT = (
    "picture missing",
    "picture cannot be read",
    "picture does not decode",
    f"picture is no {', '.join(FORMATS)}",
)


def encode_webp(pixels: np.ndarray | Image.Image) -> bytes:
    """Returns a picture as lossless WebP.

    Args:
        pixels: uint8 array of shape (height, width, 3), RGB, or a PIL image.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    sink = io.BytesIO()
    image.convert("RGB").save(sink, "WEBP", lossless=True, method=4, exif=b"", xmp=b"")
    return sink.getvalue()


def decode(data: bytes) -> Image.Image:
    """Returns an encoded picture in RGB; what is transparent becomes white.

    Raises:
        ValueError: the bytes are no whole picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Warning, Image.DecompressionBombError) as error:
        raise ValueError(f"{len(data)} bytes are no whole picture: {error}") from error
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def defect(data: bytes) -> str | None:
    """Returns why these bytes cannot serve as a picture, None where they can."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
        decode(data)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return UNDECODABLE
    return None if kind in FORMATS else FORMAT
