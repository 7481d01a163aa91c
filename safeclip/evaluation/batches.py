"""Work that each of several encoders does in batches: shared out to Ray Data actors, gathered in order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from safeclip.artifacts import Folder
from safeclip.config import Resources
from safeclip.evaluation.encoders import Source


@dataclass(frozen=True)
class Missing:
    """Why a batch could not be worked on."""

    reason: str


def source_everywhere(source: Source) -> Source:
    """Returns an encoder's source so that it means the same in every process of this machine."""
    return source.everywhere() if isinstance(source, Folder) else source


def sources_everywhere(encoders: dict[str, Source]) -> dict[str, Source]:
    """Returns encoders' sources, by label, as `source_everywhere` does."""
    return {label: source_everywhere(source) for label, source in encoders.items()}


def answer_batches(
    actor: type, arguments: tuple, labels: Iterable[str], batches: int, resources: Resources, what: str
) -> dict[str, list[dict[str, Any]]]:
    """Has actors answer every batch with each encoder. Needs a Ray that is connected.

    Args:
        actor: answers a row of `encoder`, a label, and `batch`, a number, by a row that has these two and more.
        arguments: of its constructor.
        labels: of the encoders.
        batches: how many there are.
        resources: that the actors reserve.
        what: is being done, for the progress bar.

    Returns:
        For each encoder, by its label, the rows in the order of the batches.
    """
    import ray
    from ray.data import ActorPoolStrategy
    from tqdm import tqdm

    work = [{"encoder": label, "batch": index} for label in labels for index in range(batches)]
    answered = ray.data.from_items(work, override_num_blocks=len(work)).map(
        actor,
        fn_constructor_args=arguments,
        compute=ActorPoolStrategy(size=min(resources.actors, len(work))),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
    )
    bar = tqdm(answered.iter_rows(), total=len(work), desc=what, unit="batch")
    found = {(row["encoder"], row["batch"]): row for row in bar}
    return {label: [found[label, index] for index in range(batches)] for label in labels}
