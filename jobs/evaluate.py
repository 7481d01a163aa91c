"""Measures the base and the safe encoder of a run, and writes the report: report.html, report.md, metrics.json.

  python -m jobs.evaluate                                  the run of ray_config.yaml
  python -m jobs.evaluate --run mine --set evaluate.rendered=300

Needs what jobs.generate and jobs.train_encoder made. Settings: ray_config.yaml, evaluate.
"""

import json
import sys

from jobs.command import config_of, parser, ray_session, run_main
from safeclip.artifacts import Folder, open_run
from safeclip.config import Config


def evaluate_run(config: Config, run: Folder) -> None:
    """Runs the stage and prints its table, the summary and where the report lies."""
    from safeclip.evaluation.evaluate import evaluate
    from safeclip.evaluation.report import plain_table, summary_sentences

    evaluate(config, run)
    metrics = json.loads((run / "report").read("metrics.json"))
    print(plain_table(metrics), "", *summary_sentences(metrics["encoders"]), sep="\n")
    print(f"written to {(run / 'report').url}/report.html")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and evaluates."""
    options = parser(__doc__).parse_args(arguments)
    config = config_of(options)
    run = open_run(config, options.replace)
    with ray_session(config):
        evaluate_run(config, run)


if __name__ == "__main__":
    sys.exit(run_main(main))
