"""What every job's command line shares: its words, its connection to Ray, and errors in one line."""

import argparse
import contextlib
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jobs.resources import need_resources
from safeclip.artifacts import FLOW, Folder, holds_more_than_config, open_run
from safeclip.config import Config, load_config
from safeclip.errors import UserError

_ALWAYS = {
    "OMP_NUM_THREADS": "1",  # an actor reserves one CPU, and last digits depend on the number of threads
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # workers import for long on a busy machine
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint waits until the one before has been seen
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # takes lines that differ in their numbers, such as those of training steps, for the same
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's default from its next release on; else it warns
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's name for: use 127.0.0.1, not the network's address
_LOCAL = {  # for a Ray started here
    **_LOOPBACK,
    "RAY_AUTH_MODE": "disabled",  # nothing beyond this machine reaches it
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away; a process less for each training
}
_QUIET = {"RAY_DATA_LOG_LEVEL": "CRITICAL", "RAY_BACKEND_LOG_LEVEL": "fatal", "VLLM_LOGGING_LEVEL": "ERROR"}
_CONNECT_SECONDS = 5.0
_debug = False


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser of the words that all jobs know."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    command = f"python -m {spec.name}" if spec and spec.name.startswith("jobs.") else None
    made = argparse.ArgumentParser(
        prog=command, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--config", default="ray_config.yaml", metavar="FILE", help="of settings; default: %(default)s")
    made.add_argument("--profile", metavar="NAME", help="embedded or full; the config's default unless given")
    made.add_argument("--run", metavar="NAME", help="the run, and its folder's name; goes on with it if it is there")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="overrides a setting, as in train.epochs=3; may be given again",
    )  # fmt: skip
    made.add_argument(
        "--replace", action="store_true",
        help="take over settings that differ from the run's, and make again what depends on them",
    )  # fmt: skip
    made.add_argument("--debug", action="store_true", help="show tracebacks, and what Ray and its workers log")
    return made


def config_of(options: argparse.Namespace) -> Config:
    """Returns the config that the command line asks for.

    A job that joins a cluster may run in a copy of the repository that the cluster deletes afterwards. A relative
    `storage` is then taken from `SAFECLIP_HOME`, which `cluster/local.sh` sets to the repository, and made absolute.

    Raises:
        UserError: as `load_config` does, or the results would lie in such a copy.
    """
    config = load_config(options.config, options.profile, options.set, options.run)
    config = config.model_copy(update={"storage": os.path.expanduser(config.storage)})
    home = os.environ.get("SAFECLIP_HOME") or (os.getcwd() if _address(config) else None)
    if home is None or "://" in config.storage or os.path.isabs(config.storage):
        return config
    if not os.environ.get("SAFECLIP_HOME") and _is_in_a_copy():
        raise UserError(
            f"storage: {config.storage} lies in the job's copy of the repository, which the cluster deletes; "
            "give a folder or URL that all its machines reach, as in --set storage=s3://bucket/runs"
        )
    return config.model_copy(update={"storage": os.path.join(home, config.storage)})


def _is_in_a_copy() -> bool:
    """Whether this is a submitted job with a working directory of its own."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # Ray's own name for it
    return "working_dir" in job.get("runtime_env", {})


def _address(config: Config) -> str | None:
    """Returns the address of the cluster to join, None where Ray is to be started on this machine."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


@contextlib.contextmanager
def run_folder(config: Config, replace: bool = False, makes: Sequence[str] = FLOW) -> Iterator[Folder]:
    """Opens the run's folder for the while; a new one in which nothing was made is removed at the end.

    Args:
        config: what to run.
        replace: as `open_run` takes it.
        makes: as `open_run` takes it.

    Raises:
        UserError: as `open_run` does.
    """
    is_new = not (Folder(config.storage) / config.run).exists()
    run = open_run(config, replace, makes)
    try:
        yield run
    finally:
        if is_new and not holds_more_than_config(run):
            run.remove()


@contextlib.contextmanager
def ray_session(config: Config, *sections: str) -> Iterator[None]:
    """Joins the cluster that the config or the environment names, or starts Ray on this machine for the while.

    A cluster that has not what the job reserves may grow: one line says what is waited for.

    Args:
        config: what to run.
        sections: those of the config whose `resources` the job reserves, such as `train`, with all that is within.

    Raises:
        UserError: no cluster answers at the address, or this machine has not what the job reserves.
    """
    address = _address(config)
    place = _LOCAL if address is None else _LOOPBACK if _is_loopback_only(address) else {}
    for name, value in {**_ALWAYS, **place, **({} if _debug else _QUIET)}.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        need_resources(config, sections, may_grow=True)
        yield
        return
    if not _debug:
        _show_only_prints()
    try:
        with contextlib.nullcontext() if _debug else _silence():
            _connect(config, address)
        _catch_signals()  # ray.init puts its own handler of SIGTERM in place
        need_resources(config, sections, may_grow=address is not None)
        yield
    except SystemExit as error:  # how Ray ends the process on a signal, at whatever exit code
        raise KeyboardInterrupt from error
    finally:
        ray.shutdown()


def _connect(config: Config, address: str | None) -> None:
    import ray

    if address is None:
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus,
            object_store_memory=config.ray.object_store_mb * 2**20,
            include_dashboard=False,
            logging_level="info" if _debug else "error",
        )
        return
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"ray.address: {address} is a job server; send it the command by "
            f"`ray job submit --address {address} --working-dir . -- python -m …`, or give the cluster's host:port"
        )
    host, port = _host_and_port(address)
    if host and not _answers(host, port):  # Ray itself would try for minutes
        raise UserError(f"ray.address: no cluster answers at {address}")
    try:
        ray.init(address=address, logging_level="info" if _debug else "error")
    except (ConnectionError, TimeoutError) as error:
        raise UserError(f"ray.address: no cluster answers at {address} ({_headline(error)})") from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return (host, int(port)) if port.isdigit() and "://" not in address else ("", 0)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _is_loopback_only(address: str) -> bool:
    """Whether a cluster of this machine, such as that of cluster/local.sh, listens on 127.0.0.1 and nowhere else.

    Ray takes 127.0.0.1 in an address for the network's address of the machine, and would not find it there.
    """
    host, port = _host_and_port(address)
    if host not in ("127.0.0.1", "localhost"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):  # no network at all
            probe.connect(("192.0.2.1", 9))  # sends nothing; only asks which address would be used
        return not _answers(probe.getsockname()[0], port)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drops what is written to stderr meanwhile: Ray's core says there, and only there, that it logs nothing more."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _show_only_prints() -> None:
    """Lets through what workers print, and keeps what they and Ray log in the session's log files.

    Ray forwards both, with tracebacks that the driver gets anyway, and offers a switch for all or nothing.
    """
    from ray._private import worker

    forward = worker.print_to_stdstream

    def forward_prints(data: dict[str, Any], ignore_prefix: bool) -> None:
        if not data["is_err"] and data.get("pid") != "raylet":
            forward(data, ignore_prefix=True)

    worker.print_to_stdstream = forward_prints


