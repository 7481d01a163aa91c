"""cluster/local.sh: a cluster comes up, takes jobs by submission and by address, and goes without a trace."""

import os
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.processes import wait_until

ROOT = Path(__file__).parents[2]

JOB = """
import sys
from jobs.command import config_of, parser, ray_session, run_main

def job(arguments):
    config = config_of(parser("").parse_args(arguments))
    with ray_session(config):
        import os, ray, safeclip
        task = ray.remote(lambda: os.path.dirname(safeclip.__file__))
        print("task:", ray.get(task.remote()))
        print("driver:", os.getcwd(), sorted(os.listdir(".")))
        print("cpus:", ray.cluster_resources()["CPU"], "storage:", config.storage, "python:", sys.executable)

sys.exit(run_main(job, []))
"""


def process_listens_beyond_loopback(folder: str) -> list[str]:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,args="], text=True, capture_output=True).stdout
    ours = {line.split()[0] for line in listed.splitlines() if folder in line}
    inodes = {os.readlink(f) for pid in ours for f in Path(f"/proc/{pid}/fd").glob("*") if f.is_symlink()}
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:")
    return [r[1] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in inodes and not r[1].startswith(loopback)]


def running(*words: str) -> bool:
    listed = subprocess.run(["ps", "-e", "-o", "args="], text=True, capture_output=True).stdout
    return any(all(word in line for word in words) for line in listed.splitlines())


def test_a_cluster_comes_up_takes_jobs_and_goes(local):
    folder = local.environment["SAFECLIP_CLUSTER_DIR"]
    assert (local("status").returncode, local("status").stdout) == (3, "no local cluster runs\n")

    up = local.up()
    assert up.returncode == 0, up.stderr
    assert f"--address http://127.0.0.1:{local.dashboard} --working-dir . -- python -m" in up.stdout
    assert process_listens_beyond_loopback(folder) == []
    assert local.up().stdout == up.stdout, "a second `up` finds the first"
    assert (local("status").returncode, local("status").stdout) == (0, up.stdout)

    submitted = local.submit("--", "python", "-c", JOB)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    said = dict(
        line.split(": ", 1) for line in submitted.stdout.splitlines() if line.split(":")[0] in ("task", "driver")
    )
    assert said["task"].startswith(folder), "workers import the copy that was sent"
    assert said["driver"].startswith(folder)
    assert "'jobs'" in said["driver"]
    assert "'.git'" not in said["driver"]
    assert "'.venv'" not in said["driver"]
    assert "'runs'" not in said["driver"]
    assert f"cpus: 3.0 storage: {ROOT}/runs python: {ROOT}/.venv/bin/python" in submitted.stdout

    nowhere = local.submit("--runtime-env-json", '{"env_vars": {"SAFECLIP_HOME": ""}}', "--", "python", "-c", JOB)
    assert nowhere.returncode != 0
    assert "error: storage: runs lies in the job's copy of the repository" in nowhere.stdout

    joined = local.run(".venv/bin/python", "-c", JOB, RAY_ADDRESS=f"127.0.0.1:{local.port}")
    assert joined.returncode == 0, joined.stderr
    assert f"task: {ROOT}/safeclip\n" in joined.stdout
    assert "cpus: 3.0" in joined.stdout

    mark = f"sleeps-{os.getpid()}"
    assert local.submit("--no-wait", "--", "python", "-c", f"import time; time.sleep(600)  # {mark}").returncode == 0
    wait_until(lambda: running("time.sleep(600)", mark))
    assert local("down").stdout == "stopped\n"
    wait_until(lambda: not running(folder) and not running("time.sleep(600)", mark))
    assert local("down").stdout == "no local cluster runs\n"


def test_data_and_runs_are_not_sent_along(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    for name in ("data/coco/train2017/a.jpg", "runs/demo/config.yaml", "safeclip/data.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    package = tmp_path.parent / f"{tmp_path.name}.zip"
    create_package(str(tmp_path), package, include_gitignore=True)
    assert {".gitignore", "safeclip/data.py"} == set(zipfile.ZipFile(package).namelist())


def test_a_port_in_use_is_named(local):
    with socket.create_server(("127.0.0.1", local.port)):
        up = local.up()
    assert (up.returncode, up.stderr) == (1, f"local: port {local.port} is in use; name another with --port\n")
    assert local("status").returncode == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sideways"], "sideways: must be up, down or status"),
        (["up", "--cpus", "two"], "--cpus two: must be a whole number above 0"),
        (["up", "--cpus"], "--cpus needs a number"),
        (["up", "--gpus", "1"], "--gpus: no such option"),
    ],
)
def test_wrong_words_are_named(local, words, said):
    ended = local(*words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_help_says_what_there_is(local):
    shown = local("--help")
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("up", "down", "status", "--cpus", "--dashboard-port"))


def test_a_process_that_took_the_number_of_a_dead_cluster_is_left_alone(local):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        state = Path(local.environment["SAFECLIP_CLUSTER_DIR"]) / "started"
        state.write_text(f"{other.pid}\nMon Jan  1 00:00:00 2024\n6390\n8275\n")
        assert local("down").stdout == "no local cluster runs\n"
        assert other.poll() is None
        other.terminate()
