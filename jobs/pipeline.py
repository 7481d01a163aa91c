"""Runs everything in order: quadruplets, fine-tuning, report. With the embedded profile this is `make demo`.

  python -m jobs.pipeline                     the embedded world, from captions to a report
  python -m jobs.pipeline --profile full      the paper's sizes, on a cluster with GPUs

The toxifier is trained first where generate.toxify.adapter is run; the embedded profile comes with a trained one.
A stage that is complete is skipped; one that was cut off goes on where it was.
"""

import sys
import time

from jobs.command import config_of, parser, ray_session, run_folder, run_main
from jobs.generate import generate
from jobs.train_encoder import sections_of
from jobs.train_toxifier import train as train_toxifier


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and runs every stage."""
    options = parser(__doc__).parse_args(arguments)
    config = config_of(options)
    began = time.monotonic()
    trains_toxifier = config.generate.toxify.adapter == "run"
    sections = [*(["toxifier"] if trains_toxifier else []), "generate", *sections_of(config), "evaluate"]
    with run_folder(config, options.replace) as run, ray_session(config, *sections):
        # Not before: they import for seconds, and a config that the run refuses need not wait for that.
        from jobs.evaluate import evaluate_run
        from safeclip.encoder.train import check_settings, load_base, train_encoder

        check_settings(config.train)  # not only after hours of generation
        load_base(config.train)
        if trains_toxifier:
            train_toxifier(config, run)
        generate(config, run)
        train_encoder(config, run)
        evaluate_run(config, run)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"done in {minutes} min {seconds} s")


if __name__ == "__main__":
    sys.exit(run_main(main))
