"""What requests and answers look like, and the limits of a request."""

import base64
import binascii
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MAX_ITEMS = 64  # texts or pictures a request
MAX_TEXT = 2000  # characters
MAX_IMAGE_BYTES = 8 * 2**20
MAX_IMAGE_PIXELS = 40_000_000
MAX_BODY_BYTES = 32 * 2**20
MAX_TEXTS_BYTES = 2 * 2**20  # of a body of texts: the JSON of a character takes at most 12 bytes

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=r"\S")]


class Strict(BaseModel):
    """A body that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid")


class Texts(Strict):
    """Texts to embed."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_ITEMS, examples=[["a dog on a sofa"]])


class Images(Strict):
    """Pictures to embed."""

    images: list[bytes] = Field(
        min_length=1, max_length=MAX_ITEMS, description="Each a WebP, JPEG or PNG file in base64."
    )

    @field_validator("images", mode="before")
    @classmethod
    def _decode(cls, images: object) -> object:
        if not isinstance(images, list):
            return images
        return [_from_base64(each, i) for i, each in enumerate(images)]


def _from_base64(text: object, index: int) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"picture {index + 1} must be a string: the picture's file in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"picture {index + 1} is no base64; send the file's bytes, without a data: prefix"
        ) from error


class Embeddings(BaseModel):
    """Embeddings of unit length, in the order of the request."""

    embeddings: list[list[float]]
    model: str = Field(description="The run whose encoder made them.")


class Model(BaseModel):
    """What answers."""

    run: str
    base: str = Field(description="The encoder that was made safe.")
    objective: str
    width: int = Field(description="Numbers in an embedding.")
    image_size: list[int] = Field(description="Height and width that pictures are resized to.")
    key: str = Field(description="Hash of what the encoder was trained from.")


class Health(BaseModel):
    """Whether the replica that was asked can answer."""

    status: str


class Problem(BaseModel):
    """Why a request was refused, and what would be right."""

    detail: str
