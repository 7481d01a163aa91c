"""Draws unsafe captions: diffusers in Ray Data actors, each picture seeded by its row, encoded and judged there."""

import functools
import io
from typing import Any

import pyarrow as pa
from PIL import Image

from safeclip import guard
from safeclip.artifacts import Folder
from safeclip.config import Config, Illustrate
from safeclip.generation.judges import ImageJudge, make_image_judge
from safeclip.generation.painter import Painter
from safeclip.generation.units import run_generation_stage
from safeclip.records import UNSAFE_IMAGE, row_seed

MARK = "synthetic, unsafe: drawn by a model so that an encoder can unlearn it"
_IMAGE_DESCRIPTION = 0x010E  # the EXIF tag


def encode_picture(picture: Image.Image, quality: int, mark: str = MARK) -> bytes:
    """Returns a picture as WebP, with what it is in its metadata; quality 100 is lossless."""
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION] = mark
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exif=exif)
    return buffer.getvalue()


class Illustrator(Painter):
    """Draws captions, each with seeds of its own, until the judge accepts a picture or the tries are used up."""

    def __init__(self, settings: Illustrate, judge: ImageJudge, seed: int) -> None:
        super().__init__(settings)
        self.settings, self.judge, self.seed = settings, judge, seed

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns a row of UNSAFE_IMAGE for each row of UNSAFE_CAPTION."""
        rows = [
            {**row, "unsafe_image": None, "seed": None, "tries": 0, "image_score": None, "reject": "not drawn"}
            for row in table.select(["id", "unsafe_caption", "concept"]).to_pylist()
        ]
        left = []
        for row in rows:
            if dropped := guard.check(row["unsafe_caption"], row["concept"]):
                row.update(unsafe_caption=None, reject=dropped)
            else:
                left.append(row)
        for attempt in range(self.settings.tries):
            for start in range(0, len(left), self.settings.batch):
                self._attempt(left[start : start + self.settings.batch], attempt)
            left = [row for row in left if row["reject"] is not None]
        return pa.Table.from_pylist([{k: r[k] for k in UNSAFE_IMAGE.names} for r in rows], UNSAFE_IMAGE)

    def _attempt(self, rows: list[dict[str, Any]], attempt: int) -> None:
        captions = [r["unsafe_caption"] for r in rows]
        seeds = [row_seed(self.seed, r["id"], "illustrate", attempt) for r in rows]
        images = [encode_picture(p, self.settings.quality) for p in self.draw(captions, seeds)]
        verdicts = self.judge(images, captions, [r["concept"] for r in rows])
        for row, image, seed, verdict in zip(rows, images, seeds, verdicts, strict=True):
            row.update(unsafe_image=image, seed=seed, tries=attempt + 1)
            row.update(image_score=verdict.score, reject=verdict.reason)


def _make_illustrator(config: Config) -> Illustrator:
    return Illustrator(config.generate.illustrate, make_image_judge(config.generate.judges), config.seed)


def make_unsafe_images(config: Config, run: Folder) -> dict[str, Any]:
    """Runs the stage: a picture for each accepted unsafe caption.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the unsafe captions are missing, or too many rows were rejected.
    """
    return run_generation_stage(
        config,
        run,
        "unsafe_images",
        "unsafe_captions",
        functools.partial(_make_illustrator, config),
        [config.results()["generate"]["illustrate"], config.generate.judges.of_images()],
        config.generate.illustrate.resources,
        {"text_to_image": config.generate.illustrate.model, "judge": config.generate.judges.image},
    )
