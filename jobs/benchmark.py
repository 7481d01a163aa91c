"""Compares side by side, and writes what was measured as JSON.

  python -m jobs.benchmark objectives --run demo        trains each objective on a run's quadruplets, and measures
                                                        safety and what it cost, on the same rendered test sets

Settings: those of the run. A training that is complete is not repeated.
"""

import json
import sys

from jobs.command import config_of, parser, ray_session, run_main
from safeclip.artifacts import open_run, read_manifest, versions
from safeclip.errors import UserError

BENCHMARKS = ("objectives",)


def main(arguments: list[str] | None = None) -> None:
    """Runs a benchmark."""
    words = parser(__doc__)
    words.add_argument("benchmark", choices=BENCHMARKS, help="what to compare")
    words.add_argument("--objectives", nargs="+", metavar="NAME", help="which; all of the library's unless given")
    words.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the trainings; default 0 1 2")
    options = words.parse_args(arguments)
    config = config_of(options)
    from safeclip.benchmarks.objectives import ALL, compare_objectives, table

    run = open_run(config, options.replace)
    if read_manifest(run / "quadruplets") is None:
        raise UserError(f"{run.url}: quadruplets is not complete; run jobs.generate first")
    with ray_session(config):
        measured = compare_objectives(config, run, options.objectives or ALL, options.seeds)
    print(table(measured))
    measured |= {"compared": "objectives", "versions": versions(), "train": config.train.model_dump(mode="json")}
    (run / "benchmark").write("objectives.json", json.dumps(measured, indent=2).encode())
    print(f"written to {run.url}/benchmark/objectives.json")


if __name__ == "__main__":
    sys.exit(run_main(main))
