"""The encoder of a replica, without the endpoint around it."""

import asyncio
import io
import resource

import pytest
from PIL import Image
from ray import serve

from safeclip.artifacts import Folder
from safeclip.config import Serve
from safeclip.encoder.model import ENCODE_BATCH
from serve.encoder import BatchedEncoder


class Probe:
    """Asks the encoder from within its replica."""

    def __init__(self, run: Folder):
        self.encoder = BatchedEncoder(run, Serve(batch_wait_ms=2000, max_batch=3))
        self.passed = []
        tower = self.encoder.encoder.model.visual
        tower.register_forward_hook(lambda _, given, __: self.passed.append(len(given[0])))

    async def ask(self, *requests: list[bytes]) -> tuple[list[int], list[int], int]:
        """Returns how many embeddings came back and how many passed the tower at once; the memory's growth, MiB."""
        self.passed.clear()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = await asyncio.gather(*map(self.encoder.embed_images, requests))
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        return [len(embeddings) for embeddings in found], self.passed, growth

    async def first(self, *requests: list[bytes]) -> list[bool]:
        """Returns which requests have an answer or a refusal when the first has one."""
        asked = [asyncio.create_task(self.encoder.embed_images(images)) for images in requests]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        answered = [each.done() for each in asked]
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return answered

    async def keep(self, texts: list[str]) -> int:
        """Returns how many words the tokenizer kept of texts that it embedded."""
        before = len(self.encoder.encoder.tokenizer.cache)
        await self.encoder.embed_texts(texts)
        return len(self.encoder.encoder.tokenizer.cache) - before


@pytest.fixture(scope="module")
def probe(endpoint, storage):
    deployment = serve.deployment(ray_actor_options={"num_cpus": 0})(Probe)
    yield serve.run(deployment.bind(Folder(str(storage / "demo"))), name="probe", route_prefix=None)
    serve.delete("probe")


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


def test_a_batch_of_large_requests_passes_through_the_tower_in_parts(probe):
    requests = [[png((64, 64))] * count for count in (64, 60, 62)]
    lengths, passed, _ = probe.ask.remote(*requests).result()
    assert lengths == [64, 60, 62]
    assert passed == [ENCODE_BATCH, sum(lengths) - ENCODE_BATCH]


def test_large_pictures_are_in_memory_one_at_a_time(probe):
    large = png((5000, 4000))  # 76 MiB as RGB, as Pillow holds it
    probe.ask.remote([png((64, 64))] * 10).result()
    lengths, _, growth = probe.ask.remote([large] * 10).result()
    assert lengths == [10]
    assert growth < 250
    lengths, _, growth = probe.ask.remote(*[[large]] * 9).result()
    assert lengths == [1] * 9
    assert growth < 100


def test_a_request_of_many_large_pictures_does_not_hold_up_others(probe):
    refused = [b"no picture"]  # at once, where a picture would wait for others to fill its batch
    assert probe.first.remote([png((5000, 4000))] * 8 + refused, refused).result() == [False, True]


def test_no_word_of_a_text_is_kept(probe):
    assert probe.keep.remote(["a dog next to a car", "two unmistakable trees"]).result() == 0
