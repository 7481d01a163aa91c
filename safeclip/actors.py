"""What stages that work row by row ask of Ray Data: so many actors, and an end where one always dies."""

import warnings
from typing import Any

from safeclip.config import Resources

MOST_DEATHS = 10
"""How often an actor, or the work on a row, may end with its process before the stage does; Ray would never stop."""


def map_rows(rows: list[dict[str, Any]], actor: type, arguments: tuple[Any, ...], resources: Resources) -> Any:
    """Returns the data set (lazy, in no order) of what actors make of rows, one call each.

    Args:
        rows: plain data, at least one row.
        actor: a class whose objects are called with a row and return one.
        arguments: of its constructor.
        resources: how many actors, and what each reserves.
    """
    import ray
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # of what has no other name yet: the last two
        return ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            actor,
            fn_constructor_args=arguments,
            # One each: those that load their model first would else take the rows of the others, too.
            compute=ActorPoolStrategy(size=min(resources.actors, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=MOST_DEATHS,
            max_task_retries=MOST_DEATHS,
        )
