import pytest
import torch

from safeclip.encoder.data import Batch
from safeclip.encoder.gradients import backward
from safeclip.encoder.objectives import contrastive


def gradient(size: int, dropout: float = 0.0) -> torch.Tensor:
    """The gradient of a small module's weight for twelve rows of a contrastive loss, by parts of so many rows."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Dropout(dropout))
    rows = torch.randn(12, 5)
    parts = [Batch(part, part) for part in rows.split(size)]

    def embed(towers, batch):
        return torch.nn.functional.normalize(towers(batch.tokens), dim=-1)

    def losses_of(own):
        return {"total": contrastive(own, own.detach().roll(1, 0), scale=3.0)}

    def seed(part):
        torch.manual_seed(part)

    losses = backward(parts, embed, module, module, losses_of, seed=seed)
    found = module[0].weight.grad.clone()
    if dropout:  # the same from activations that are all held at once
        module.zero_grad()
        embedded = []
        for number, part in enumerate(parts):
            seed(number)
            embedded.append(embed(module, part))
        expected = losses_of(torch.cat(embedded))["total"]
        expected.backward()
        torch.testing.assert_close(losses["total"], expected)
        torch.testing.assert_close(found, module[0].weight.grad)
    return found


@pytest.mark.parametrize("size", [1, 5, 6])
def test_parts_add_up_to_the_gradient_of_the_whole(size):
    whole = gradient(12)
    assert whole.any()
    torch.testing.assert_close(gradient(size), whole)


@pytest.mark.parametrize("size", [5, 12])
def test_dropout_is_the_same_both_times_that_a_part_is_embedded(size):
    gradient(size, dropout=0.5)
