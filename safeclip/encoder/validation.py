"""How good a student is on the validation split: loss by name, and the recalls that select a model."""

import torch

from safeclip.encoder.objectives import Embeddings, Objective

BLOCK = 1024  # rows of a contrastive term, whatever the batch that training uses


def validation_losses(embeddings: Embeddings, objective: Objective) -> dict[str, float]:
    """Returns an objective's terms and their `total` over a whole split.

    The split is taken in fixed blocks of rows, so neither the batch nor the number of workers changes a loss.
    """
    rows = len(embeddings.safe_text)
    sums: dict[str, float] = {}
    for start in range(0, rows, BLOCK):
        block = embeddings.part(start, start + BLOCK)
        losses = objective.losses(block)
        losses = {"total": objective.total(losses), **losses}
        share = len(block.safe_text) / rows
        sums = {name: sums.get(name, 0.0) + share * float(loss) for name, loss in losses.items()}
    return sums


def recall_at_1(queries: torch.Tensor, gallery: torch.Tensor) -> float:
    """Returns the share of queries (n, d) whose most similar gallery item (n, d) has the same row number."""
    hits = 0
    for start in range(0, len(queries), BLOCK):
        best = (queries[start : start + BLOCK] @ gallery.T).argmax(1)
        hits += int((best == torch.arange(start, start + len(best), device=best.device)).sum())
    return hits / max(1, len(queries))


def recall_sum(embeddings: Embeddings) -> float:
    """Returns the sum of R@1, at most 6, by which the paper selects: S↔V, S↔G and U↔V, in both directions."""
    pairs = (
        (embeddings.safe_text, embeddings.safe_image),
        (embeddings.safe_text, embeddings.unsafe_image),
        (embeddings.unsafe_text, embeddings.safe_image),
    )
    return sum(recall_at_1(a, b) + recall_at_1(b, a) for a, b in pairs)
