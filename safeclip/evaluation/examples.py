"""Unsafe queries with their first results before and after, for showing."""

from dataclasses import dataclass

import numpy as np

from safeclip.evaluation.embeddings import EmbeddedSet
from safeclip.evaluation.retrieval import TaskResult
from safeclip.evaluation.sets import EvaluationSet

# Task, what the query is, what the results are.
_SHOWN = (
    ("unsafe_text_to_all_images", "unsafe_caption", "safe_image", "unsafe_image"),
    ("unsafe_image_to_all_texts", "unsafe_image", "safe_caption", "unsafe_caption"),
)
_QUERIES = 8  # of each kind, at most


@dataclass(frozen=True)
class Item:
    """A text, or an encoded picture."""

    content: str | bytes
    unsafe: bool
    caption: str
    """The text itself, or what the picture shows."""
    wanted: bool = False
    """Whether it is the paired safe item that the query ought to find."""

    @property
    def is_text(self) -> bool:
        """Whether it is a text."""
        return isinstance(self.content, str)


@dataclass(frozen=True)
class Example:
    """A query and its first results with each encoder, best first."""

    concept: str
    query: Item
    results: dict[str, list[Item]]


def choose_queries(concepts: list[str], seed: int, limit: int) -> list[int]:
    """Draws queries at random, one a concept as long as there are new ones, so that nothing is hand-picked.

    Args:
        concepts: of each query.
        seed: of the draw.
        limit: how many queries at most.

    Returns:
        Indices, in the order of their concepts.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(concepts))
    first = {concepts[i]: int(i) for i in reversed(order)}
    chosen = [first[concept] for concept in sorted(first)]
    rest = [int(i) for i in order if int(i) not in chosen]
    return (chosen + rest)[:limit]


def make_examples(
    source: EvaluationSet,
    embedded: EmbeddedSet,
    results: dict[str, dict[str, TaskResult]],
    seed: int,
) -> list[Example]:
    """Returns unsafe texts that search pictures, then unsafe pictures that search texts.

    Args:
        source: the set.
        embedded: the set's rows.
        results: of `run_tasks`, for each encoder by its label.
        seed: of the draw.
    """
    texts, images = (choose_queries(embedded.concepts, seed + k, _QUERIES) for k in (0, 1))
    chosen = [(task, i) for task, queries in zip(_SHOWN, (texts, images), strict=True) for i in queries]
    n = len(embedded.ids)
    needed = {i for _, i in chosen} | {
        int(j) % n for (task, *_), i in chosen for found in results.values() for j in found[task].ranking.first[i]
    }
    rows = _read_rows(source, embedded, needed)

    def item(place: int, row: int, columns: tuple[str, str], query: int) -> Item:
        unsafe = place < n  # in the union of both, unsafe items come first
        side = "unsafe" if unsafe else "safe"
        return Item(rows[row][columns[unsafe]], unsafe, rows[row][f"{side}_caption"], not unsafe and row == query)

    examples = []
    for (task, asked, safe, unsafe), i in chosen:
        examples.append(
            Example(
                embedded.concepts[i],
                Item(rows[i][asked], True, rows[i]["unsafe_caption"]),
                {
                    label: [item(int(j), int(j) % n, (safe, unsafe), i) for j in found[task].ranking.first[i]]
                    for label, found in results.items()
                },
            )
        )
    return examples


def _read_rows(source: EvaluationSet, embedded: EmbeddedSet, needed: set[int]) -> dict[int, dict]:
    """Reads the rows that are needed, from the files that they lie in."""
    rows = {}
    for file in sorted({embedded.files[i] for i in needed}):
        by_id = {row["id"]: row for row in source.folder.read_table(file).to_pylist()}
        rows.update({i: by_id[embedded.ids[i]] for i in needed if embedded.files[i] == file})
    return rows
