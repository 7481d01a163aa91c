"""A worker's place among those that train together: its share of a batch, and what all of them made of theirs."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """The workers of a training, as one of them sees them; by default it is alone."""

    rank: int = 0
    """Of this worker, among all."""
    workers: int = 1

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Returns the worker's part of a batch: the parts of all workers, in the order of ranks, are the batch."""
        return np.split(rows, self.workers)[self.rank]

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all workers (workers, N, …), in the order of ranks; only the own ones carry a gradient.

        Every worker computes the loss of the whole batch, so the sum of their gradients is the whole batch's.

        Args:
            own: rows of this worker (N, …).
        """
        if self.workers == 1:
            return own.unsqueeze(0)
        sent = own.detach().contiguous()
        parts = [torch.empty_like(sent) for _ in range(self.workers)]
        dist.all_gather(parts, sent)
        parts[self.rank] = own
        return torch.stack(parts)
