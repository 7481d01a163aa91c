"""Draws safe captions as the unsafe ones are drawn, so that safe pictures of a generator are known, too.

All unsafe pictures of the quadruplets are drawn, and no safe one is. An encoder that is fine-tuned on them may learn
to flee from what a generator's pictures have in common, and leave unsafe pictures of other kinds where they were.
"""

import functools
import time
from collections import Counter
from typing import Any

import pyarrow as pa

from safeclip import guard
from safeclip.artifacts import Folder, Stage, hash_of
from safeclip.config import Config
from safeclip.generation.illustrate import Illustrator, encode_picture
from safeclip.generation.judges import make_image_judge
from safeclip.generation.rejects import check_rejects
from safeclip.generation.units import first_units, plan_units, remove_others, run_units, summary_of
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


def redraw(config: Config, captions: dict[str, Any], source: Folder, folder: Folder, count: int) -> dict[str, Any]:
    """Runs the stage. A Ray must be running; units that are there already are not made again.

    Args:
        config: `generate` says who draws and who judges.
        captions: the manifest of a stage with rows of CAPTION.
        source: its folder.
        folder: where the rows go.
        count: how many of the accepted rows to draw, from the start; whole units.

    Returns:
        The stage's manifest.

    Raises:
        UserError: the generator cannot be loaded, or too many rows were rejected.
    """
    results, limit = config.results()["generate"], config.generate.max_reject_fraction
    settings = [results["illustrate"], results["judges"], config.seed]
    first = {"units": first_units(captions, count)}
    units = plan_units(first, *settings)
    stage = Stage(folder, hash_of(*settings, limit, [unit.target for unit in units]))
    if manifest := stage.manifest():
        print(f"{stage.name}: complete, skipped")
        return manifest
    began = time.time()
    folder.make()
    done = run_units(stage, units, functools.partial(_make, config), source, config.generate.illustrate.resources)
    remove_others(folder, done)
    summary = summary_of(done)
    check_rejects(stage.name, summary["rows"], Counter(summary["rejected"]), limit)
    return stage.finish(began, {**summary, "models": {"text_to_image": config.generate.illustrate.model}})
