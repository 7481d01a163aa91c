"""The jobs' command line: exit codes, one line on errors, wherever in Ray they come from, and signals."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import evaluate, train_encoder
from jobs.command import cause_of, config_of, parser, ray_session, run_folder, run_main
from safeclip.config import Resources, load_config
from safeclip.errors import UserError

ROOT = Path(__file__).parents[2]
INTERRUPTED = "interrupted; the same command goes on from what is complete\n"


def test_success_is_0_and_prints_nothing(capsys):
    assert run_main(lambda arguments: None, []) == 0
    assert capsys.readouterr() == ("", "")


def test_a_mistake_is_1_and_one_line(capsys):
    def job(arguments):
        raise UserError("train.epochs: 0 will not do")

    assert run_main(job, []) == 1
    assert capsys.readouterr() == ("", "error: train.epochs: 0 will not do\n")


def test_an_unexpected_error_is_1_and_one_line(capsys):
    def job(arguments):
        raise OSError("disk on fire\nand more")

    assert run_main(job, []) == 1
    assert capsys.readouterr().err == "error: OSError: disk on fire (--debug shows more)\n"


def test_debug_shows_the_traceback_before_the_line(capsys):
    def job(arguments):
        raise UserError("no such thing")

    assert run_main(job, ["--debug"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: no such thing"


def test_a_wrong_command_line_is_2_and_help_is_0(capsys):
    def job(arguments):
        parser("A job.").parse_args(arguments)

    assert run_main(job, ["--nonsense"]) == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err
    assert run_main(job, ["--help"]) == 0
    assert "A job." in capsys.readouterr().out


def test_help_names_the_command_that_was_given():
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.generate", "--help"], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert ended.stdout.startswith("usage: python -m jobs.generate [-h]")


def test_words_that_go_together_are_wrong_alone(capsys):
    assert run_main(train_encoder.main, ["--export", "somewhere"]) == 2
    assert capsys.readouterr().err.endswith("error: --export and --to go together\n")


def test_an_interruption_is_130(capsys):
    def job(arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    assert run_main(job, []) == 130
    assert capsys.readouterr().err == INTERRUPTED


def config_from(*words: str):
    return config_of(parser("").parse_args(["--config", str(ROOT / "ray_config.yaml"), *words]))


def test_storage_is_relative_to_the_folder_of_the_job(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("SAFECLIP_HOME", raising=False)
    assert config_from().storage == "runs"


def test_storage_on_a_cluster_outlives_the_copy_that_the_job_runs_in(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("SAFECLIP_HOME", "/home/someone/repository")
    assert config_from().storage == "/home/someone/repository/runs"
    assert config_from("--set", "storage=/data/runs").storage == "/data/runs"
    assert config_from("--set", "storage=~/runs").storage == os.path.expanduser("~/runs")
    assert config_from("--set", "storage=s3://bucket/runs").storage == "s3://bucket/runs"
    monkeypatch.delenv("SAFECLIP_HOME")
    assert config_from().storage == os.path.join(os.getcwd(), "runs")


def test_a_job_that_is_refused_leaves_no_run(tmp_path, ray_cluster, capsys):
    words = ["--run", "nosuch", "--set", f"storage={tmp_path}"]
    assert run_main(evaluate.main, words) == 1
    assert capsys.readouterr().err.endswith("nosuch: quadruplets is not complete; run jobs.generate first\n")
    assert not (tmp_path / "nosuch").exists()


def test_a_job_that_fails_leaves_what_was_made_and_the_config(tmp_path, capsys):
    def job(arguments):
        with run_folder(config_from("--set", f"storage={tmp_path}", *arguments)) as run:
            (run / "captions").make()
            raise UserError("later")

    assert run_main(job, []) == 1
    assert run_main(job, ["--set", "seed=1"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["captions", "config.yaml"]


@pytest.mark.parametrize(
    ("address", "said"), [("127.0.0.1:{port}", "no cluster answers"), ("http://a:1", "job server")]
)
def test_a_cluster_that_is_not_there_is_named(ray_free_process, address, said):
    with socket.socket() as taken:  # bound and not listening: nobody else answers there meanwhile
        taken.bind(("127.0.0.1", 0))
        address = address.format(port=taken.getsockname()[1])
        ended = ray_free_process(f"""
            with ray_session(load_config(sets=["ray.address={address}"])): pass
        """)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(
        f"error: ray.address: {'no cluster answers at ' if said[0] == 'n' else ''}{address}"
    )
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def raised_by(call) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each library of Ray has an error of its own
        call()
    return caught.value


class FailsOnABatch:
    def __call__(self, batch):
        raise UserError("a.jsonl: line 3 is no JSON")


class FailsWhenMade:
    def __init__(self):
        raise UserError("model 'x' is not there")

    def __call__(self, batch):
        return batch


def fail_in_a_worker(config):
    raise UserError("train.batch: 99 is more than the data")


def test_the_cause_is_found_in_a_task(ray_cluster):
    import ray

    @ray.remote(max_retries=0)
    def task():
        raise UserError("runs/x: no run lies here")

    assert str(cause_of(raised_by(lambda: ray.get(task.remote())))) == "runs/x: no run lies here"


@pytest.mark.parametrize(
    ("actor", "said"), [(FailsOnABatch, "a.jsonl: line 3 is no JSON"), (FailsWhenMade, "model 'x' is not there")]
)
def test_the_cause_is_found_in_an_actor_of_ray_data(ray_cluster, actor, said):
    import ray

    pool = ray.data.ActorPoolStrategy(size=1)
    rows = ray.data.range(4).map_batches(actor, batch_size=2, compute=pool)
    assert str(cause_of(raised_by(rows.materialize))) == said


def test_the_cause_is_found_in_a_worker_of_ray_train(ray_cluster, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        fail_in_a_worker,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name="x", storage_path=str(tmp_path)),
    )
    assert str(cause_of(raised_by(trainer.fit))) == "train.batch: 99 is more than the data"


class HasNoAccess:
    def __init__(self):
        raise OSError("You are trying to access a gated repo.\nAsk for access.")

    def __call__(self, batch):
        return batch


class IsSetWrong:
    def __init__(self):
        Resources(actors=0, cpus=-1)

    def __call__(self, batch):
        return batch


WRONG = (
    "ValidationError: 2 validation errors for Resources; actors: Input should be greater than or equal to 1; "
    "cpus: Input should be greater than or equal to 0"
)


@pytest.mark.parametrize(
    ("actor", "said"),
    [
        (HasNoAccess, "OSError: You are trying to access a gated repo."),
        (IsSetWrong, f"pydantic_core._pydantic_core.{WRONG}"),
    ],
)
def test_an_unexpected_error_of_an_actor_that_is_made_is_said_in_one_line(ray_cluster, capsys, actor, said):
    import ray

    def job(arguments):
        pool = ray.data.ActorPoolStrategy(size=1)
        ray.data.range(4).map_batches(actor, batch_size=2, compute=pool).materialize()

    assert run_main(job, []) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {said} (--debug shows more)"


def test_settings_that_a_library_refuses_are_named_in_the_line(capsys):
    assert run_main(lambda arguments: Resources(actors=0, cpus=-1), []) == 1
    assert capsys.readouterr().err == f"error: {WRONG} (--debug shows more)\n"


def test_there_is_no_cause_in_another_error():
    assert cause_of(ValueError("safeclip.errors.Other: x")) is None


# What follows ends or starts whole processes, each with a Ray of its own.

HEAD = """
import sys
from jobs.command import ray_session, run_main
from safeclip.config import load_config
from safeclip.errors import UserError

