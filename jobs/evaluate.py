"""Measures encoders on a run's quadruplets, and writes the report: report.html, report.md, metrics.json.

  python -m jobs.evaluate                                  the run of ray_config.yaml, its encoder before and after
  python -m jobs.evaluate --run mine --set evaluate.rendered=300
  python -m jobs.evaluate --encoders base=world:encoder safe=runs/demo/encoder other=ViT-B-32/openai
  python -m jobs.evaluate --run mine --set evaluate.zero_shot.pets=data/pets  a folder of pictures a class, or Parquet
  python -m jobs.evaluate --run mine --set evaluate.text_to_image=null        draws no pictures, which take longest
  python -m jobs.evaluate --run mine --thorough           five times the drawn and described pictures, finer intervals

Needs what jobs.generate made, and without --encoders what jobs.train_encoder made. The report goes to the run's
report/; that of other encoders goes to report-<labels>-<hash>/ beside it, a thorough one to the same with -thorough
at the end. Embeddings are kept in the run's embeddings/, and what was drawn and described in its answers/, by hashes
of what they were made from; both may be deleted. Settings: ray_config.yaml, evaluate.
"""

import dataclasses
import json
import sys

from jobs.command import config_of, parser, ray_session, run_folder, run_main
from safeclip.artifacts import Folder
from safeclip.config import Config
from safeclip.evaluation.encoders import Comparison, choose_comparison, default_comparison


def evaluate_run(config: Config, run: Folder, comparison: Comparison | None = None) -> None:
    """Runs the stage and prints its table, the summary and where the report lies.

    Args:
        config: what to measure.
        run: the run's folder.
        comparison: the encoders; the run's own, before and after, unless given.
    """
    from safeclip.evaluation.evaluate import evaluate
    from safeclip.evaluation.summary import plain_table, summary_sentences

    comparison = comparison or default_comparison(config, run)
    evaluate(config, run, comparison)
    metrics = json.loads(comparison.folder.read("metrics.json"))
    print(plain_table(metrics), "", *summary_sentences(metrics), sep="\n")
    print(f"written to {comparison.folder.url}/report.html")


def more_thorough(config: Config) -> Config:
    """Returns a config that draws and describes five times as many pictures, and resamples ten times as often.

    Sets that hold fewer are used up. Rendered quadruplets stay as they are: the world has not many more.
    """
    settings = config.evaluate
    more = {
        name: part.model_copy(update={"count": 5 * part.count})
        for name in ("text_to_image", "image_to_text")
        if (part := getattr(settings, name)) is not None
    }
    evaluate = settings.model_copy(update={**more, "bootstrap": 10 * settings.bootstrap})
    return config.model_copy(update={"evaluate": evaluate})


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and evaluates."""
    words = parser(__doc__)
    words.add_argument(
        "--encoders", nargs="+", metavar="LABEL=SOURCE", help="what to compare, the first with each of the others"
    )
    words.add_argument("--thorough", action="store_true", help="measure more, into a report of its own; takes longer")
    options = words.parse_args(arguments)
    config = config_of(options)
    with run_folder(config, options.replace, ["evaluate"]) as run:
        comparison = choose_comparison(config, run, options.encoders or [])
        if options.thorough:
            config = more_thorough(config)
            comparison = dataclasses.replace(comparison, folder=run / f"{comparison.folder.name}-thorough")
        with ray_session(config, "evaluate"):
            evaluate_run(config, run, comparison)


if __name__ == "__main__":
    sys.exit(run_main(main))
