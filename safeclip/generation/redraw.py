"""Draws safe captions as the unsafe ones are drawn, so that safe pictures of a generator are known, too.

All unsafe pictures of the quadruplets are drawn, and no safe one is. An encoder that is fine-tuned on them may flee
from what a generator's pictures have in common, which does not help with unsafe pictures of other kinds.
"""

import functools
from typing import Any

import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder
from safeclip.config import Config
from safeclip.generation.illustrate import Illustrator, encode_picture
from safeclip.generation.judges import make_image_judge
from safeclip.generation.units import run_generation_stage
from safeclip.records import CAPTION, row_seed

MARK = "synthetic: drawn by a model from a safe caption"


class SafeIllustrator(Illustrator):
    """Draws safe captions, each once."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the rows of CAPTION with drawn pictures in the place of their own, some rejected by the judge."""
        rows = table.to_pylist()
        for row in rows:
            row["safe_image"] = None
            if dropped := guard.check(row["safe_caption"], row["concept"]):
                row.update(safe_caption=None, reject=dropped)
        left = [row for row in rows if row["reject"] is None]
        for start in range(0, len(left), self.settings.batch):
            self._draw(left[start : start + self.settings.batch])
        return pa.Table.from_pylist(rows, CAPTION)

    def _draw(self, rows: list[dict[str, Any]]) -> None:
        captions = [row["safe_caption"] for row in rows]
        seeds = [row_seed(self.seed, row["id"], "redraw") for row in rows]
        images = [encode_picture(p, self.settings.quality, MARK) for p in self.draw(captions, seeds)]
        verdicts = self.judge.harmless(images, captions, [row["concept"] for row in rows])
        for row, image, verdict in zip(rows, images, verdicts, strict=True):
            row.update(safe_image=image, reject=verdict.reason)


def _make(config: Config) -> SafeIllustrator:
    return SafeIllustrator(config.generate.illustrate, make_image_judge(config.generate.judges), config.seed)


def redraw(config: Config, run: Folder, name: str, previous: str, count: int) -> dict[str, Any]:
    """Runs the stage. A Ray must be running.

    Args:
        config: `generate` says who draws and who judges.
        run: where the stages lie.
        name: the stage's name.
        previous: the name of the stage whose rows of CAPTION it reads.
        count: how many of them to draw, from the start and in whole units.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the generator cannot be loaded, or too many rows were rejected.
    """
    return run_generation_stage(
        config,
        run,
        name,
        previous,
        functools.partial(_make, config),
        [config.results()["generate"]["illustrate"], config.generate.judges.of_images()],
        config.generate.illustrate.resources,
        {"text_to_image": config.generate.illustrate.model, "judge": config.generate.judges.image},
        count,
    )
