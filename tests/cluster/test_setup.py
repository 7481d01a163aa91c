"""cluster/setup.sh: a torch that cannot be used is told and replaced, and locks are not laid over each other."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pip
import pytest

ROOT = Path(__file__).parents[2]
CPU_ONLY, CUDA = "cuda = None", "cuda = '13.0'"


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Writes a package of some lines for pip to install; the real ones are gigabytes."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


@pytest.fixture
def repository(tmp_path):
    """A repository of the script, two small locks, and folders of wheels instead of an index."""
    locks = tmp_path / "cluster" / "requirements"
    locks.mkdir(parents=True)
    shutil.copy(ROOT / "cluster" / "setup.sh", tmp_path / "cluster")
    (tmp_path / "cluster" / "torchvision_shim.py").write_text("def install(): pass\n")
    (locks / "cpu.txt").write_text("torch==2.13.0\ntorchvision==0.28.0\nonly_cpu==1\n")
    (locks / "gpu.txt").write_text("torch==2.14.0\ntorchvision==0.28.0\n")
    public, cpu_wheels = tmp_path / "public", tmp_path / "cpu_wheels"
    write_wheel(public, "torch", "2.13.0", {"torch/__init__.py": "import torch.version", "torch/version.py": CUDA})
    write_wheel(public, "torch", "2.14.0", {"torch/__init__.py": "import torch.version", "torch/version.py": CUDA})
    write_wheel(public, "torchvision", "0.28.0", {"torchvision.py": ""})
    write_wheel(public, "only_cpu", "1", {"only_cpu.py": ""})
    write_wheel(
        cpu_wheels, "torch", "2.13.0+cpu", {"torch/__init__.py": "import torch.version", "torch/version.py": CPU_ONLY}
    )

    def run(*places: Path, **environment: str) -> subprocess.CompletedProcess:
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": " ".join(map(str, places))}
        own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, **pip, **environment}
        command = [str(tmp_path / "cluster" / "setup.sh")]
        return subprocess.run(command, env=own, text=True, capture_output=True)

    return tmp_path, run, public, cpu_wheels


def make_environment(place: Path) -> None:
    """Makes an environment in which pip works, of nobody knows which lock, with a package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python3.*/site-packages")
    (packages / "pip").symlink_to(Path(pip.__file__).parent)
    (packages / "of_before-1.dist-info").mkdir()
    subprocess.run([place / "bin" / "python", "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)


def versions_in(place: Path) -> set[str]:
    installed = {path.stem for path in place.glob(".venv/lib/python3.*/site-packages/*.dist-info")}
    return {name for name in installed if not name.startswith(("pip-", "setuptools-"))}


def test_a_cuda_build_beside_the_cpu_lock_is_told_and_replaced_the_next_time(repository):
    place, run, public, cpu_wheels = repository
    first = run(public, LOCK="cpu")
    assert first.returncode == 1
    assert "PIP_EXTRA_INDEX_URL" in first.stderr
    assert first.stderr.count("\n") == 2
    second = run(public, cpu_wheels)
    assert second.returncode == 0, second.stderr
    assert versions_in(place) == {"torch-2.13.0+cpu", "torchvision-0.28.0", "only_cpu-1"}


def test_another_lock_makes_a_new_environment_which_is_kept_by_default(repository):
    place, run, public, cpu_wheels = repository
    make_environment(place / ".venv")
    assert run(public, cpu_wheels, LOCK="cpu").returncode == 0
    assert versions_in(place) == {"torch-2.13.0+cpu", "torchvision-0.28.0", "only_cpu-1"}
    changed = run(public, cpu_wheels, LOCK="gpu")
    assert changed.returncode == 0, changed.stderr
    assert versions_in(place) == {"torch-2.14.0", "torchvision-0.28.0"}
    again = run(public, cpu_wheels)
    assert (again.returncode, again.stdout) == (0, "")
    unknown = run(public, LOCK="tpu")
    assert (unknown.returncode, unknown.stderr) == (1, "setup: LOCK=tpu has no lock; there are: cpu.txt gpu.txt\n")
