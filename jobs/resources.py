"""What a job reserves beside what there is: too little is said at once, since Ray itself waits in silence."""

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

    there = ray.cluster_resources()
    has = " and ".join(_amount(there.get(kind, 0), kind) for kind in ("CPU", "GPU"))
    wanting = lacking(config, sections, there)
    if wanting and not may_grow:
        raise UserError(f"{wanting[0]} wanted at once, and Ray on this machine has {has}")
    if wanting:
        print(f"the cluster has {has} now; stages wait until it has what they want at once: {', '.join(wanting)}")


def _amount(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'' if number == 1 else 's'}"


def lacking(config: Config, sections: Sequence[str], there: dict[str, float]) -> list[str]:
    """Returns what must be there at once and is not, as `train.resources: 4 CPUs`.

    Args:
        config: what to run.
        sections: as `need_resources` takes them.
        there: the cluster's resources, as `ray.cluster_resources` names them.
    """
    found = []
    reserving = [each for name in sections for each in _reserving(operator.attrgetter(name)(config), name)]
    for name, section in reserving:
        each, count = section.resources, 1  # actors of Ray Data start one by one
        if isinstance(section, Train | ToxifierTraining):
            count = getattr(section, "min_workers", None) or each.actors
        for kind, amount in {"CPU": each.cpus, "GPU": each.gpus}.items():
            if (wanted := round(count * amount, 4)) > there.get(kind, 0):
                found.append(f"{name}.resources: {_amount(wanted, kind)}")
    return found


def _reserving(section: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the section and those within that have `resources`, by name."""
    if isinstance(section, Section):
        if hasattr(section, "resources"):
            yield name, section
        for field in type(section).model_fields:
            yield from _reserving(getattr(section, field), f"{name}.{field}")