def job(arguments):
{body}

sys.exit(run_main(job, []))
"""


def script_of(body: str) -> str:
    lines = [line[12:] for line in body.strip("\n").splitlines()]
    return HEAD.format(body="\n".join(f"    {line}" for line in lines))


@pytest.fixture
def ray_free_environment():
    kept = ("PATH", "HOME", "TMPDIR", "LANG")
    return {name: os.environ[name] for name in kept if name in os.environ}


@pytest.fixture
def ray_free_process(ray_free_environment):
    def run(body: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", script_of(body)]
        return subprocess.run(command, cwd=ROOT, env=ray_free_environment, text=True, capture_output=True)

    return run


LOCAL = 'ray_session(load_config(sets=["ray.num_cpus=4", "ray.object_store_mb=100"]))'


def test_the_screen_shows_what_workers_print_and_one_line_of_an_error(ray_free_process):
    ended = ray_free_process(f"""
            class Fails:
                def __init__(self):
                    print("step 1  loss 0.5")
                    raise UserError("model 'x' is not there")
                def __call__(self, batch): return batch

            with {LOCAL}:
                import ray, time
                @ray.remote
                def listening():
                    import psutil
                    ours = psutil.Process().parent().parent().children(recursive=True)
                    found = {{c.laddr.ip for p in ours for c in p.net_connections() if c.status == "LISTEN"}}
                    print("listens on", *sorted({{ip.removeprefix("::ffff:") for ip in found}}))
                ray.get(listening.remote())
                time.sleep(1)
                ray.data.range(4).map_batches(Fails, compute=ray.data.ActorPoolStrategy(size=1)).materialize()
    """)
    assert ended.stderr == "error: model 'x' is not there\n"
    assert ended.stdout.splitlines() == ["listens on 127.0.0.1", "step 1  loss 0.5"]
    assert ended.returncode == 1


def test_what_this_machine_has_not_is_refused(ray_free_process):
    ended = ray_free_process("""
            sets = ["train.resources.actors=4", "ray.num_cpus=2", "ray.object_store_mb=100"]
            with ray_session(load_config(sets=sets), "train"): pass
    """)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: train.resources: 4 CPUs wanted at once, and Ray on this machine has 2")
    assert ended.stderr.endswith("; lower them, or join a cluster with --set ray.address=host:port\n")
    assert ended.stderr.count("\n") == 1


# Ray Train has a handler of SIGINT of its own.
TRAINING = f"""
            def train(config):
                import time
                print("working", flush=True)
                time.sleep(90)

            with {LOCAL}:
                from ray.train import RunConfig, ScalingConfig
                from ray.train.torch import TorchTrainer
                stored = RunConfig(name="x", storage_path="PLACE")
                TorchTrainer(train, scaling_config=ScalingConfig(num_workers=1), run_config=stored).fit()
"""
TASK = f"""
            with {LOCAL}:
                import ray
                @ray.remote
                def work():
                    import time
                    print("working", flush=True)
                    time.sleep(90)
                ray.get(work.remote())
"""


@pytest.mark.parametrize(("number", "body"), [(signal.SIGINT, TRAINING), (signal.SIGTERM, TASK)], ids=["int", "term"])
def test_a_signal_while_workers_work_ends_the_job_and_its_processes(ray_free_environment, tmp_path, number, body):
    body = body.replace("PLACE", str(tmp_path))
    command = [sys.executable, "-c", script_of(body)]
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ray_free_environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        first = job.stdout.readline()
        assert first == "working\n", job.stderr.read()
        job.send_signal(number)
        _, said = job.communicate()
    finally:
        job.kill()
    assert said == INTERRUPTED
    assert job.returncode == 130
    deadline = time.monotonic() + 20
    while (left := processes_of_session(job.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def processes_of_session(number: int) -> list[str]:
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(number)], text=True, capture_output=True)
    return listed.stdout.splitlines()


def test_a_ray_that_runs_already_is_used(ray_cluster):
    import ray

    with ray_session(load_config(ROOT / "ray_config.yaml")):
        assert ray.is_initialized()
    assert ray.is_initialized()
