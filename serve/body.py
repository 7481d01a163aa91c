"""Reads the bodies of requests, from anybody: what refuses one costs no more than what takes one."""

import asyncio
import codecs
from typing import TypeVar

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.schemas import MAX_IMAGE_BYTES, MAX_ITEMS, Images, Texts

PATIENCE_S = 10.0
SLOWEST = 64 * 2**10  # bytes a second, of a body
_MOST_MARKS = 4 * MAX_ITEMS  # a right body has at most 2 + 2 * MAX_ITEMS
_NO_MARKS = bytes(set(range(256)) - set(b'[{,"'))
_NAMED = 3  # mistakes in an answer
_SHOWN = 40  # characters of a key that is one
_Body = TypeVar("_Body", bound=BaseModel)


class LimitBody:
    """Refuses bodies of more bytes than `limit`, by their announced or their real size, and those that are slow.

    `limits` holds other limits, by how the path ends. A body may take `patience` seconds and one more for each
    SLOWEST of its bytes: a request that waits for its body is one of the few that a replica works on.
    """

    def __init__(self, app: ASGIApp, limit: int, limits: dict[str, int], patience: float = PATIENCE_S):
        self.app, self.limit, self.limits, self.patience = app, limit, limits, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and raises while its body is read where that is too long or too slow."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = next((value for end, value in self.limits.items() if scope["path"].endswith(end)), self.limit)
        refusal = {"detail": f"the body is too large; send at most {limit // 2**20} MiB, in several requests"}
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            await JSONResponse(refusal, 413)(scope, receive, send)
            return
        began = asyncio.get_running_loop().time()
        read, whole = 0, False

        async def count() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()  # which waits until the caller has gone
            try:
                async with asyncio.timeout_at(began + self.patience + read / SLOWEST):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly; send it again, in smaller requests") from None
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "the caller went before the body was whole")
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if read > limit:
                raise HTTPException(413, refusal["detail"])
            return message

        await self.app(scope, count, send)


async def read_texts(request: Request) -> list[str]:
    """Returns the texts of a request.

    Raises:
        HTTPException: 400 for what is no JSON, 422 for JSON that is not as it ought to be.
    """
    if not _is_json(_kind(request)):
        raise HTTPException(400, "send application/json, and say so in content-type")
    return parse(await request.body(), Texts).texts


async def read_images(request: Request) -> list[bytes]:
    """Returns the encoded pictures of a request, from base64 in JSON or from the files of a form.

    Raises:
        HTTPException: 400 for neither of both, 413 for too large a picture, 422 for JSON or a form that is not as it
            ought to be.
    """
    kind = _kind(request)
    if _is_json(kind):
        images = parse(await request.body(), Images).images
    elif kind == "multipart/form-data":
        async with request.form(max_files=MAX_ITEMS) as form:
            files = form.getlist("images")
            if not files or any(isinstance(each, str) for each in files) or set(form) != {"images"}:
                raise HTTPException(422, "images: send each picture as a file in a field named images")
            images = [await each.read() for each in files if not isinstance(each, str)]
    else:
        raise HTTPException(400, "send application/json or multipart/form-data, and say which in content-type")
    for i, image in enumerate(images):
        if len(image) > MAX_IMAGE_BYTES:
            raise HTTPException(
                413, f"picture {i + 1} is too large; send at most {MAX_IMAGE_BYTES // 2**20} MiB each"
            )
    return images


def parse(body: bytes, kind: type[_Body]) -> _Body:
    """Returns a body of JSON, read.

    Values are counted before they are made: as Python's objects, 32 MiB of empty lists are four GB.

    Raises:
        HTTPException: 400 for what is no JSON, 422 for JSON that is not as it ought to be. Neither repeats
            values.
    """
    if _holds_more_marks(body, _MOST_MARKS):
        (field,) = kind.model_fields
        raise HTTPException(422, f'body: send {{"{field}": [...]}} with at most {MAX_ITEMS} items, and nothing else')
    try:
        return kind.model_validate_json(body.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        malformed = found[0]["type"] == "json_invalid"
        raise HTTPException(400 if malformed else 422, "; ".join(map(_reason, found[:_NAMED]))) from None


def _holds_more_marks(body: bytes, most: int) -> bool:
    """Returns whether JSON has more than `most` strings and, outside of them, brackets that open and commas."""
    if b"\\" in body:  # many times as quick as to replace none
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    marks = body.translate(None, _NO_MARKS)
    return marks.count(b'"') > 2 * most or marks.count(b'"') // 2 + sum(map(len, marks.split(b'"')[::2])) > most


def _reason(error: ErrorDetails) -> str:
    place = ".".join(str(part)[:_SHOWN] for part in error["loc"]) or "body"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
