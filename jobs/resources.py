"""What a job reserves beside what there is: too little is said at once, since Ray itself waits in silence."""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from safeclip.config import Config, Section, ToxifierTraining, Train
from safeclip.errors import UserError


def need_resources(config: Config, sections: Sequence[str], may_grow: bool) -> None:
    """Compares what a job reserves at once with what the connected Ray has; what may grow is waited for.

    Args:
        config: what to run.
        sections: those of the config whose `resources` the job reserves, such as `train`, with all that is within.
        may_grow: whether to print what is lacking, instead of raising.

    Raises:
        UserError: there is not enough.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has = " and ".join(_amount(_total(machines, kind), kind) for kind in ("CPU", "GPU"))
    wanting = lacking(config, sections, machines)
    if wanting and not may_grow:
        raise UserError(
            f"{wanting[0]} wanted at once, and Ray on this machine has {has}; lower them, or join a cluster with "
            "--set ray.address=host:port"
        )
    if wanting:
        print(f"the cluster has {has} now; stages wait until it has what they want at once: {', '.join(wanting)}")


def _amount(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'' if number == 1 else 's'}"


def _total(machines: Sequence[dict[str, float]], kind: str) -> float:
    return sum(machine.get(kind, 0) for machine in machines)


def _room(machine: dict[str, float], wanted: dict[str, float]) -> float:
    """Returns how many actors or workers a machine can hold, each with what it wants of each kind."""
    rooms = [math.floor(machine.get(kind, 0) / amount + 1e-6) for kind, amount in wanted.items() if amount]
    return min(rooms, default=math.inf)


def lacking(config: Config, sections: Sequence[str], machines: Sequence[dict[str, float]]) -> list[str]:
    """Returns what must be there at once and is not, as `train.resources: 4 CPUs`.

    An actor or worker runs on one machine: where there is enough in sum, each machine may be too small for it, as in
    `train.resources: no machine has 6 CPUs and 1 GPU`.

    Args:
        config: what to run.
        sections: as `need_resources` takes them.
        machines: the resources of each that is alive, as `ray.nodes` names them.
    """
    found = []
    reserving = [each for name in sections for each in _reserving(operator.attrgetter(name)(config), name)]
    for name, section in reserving:
        each, count = section.resources, 1  # actors of Ray Data start one by one
        if isinstance(section, Train | ToxifierTraining):
            count = getattr(section, "min_workers", None) or each.actors
        wanted = {"CPU": each.cpus, "GPU": each.gpus}
        sums = {kind: round(count * amount, 4) for kind, amount in wanted.items()}
        short = [_amount(amount, kind) for kind, amount in sums.items() if amount > _total(machines, kind)]
        if not short and (room := sum(_room(machine, wanted) for machine in machines)) < count:
            one = " and ".join(_amount(amount, kind) for kind, amount in wanted.items() if amount)
            short = [f"machines have room for {room} of {count} with {one}" if room else f"no machine has {one}"]
        found += [f"{name}.resources: {said}" for said in short]
    return found


def _reserving(section: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the section and those within that have `resources`, by name."""
    if isinstance(section, Section):
        if hasattr(section, "resources"):
            yield name, section
        for field in type(section).model_fields:
            yield from _reserving(getattr(section, field), f"{name}.{field}")
