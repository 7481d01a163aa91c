"""Trains the LLM that rewrites captions: SFT on pairs, then DPO on preferences drawn from the SFT model.

  python -m jobs.train_toxifier                                  the world's LLM, on pairs of the world's grammar
  python -m jobs.train_toxifier --set toxifier.pairs=my.jsonl    pairs of your own: safe, unsafe, concept in each line
  python -m jobs.train_toxifier --evaluate                       then the table of prompted, SFT and SFT + DPO

Writes `runs/<run>/toxifier/adapter` (vLLM and peft load it) and `merged` (the whole model). For jobs.generate and
jobs.pipeline to use it, give `--set generate.toxify.adapter=run` here and there. The same command goes on where a run
was cut off. Settings: ray_config.yaml, toxifier.
"""

import sys

from jobs.command import config_of, parser, ray_session, run_folder, run_main
from safeclip.artifacts import TO_QUADRUPLETS, Folder
from safeclip.config import Config


def train(config: Config, run: Folder) -> None:
    """Runs the stage and prints where the adapter lies."""
    from safeclip.toxifier.train import train_toxifier

    done = train_toxifier(config, run)
    losses = ", ".join(f"{step} {min(done[step]['validation_loss']):.4f}" for step in ("sft", "dpo"))
    print(f"toxifier: {run.url}/toxifier/adapter, best validation loss {losses}")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, trains, and evaluates if asked to."""
    words = parser(__doc__)
    words.add_argument("--evaluate", action="store_true", help="measure it against the prompted and the SFT model")
    options = words.parse_args(arguments)
    config = config_of(options)
    with (
        run_folder(config, options.replace, TO_QUADRUPLETS) as run,
        ray_session(config, "toxifier", "generate.toxify"),
    ):
        train(config, run)
        if options.evaluate:
            from safeclip.toxifier.evaluate import evaluate_toxifier, table

            print(table(evaluate_toxifier(config, run)))
            print(f"written to {run.url}/toxifier/evaluation.json")


if __name__ == "__main__":
    sys.exit(run_main(main))
