from pathlib import Path

import numpy as np
import pytest
import torch

from safeclip.encoder.group import Group
from tests.processes import work_as_two


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_shares_are_the_batch_in_order(workers):
    batch = np.random.default_rng(0).permutation(10)
    assert np.array_equal(np.concatenate([Group(rank, workers).share(batch) for rank in range(workers)]), batch)


def _gather(rank: int, folder: Path) -> None:
    own = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).add(10 * rank).requires_grad_()
    found = Group(rank, 2).gather(own)
    (found * torch.arange(8).view(2, 2, 2)).sum().backward()
    torch.save((found.detach(), own.grad), folder / f"{rank}.pt")


def test_gathered_rows_are_those_of_all_workers_and_only_the_own_ones_carry_a_gradient(tmp_path):
    work_as_two(_gather, tmp_path, tmp_path)
    expected = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[11.0, 12.0], [13.0, 14.0]]])
    for rank in range(2):
        found, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found, expected)
        assert torch.equal(gradient, torch.arange(8.0).view(2, 2, 2)[rank])


def test_a_worker_that_is_alone_gathers_its_own_rows():
    own = torch.ones(3, 2)
    assert torch.equal(Group().gather(own), own.unsqueeze(0))
