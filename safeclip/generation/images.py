"""Pictures travel encoded; this encodes, decodes and checks them."""

import io
import warnings

import numpy as np
from PIL import Image

from safeclip.records import DEEP_MODES, MOST_STRETCHED

FORMATS = ("JPEG", "PNG", "WEBP")
SEVERAL_JPEGS = "MPO"  # Pillow's name of a JPEG with another one behind it, as telephones write them
MISSING, UNREADABLE, UNDECODABLE, FORMAT, DEEP, STRETCHED = (
    "picture missing",
    "picture cannot be read",
    "picture does not decode",
    f"picture is no {', '.join(FORMATS)}",
    "picture has more than 8 bits a colour",
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


def defect(data: bytes) -> str | None:
    """Returns why these bytes cannot serve as a picture, None where they can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
    except Exception:  # no list would be complete: each of Pillow's readers has failures of its own
        return UNDECODABLE
    if image.format not in (*FORMATS, SEVERAL_JPEGS):
        return FORMAT
    if image.mode in DEEP_MODES:
        return DEEP
    return STRETCHED if max(image.size) > MOST_STRETCHED * min(image.size) else None