def _catch_signals() -> None:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, and a second one end the process."""
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupt(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: os._exit(130))
        raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)


def cause_of(error: BaseException) -> UserError | None:
    """Returns the user's error within what Ray wrapped around it, None where there is none."""
    found, texts = [error], []
    for each in found:  # grows while it is read
        if isinstance(each, UserError) and getattr(each, "cause", None) is None:
            return each
        texts.append(str(each))
        within = [getattr(each, "cause", None), getattr(each, "controller_failure", None), each.__cause__]
        within += (getattr(each, "worker_failures", None) or {}).values()
        within += [] if each.__suppress_context__ else [each.__context__]
        found += [e for e in within if isinstance(e, BaseException) and not any(e is f for f in found)]
    # Ray Data, and actors that fail when they are made, keep the text of the error only.
    name = f"{UserError.__module__}.{UserError.__qualname__}"
    told = [line for text in texts for line in re.findall(rf"^{re.escape(name)}: (.+)$", text, re.MULTILINE)]
    return UserError(told[-1]) if told else None


def _headline(error: BaseException) -> str:
    """Returns an unexpected error in one line; of a traceback in its text, what it ends with."""
    text = str(error).strip()
    ends = list(re.finditer(r"^[A-Za-z_][\w.]*(?:Error|Exception)\b.*", text, re.MULTILINE))
    # The traceback of an actor that failed when it was made stands in Ray's text without its first line.
    if ends and ("Traceback (most recent call last)" in text or "creation task" in text):
        line, rest = ends[-1][0], text[ends[-1].end() :]
    else:
        said, _, rest = text.partition("\n")
        line = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if not re.search(r"\d validation errors? for ", line):
        return line.strip()
    # Pydantic says what is wrong below: the name of the setting, if it is one's, and indented what it should be.
    wrong = re.findall(r"^(?:(\S.*)\n)?  (\S.*?)(?: \[type=.*)?$", rest, re.MULTILINE)
    return "; ".join([line.strip(), *(f"{name}: {what}" if name else what for name, what in wrong)])


def run_main(job: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Calls a job's main function and returns its exit code; errors become one line.

    Returns:
        0 when all went well, 1 for an error, 2 for a wrong command line, 130 for Ctrl-C and SIGTERM.
    """
    global _debug
    _debug = "--debug" in (sys.argv if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress is seen in a pipe and in a log file, too
    _catch_signals()
    try:
        job(arguments)
    except KeyboardInterrupt:
        if _debug:
            traceback.print_exc()
        print("interrupted; the same command goes on from what is complete", file=sys.stderr)
        return 130
    except SystemExit as ended:  # argparse: 0 after --help, 2 for a wrong command line
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as error:
        if _debug:
            traceback.print_exc()
        known = cause_of(error)
        text = str(known) if known else f"{_headline(error)}{'' if _debug else ' (--debug shows more)'}"
        print(f"error: {text}", file=sys.stderr)
        return 1
    return 0
