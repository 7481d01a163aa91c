"""Bodies of JSON that cost much to read, and those that only look like it."""

import asyncio
import json
import time
import tracemalloc

import pytest
from fastapi import FastAPI, HTTPException, Request

from serve.body import LimitBody, parse
from serve.schemas import MAX_ITEMS, MAX_TEXT, MAX_TEXTS_BYTES, Images, Texts


def fill(unit: bytes, before: bytes = b'{"texts":[', after: bytes = b"1]}") -> bytes:
    """Returns the largest body of texts that consists of a unit again and again."""
    return before + unit * ((MAX_TEXTS_BYTES - len(before) - len(after)) // len(unit)) + after


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (fill(b"[", b"", b""), 422),
        (fill(b"[],", b"["), 422),
        (fill(b"[],"), 422),
        (fill(b"[],", b'{"other":['), 422),
        (fill(b"[],", b'{"a\\\\":["\\"",'), 422),  # a key that ends in a backslash, a text that is a quote
        (fill(b"[" * 100 + b"]" * 100 + b","), 422),
        (fill(b'{"a":'), 422),
        (fill(b'"texts":[],', b"{", b'"x":1}'), 422),
        (b"{" + b",".join(b'"%d":[]' % i for i in range(MAX_TEXTS_BYTES // 14)) + b"}", 422),
        (fill(b"NaN,"), 422),
        (fill(b"1"), 400),
        (fill(b'\\"', b'"', b""), 400),
        (fill(b'"', b"", b""), 422),
        (fill(b"\xff", b'"', b'"'), 400),
    ],
)
def test_no_body_costs_much(body, status):
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises(HTTPException) as refused:
        parse(body, Texts)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.status_code == status
    assert len(refused.value.detail) < 300
    assert most < 8 * MAX_TEXTS_BYTES  # as objects, up to 80 times
    assert time.process_time() - began < 0.5


def test_an_answer_names_three_mistakes_and_shortens_keys():
    unknown = {"k" * 10_000 + str(i): 1 for i in range(100)}
    with pytest.raises(HTTPException) as refused:
        parse(json.dumps(unknown).encode(), Texts)
    assert refused.value.detail.count("; ") == 2
    assert len(refused.value.detail) < 300


@pytest.mark.parametrize(
    "texts",
    [
        ['[{,"' * (MAX_TEXT // 4)] * MAX_ITEMS,
        ["\\" * MAX_TEXT] * MAX_ITEMS,
        ['\\"' * (MAX_TEXT // 2)] * MAX_ITEMS,
        ["a\\", '","\\', "[]"],
        ["\ufeff\u2028 \U0001f600"],
    ],
)
@pytest.mark.parametrize("ascii", [True, False])
def test_marks_within_texts_are_no_values(texts, ascii):
    written = json.dumps({"texts": texts}, indent=4, ensure_ascii=ascii).encode()
    for body in (written, b"\xef\xbb\xbf" + written):  # some write a byte order mark
        assert parse(body, Texts).texts == texts


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "body: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"images": ["AAAA"', 400, "body: Invalid JSON: EOF while parsing a list at line 1 column 18"),
        ('{"images": ["AAAA"]}'.encode("utf-16"), 400, "body: Invalid JSON"),
        (b"[[]]", 422, "body: Input should be an object"),
        (b"[" * 250 + b"]" * 250, 400, "body: Invalid JSON: recursion limit exceeded"),
        (b"[" * 300 + b"]" * 300, 422, 'body: send {"images": [...]} with at most 64 items, and nothing else'),
        (b'{"images": NaN}', 422, "images: Input should be a valid array"),
        (b'{"images": ["\\ud800"]}', 400, "body: Invalid JSON"),
        (b'{"images": ["data:AAAA"]}', 422, "images: picture 1 is no base64"),
    ],
)
def test_a_refusal_says_what_is_wrong(body, status, said):
    with pytest.raises(HTTPException) as refused:
        parse(body, Images)
    assert refused.value.status_code == status
    assert refused.value.detail.startswith(said)


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ({"type": "http.request", "body": b"3456", "more_body": False}, 200),
        ({"type": "http.request", "body": b"34567890", "more_body": False}, 413),
        ({"type": "http.disconnect"}, 400),
        (None, 408),
    ],
)
def test_a_body_may_be_neither_long_nor_slow_nor_end_early(then, status):
    app = FastAPI()

    @app.post("/")
    async def length(request: Request) -> int:
        length = len(await request.body())
        assert await asyncio.wait_for(request.is_disconnected(), 1) is False
        return length

    app.add_middleware(LimitBody, limit=8, limits={}, patience=0.2)
    messages, sent = [{"type": "http.request", "body": b"12", "more_body": True}, then], []

    async def receive():
        if messages and messages[0]:
            return messages.pop(0)
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
    assert sent[0]["status"] == status
    assert status != 200 or sent[1]["body"] == b"6"
