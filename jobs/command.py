"""What every job's command line shares: its words, its connection to Ray, and errors in one line."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

from safeclip.config import Config, load_config
from safeclip.errors import UserError


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the words that all jobs know."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", default="ray_config.yaml", metavar="FILE", help="default: %(default)s")
    made.add_argument("--profile", metavar="NAME", help="embedded or full; the config's default unless given")
    made.add_argument("--run", metavar="NAME", help="the run, and its folder's name; resumed if it is there")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    made.add_argument("--replace", action="store_true", help="make again what other settings touch in this run")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def config_of(options: argparse.Namespace) -> Config:
    """Returns the config that the command line asks for."""
    return load_config(options.config, options.profile, options.set, options.run)


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Joins the cluster that the config or the environment names, or starts Ray on this machine for the while."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    local = {"num_cpus": config.ray.num_cpus, "object_store_memory": config.ray.object_store_mb * 2**20}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=True,
            logging_level="warning",
            **({} if address else {**local, "include_dashboard": False}),
        )
    except (ConnectionError, TimeoutError) as error:
        raise UserError(f"ray.address: no cluster answers at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def cause_of(error: BaseException) -> UserError | None:
    """Returns the user's error within what Ray wrapped around it, None where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return None


def run_main(job: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Calls a job's main function and returns its exit code; errors become one line.

    Returns:
        0 when all went well, 1 for an error, 2 for a wrong command line, 130 for Ctrl-C.
    """
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        job(arguments)
    except KeyboardInterrupt:
        print("interrupted; what was complete stays, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = cause_of(error)
        text = str(known) if known else f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
        print(f"error: {text}{'' if known or debug else ' (--debug shows more)'}", file=sys.stderr)
        return 1
    return 0
