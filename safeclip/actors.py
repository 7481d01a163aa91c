"""What stages that work row by row ask of Ray Data: so many actors, and an end where one always dies."""

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from safeclip.config import Resources
from safeclip.device import LostGpuError, gpu_is_lost

MOST_DEATHS = 10
"""How often an actor, or the work on a row, may end with its process before the stage does; Ray would never stop."""


@contextlib.contextmanager
def leaving_lost_gpu() -> Iterator[None]:
    """Ends the process at an error that its GPU did not survive: only another process gets the GPU back.

    Ray starts one, for an actor or a task, and has it do the same again.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LostGpuError) or gpu_is_lost():
            traceback.print_exc()
            print("the GPU is lost to this process, which ends for another to take its place", file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
        raise


class _Replaceable:
    """Has an actor do the work, as long as it has its GPU."""

    def __init__(self, actor: type, arguments: tuple[Any, ...]) -> None:
        with leaving_lost_gpu():
            self.actor = actor(*arguments)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        with leaving_lost_gpu():
            return self.actor(row)


def map_rows(rows: list[dict[str, Any]], actor: type, arguments: tuple[Any, ...], resources: Resources) -> Any:
    """Returns the data set (lazy, in no order) of what actors make of rows, one call each.

    An actor that dies, or that loses its GPU, is replaced, and its row is worked on again.

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
            type(actor.__name__, (_Replaceable,), {}),  # whose name Ray shows
            fn_constructor_args=(actor, arguments),
            # One each: those that load their model first would else take the rows of the others, too.
            compute=ActorPoolStrategy(size=min(resources.actors, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=MOST_DEATHS,
            max_task_retries=MOST_DEATHS,
        )
