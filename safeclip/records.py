"""The rows of the flow, and their Arrow schemas.

A row keeps its `id` through every stage. A stage writes every row that it was given: an accepted one with `reject`
empty, a rejected one with the reason there. The text of a row that the guard dropped is not kept.
"""

import hashlib

import pyarrow as pa

SPLITS = ("train", "validation", "test")
DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's, whose conversion to RGB cuts values off
MOST_STRETCHED = 100  # a picture's longer side over its shorter one, which encoders enlarge to their size

CAPTION = pa.schema([
    ("id", pa.string()),  # hash of source caption and concept
    ("concept", pa.string()),  # the unsafe concept to ask for
    ("safe_caption", pa.string()),
    ("safe_image", pa.binary()),  # encoded picture (WebP, JPEG or PNG)
    ("reject", pa.string()),  # why the row was rejected; null for an accepted one
])  # fmt: skip

UNSAFE_CAPTION = pa.schema([
    ("id", pa.string()),
    ("concept", pa.string()),
    ("safe_caption", pa.string()),
    ("unsafe_caption", pa.string()),
    ("candidates", pa.int32()),  # how many the LLM was asked for
    ("text_score", pa.float32()),  # the judge's, in [0, 1]
    ("reject", pa.string()),
])  # fmt: skip

UNSAFE_IMAGE = pa.schema([
    ("id", pa.string()),
    ("unsafe_caption", pa.string()),
    ("unsafe_image", pa.binary()),
    ("seed", pa.int64()),  # of the diffusion noise of the picture kept
    ("tries", pa.int32()),  # pictures drawn
    ("image_score", pa.float32()),  # the judge's, in [0, 1]
    ("reject", pa.string()),
])  # fmt: skip

QUADRUPLET = pa.schema([
    ("id", pa.string()),
    ("concept", pa.string()),
    ("safe_caption", pa.string()),
    ("safe_image", pa.binary()),
    ("unsafe_caption", pa.string()),
    ("unsafe_image", pa.binary()),
    ("text_score", pa.float32()),
    ("image_score", pa.float32()),
    ("split", pa.string()),  # one of SPLITS, by the seed and the id of the first row with this safe picture
])  # fmt: skip


def row_id(caption: str, concept: str) -> str:
    """Returns the id of a source caption and a concept: 16 hexadecimal digits."""
    return hashlib.sha256(f"{caption}\0{concept}".encode()).hexdigest()[:16]


def row_seed(*words: object) -> int:
    """Returns a 31-bit seed that depends on these words only, such as a run's seed, a row's id and a purpose."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, words)).encode()).digest()[:4], "big") >> 1


def row_share(*words: object) -> float:
    """Returns a number in [0, 1), uniform over ids, that depends on these words only."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, words)).encode()).digest()[:8], "big") / 2**64
