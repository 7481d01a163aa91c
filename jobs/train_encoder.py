"""Fine-tunes the encoder on a run's quadruplets: ``python -m jobs.train_encoder [--run NAME] …``.

Writes ``runs/<run>/encoder/``: ``open_clip/``, ``huggingface/``, ``text_encoder/`` and ``lora/``.
"""

import sys

from jobs.command import config_of, parser, ray_session, run_main
from safeclip.artifacts import open_run
from safeclip.encoder.train import train_encoder


def main(arguments: list[str] | None = None) -> None:
    """Runs the job."""
    options = parser(__doc__).parse_args(arguments)
    config = config_of(options)
    run = open_run(config, options.replace)
    with ray_session(config):
        manifest = train_encoder(config, run)
    done = manifest["train"]
    print(
        f"encoder: {run.url}/encoder, best epoch {done['best_epoch']} of {done['epochs']}, "
        f"{done['samples_per_second']} samples/s with {done['workers']} workers"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
