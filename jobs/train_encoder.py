"""Fine-tunes the encoder on a run's quadruplets.

  python -m jobs.train_encoder --run demo                  trains, and writes the exports to runs/demo/encoder/
  python -m jobs.train_encoder --run demo --export runs/demo/encoder/training-…/checkpoint_… --to early
                                                           writes the exports of a training that is under way;
                                                           give its settings, by --config runs/demo/config.yaml;
                                                           also of runs/demo/encoder/best/epoch-… (train.keep_best)

The exports are open_clip/, huggingface/, text_encoder/ and lora/, with a model card. The same command goes on where a
run was cut off. Settings: ray_config.yaml, train.
"""

import sys

from jobs.command import config_of, parser, ray_session, run_folder, run_main
from safeclip.artifacts import Folder
from safeclip.config import Config


def sections_of(config: Config) -> list[str]:
    """Returns the sections whose resources a training reserves, as `ray_session` takes them."""
    if config.train.objective == "negation":  # trains nothing
        return []
    preserve = config.train.preserve
    return ["train", *(["generate.illustrate"] if preserve and preserve.drawn else [])]


def main(arguments: list[str] | None = None) -> None:
    """Runs the job."""
    words = parser(__doc__)
    words.add_argument("--export", metavar="CHECKPOINT", help="a checkpoint's folder, to export instead of training")
    words.add_argument("--to", metavar="FOLDER", help="where its exports go")
    options = words.parse_args(arguments)
    if (options.export is None) != (options.to is None):
        words.error("--export and --to go together")
    config = config_of(options)
    if options.export is not None:
        from safeclip.encoder.publish import export_checkpoint

        export_checkpoint(config, Folder(options.export), Folder(options.to))
        print(f"exported to {options.to}")
        return
    with run_folder(config, options.replace, ["train"]) as run, ray_session(config, *sections_of(config)):
        from safeclip.encoder.train import train_encoder  # imports for seconds, which a refusal need not wait for

        manifest = train_encoder(config, run)
    done = manifest["train"]
    print(
        f"encoder: {run.url}/encoder, best epoch {done['best_epoch']} of {done['epochs']}, "
        f"{done['samples_per_second']} samples/s with {done['workers']} workers"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
