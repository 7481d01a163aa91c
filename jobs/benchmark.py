"""Compares side by side, and writes what was measured as JSON.

  python -m jobs.benchmark train                       a step of fine-tuning beside the reference's recipe, ViT-B/32
                                                       with random weights, or ViT-L/14 where there is a GPU; needs
                                                       no run
  python -m jobs.benchmark objectives --run demo       each objective trained on a run's quadruplets, and measured on
                                                       the same rendered test sets: what became safe, what it cost
  python -m jobs.benchmark evaluate                    ranking 100,000 items for 100,000 queries beside the matrix
                                                       products in it alone; --queries, --items, --width for less

The JSON goes to <storage>/benchmarks/<what>.json, or where --json says.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jobs.command import config_of, parser, ray_session, run_main
from jobs.train_encoder import sections_of
from safeclip.artifacts import AGAIN, TO_QUADRUPLETS, Folder, need_same, read_manifest, saved_config, versions
from safeclip.config import Config
from safeclip.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Runs a benchmark."""
    words = parser(__doc__)
    words.add_argument("benchmark", choices=["train", "objectives", "evaluate"], help="what to compare")
    words.add_argument("--json", metavar="FILE", type=Path, help="where the figures go")
    words.add_argument("--repeats", type=int, default=3, help="of train and evaluate; default 3")
    which = words.add_mutually_exclusive_group()
    which.add_argument(
        "--objectives",
        nargs="+",
        metavar="NAME",
        help="which, all of the library's unless given; also 'NAME without TERM, TERM'",
    )
    which.add_argument("--ablate", action="store_true", help="the config's objective, and without each of its terms")
    words.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of objectives; default 0 1 2")
    for side in ("queries", "items"):
        words.add_argument(f"--{side}", type=int, default=100_000, help="of evaluate; default 100000")
    words.add_argument("--width", type=int, default=768, help="of evaluate's vectors; default 768")
    options = words.parse_args(arguments)
    for word in ("repeats", "queries", "items", "width"):
        if getattr(options, word) < 1:
            words.error(f"--{word} {getattr(options, word)}: must be at least 1")
    if options.replace:
        words.error("--replace: a benchmark makes nothing of a run, and trains again by itself where settings differ")
    config = config_of(options)
    if options.benchmark == "train":
        measured = _train(options)
    elif options.benchmark == "evaluate":
        measured = _evaluate(options)
    else:
        measured = _objectives(config, options)
    folder, name = Folder(config.storage) / "benchmarks", f"{options.benchmark}.json"
    if options.json:
        folder, name = Folder(str(options.json.parent)), options.json.name
    folder.make()
    folder.write(name, (json.dumps({**measured, "versions": versions()}, indent=2) + "\n").encode())
    print(f"written to {folder.url}/{name}")


def _train(options: Any) -> dict[str, Any]:
    import torch

    from safeclip.benchmarks.side_by_side import table
    from safeclip.benchmarks.train import compare_training
    from safeclip.benchmarks.train_gpu import compare_training_on_gpu

    measured = (compare_training_on_gpu if torch.cuda.is_available() else compare_training)(options.repeats)
    print(table(measured))
    return measured


def _evaluate(options: Any) -> dict[str, Any]:
    from safeclip.benchmarks.evaluate import compare_ranking
    from safeclip.benchmarks.side_by_side import table

    measured = compare_ranking(options.queries, options.items, options.width, options.repeats)
    print(table(measured))
    return measured


def _objectives(config: Config, options: Any) -> dict[str, Any]:
    from safeclip.benchmarks.objectives import ALL, ablations, compare_objectives, table

    names = options.objectives or (ablations(config) if options.ablate else ALL)
    run = Folder(config.storage) / config.run
    need_same(config, saved_config(run), TO_QUADRUPLETS, AGAIN)  # and nothing of the run's own is made
    if read_manifest(run / "quadruplets") is None:
        raise UserError(f"{run.url}: quadruplets is not complete; run jobs.generate first")
    with ray_session(config, *sections_of(config), "evaluate"):
        measured = compare_objectives(config, run, names, options.seeds)
    print(table(measured))
    return {**measured, "train": config.train.model_dump(mode="json")}


if __name__ == "__main__":
    sys.exit(run_main(main))
