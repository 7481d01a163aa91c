"""The safe encoder as a replica runs it: loaded from a run, with requests batched over all callers."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from open_clip import SimpleTokenizer
from ray import serve

from safeclip.artifacts import Folder
from safeclip.config import Serve
from safeclip.encoder.load import load_from
from safeclip.encoder.model import decode_image
from safeclip.generation.images import FORMATS
from serve.schemas import MAX_IMAGE_PIXELS
from serve.tokenizer import QuickTokenizer


class BatchedEncoder:
    """An encoder whose requests wait for each other, for a moment, and then pass through it together."""

    def __init__(self, run: Folder, settings: Serve):
        """Loads the encoder."""
        self.encoder = load_from(run / "encoder" / "open_clip", "cuda" if settings.gpus else "cpu")
        if isinstance(self.encoder.tokenizer, SimpleTokenizer):
            self.encoder.tokenizer = QuickTokenizer(self.encoder.tokenizer)
        # Apart from pictures, which take longer; one thread, since transformers' tokenizers refuse a second.
        self.tokenizing = ThreadPoolExecutor(1)
        self.probe = self.encoder.tokenizer(["a picture"])
        # A decoded picture may take 160 MB, so no more of them than CPUs are in memory at once.
        self.decoders = ThreadPoolExecutor(max(1, int(settings.cpus)))
        for method in (self._embed_tokens, self._embed_pixels):
            method.set_max_batch_size(settings.max_batch)
            method.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    async def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Returns embeddings (n, d) of a request's texts."""
        tokens = await asyncio.get_running_loop().run_in_executor(self.tokenizing, self.encoder.tokenizer, texts)
        return await self._embed_tokens(tokens)

    async def embed_images(self, images: list[bytes]) -> np.ndarray:
        """Returns embeddings (n, d) of a request's encoded pictures.

        Raises:
            UserError: a picture does not decode or is too large; other requests do not notice.
        """
        run = asyncio.get_running_loop().run_in_executor
        # A request has one picture at a time with the decoders: 64 of the largest take half a minute, in which others
        # get their turn, and which ends when the caller has gone.
        pixels = [await run(self.decoders, self._pixels_of, data, i) for i, data in enumerate(images, 1)]
        return await self._embed_pixels(np.stack(pixels))

    def check(self) -> None:
        """Raises RuntimeError when the encoder no longer gives embeddings of unit length."""
        norm = float(np.linalg.norm(self.encoder.encode_tokens(self.probe)))
        if not abs(norm - 1) < 1e-3:
            raise RuntimeError(f"the encoder gives embeddings of length {norm}")

    def _pixels_of(self, data: bytes, number: int) -> np.ndarray:
        return self.encoder.resize_image(decode_image(data, f"picture {number}", FORMATS, MAX_IMAGE_PIXELS))

    @serve.batch
    async def _embed_tokens(self, requests: list[torch.Tensor]) -> list[np.ndarray]:
        return _split(await asyncio.to_thread(self.encoder.encode_tokens, torch.cat(requests)), requests)

    @serve.batch
    async def _embed_pixels(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        return _split(await asyncio.to_thread(self.encoder.encode_pixels, np.concatenate(requests)), requests)


def _split(embeddings: np.ndarray, requests: list) -> list[np.ndarray]:
    return np.split(embeddings, np.cumsum([len(request) for request in requests])[:-1])
