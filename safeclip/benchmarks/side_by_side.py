"""Candidates that take turns within one run, so that what else the machine does falls on all of them alike."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any


def take_turns(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each candidate's calls: A B A B …, as often as `repeats` says."""
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    for _ in range(repeats):
        for label, call in candidates.items():
            began = time.perf_counter()
            call()
            seconds[label].append(time.perf_counter() - began)
    return seconds


def compared(
    runs: dict[str, list[float]], unit: str, ratios: list[tuple[str, str]], figures: dict[str, Any]
) -> dict[str, Any]:
    """Returns what was measured as the JSON of `train` and `evaluate` has it.

    Args:
        runs: of each candidate, by its label, in the order of the turns.
        unit: of the runs.
        ratios: pairs of labels; each ratio is taken turn by turn.
        figures: what else was measured.
    """
    return {
        "machine": machine(),
        "candidates": {
            label: {"unit": unit, "median": _round(statistics.median(values)), "runs": [_round(v) for v in values]}
            for label, values in runs.items()
        },
        "ratios": {f"{a}/{b}": _ratio(runs[a], runs[b]) for a, b in ratios},
        "figures": figures,
    }


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "as many as cores"),
    }


def peak_memory_gib() -> float:
    """Returns the most memory that this process has had resident so far, everything counted."""
    with open("/proc/self/status") as file:  # getrusage would tell that of the process that started this one, too
        (kib,) = (line.split()[1] for line in file if line.startswith("VmHWM"))
    return round(int(kib) / 2**20, 3)


def table(measured: dict[str, Any]) -> str:
    """Returns what `compared` made as lines for a terminal."""
    candidates, ratios, figures = (measured[kind] for kind in ("candidates", "ratios", "figures"))
    width = max(map(len, [*candidates, *ratios, *figures])) + 1
    lines = [f"{label:{width}}{c['median']:>10g} {c['unit']}" for label, c in candidates.items()]
    lines += [f"{pair:{width}}{r['median']:>10g}  [{r['min']:g}, {r['max']:g}]" for pair, r in ratios.items()]
    return "\n".join([*lines, *(f"{name:{width}}{value:>10g}" for name, value in figures.items())])


def _ratio(ones: list[float], others: list[float]) -> dict[str, float]:
    each = [one / other for one, other in zip(ones, others, strict=True)]
    return {"median": _round(statistics.median(each)), "min": _round(min(each)), "max": _round(max(each))}


def _round(value: float) -> float:
    return float(f"{value:.4g}")
