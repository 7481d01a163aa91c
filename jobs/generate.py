"""Makes quadruplets: captions → unsafe captions (vLLM) → unsafe pictures (diffusers) → quadruplets in Parquet.

  python -m jobs.generate                                          the embedded world
  python -m jobs.generate --run mine --set captions.source=my.jsonl    captions and pictures of your own
  python -m jobs.generate --run mine --purge                       delete the unsafe pictures of a run

The same command goes on where a run was cut off. Settings: ray_config.yaml, captions and generate.
"""

import sys

from jobs.command import config_of, parser, ray_session, run_folder, run_main
from safeclip.artifacts import TO_QUADRUPLETS, Folder
from safeclip.config import Config


def generate(config: Config, run: Folder) -> None:
    """Runs the stages of the generation and prints what they made."""
    # These import for seconds, and a command line that is refused need not wait for that.
    from safeclip.generation.captions import make_captions
    from safeclip.generation.illustrate import make_unsafe_images
    from safeclip.generation.quadruplets import make_quadruplets
    from safeclip.generation.toxify import make_unsafe_captions

    make_captions(config, run)
    make_unsafe_captions(config, run)
    make_unsafe_images(config, run)
    data = make_quadruplets(config, run)["data"]
    counts = ", ".join(f"{n} {split}" for split, n in data["quadruplets"].items())
    print(f"{data['accepted']} of {data['captions']} captions became quadruplets: {counts}")
    print(f"written to {(run / 'quadruplets').url}")


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and generates, or purges."""
    words = parser(__doc__)
    words.add_argument("--purge", action="store_true", help="delete the run's unsafe pictures, and end")
    options = words.parse_args(arguments)
    config = config_of(options)
    if options.purge:
        from safeclip.generation.quadruplets import purge

        removed = purge(Folder(config.storage) / config.run)
        print(f"removed: {', '.join(removed) or 'nothing, there were no unsafe pictures'}")
        return
    with run_folder(config, options.replace, TO_QUADRUPLETS) as run, ray_session(config, "generate"):
        generate(config, run)


if __name__ == "__main__":
    sys.exit(run_main(main))
