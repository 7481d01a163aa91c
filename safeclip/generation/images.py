"""Pictures travel encoded; this encodes, decodes and checks them."""

import io
import warnings

import numpy as np
from PIL import Image

from safeclip.records import MOST_STRETCHED

FORMATS = ("JPEG", "PNG", "WEBP")
MISSING, UNREADABLE, UNDECODABLE, FORMAT, STRETCHED = (
    "picture missing",
    "picture cannot be read",
    "picture does not decode",
    f"picture is no {', '.join(FORMATS)}",
    f"picture is more than {MOST_STRETCHED} times as long as wide",
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
    except Exception as error:  # no list would be complete: each of Pillow's readers has failures of its own
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
            kind, size = image.format, image.size
        decode(data)
    except Exception:  # as in `decode`
        return UNDECODABLE
    if kind not in FORMATS:
        return FORMAT
    return STRETCHED if max(size) > MOST_STRETCHED * min(size) else None
