import copy

import numpy as np
import pytest
import torch
from torch import nn

from safeclip.encoder.data import Rows
from safeclip.encoder.load import load_encoder
from safeclip.encoder.negation import _negate, negate_unsafe_weights
from tests.encoder.quadruplets import render_quadruplets


def test_the_weights_that_matter_most_to_unsafe_features_change_their_sign():
    weight = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    safe, unsafe = torch.tensor([1.0, 1.0, 5.0]), torch.tensor([2.0, 3.0, 1.0])
    # |weight| * (unsafe - safe) is [[1, 4, -12], [0.5, 8, -4]]: the two largest lie in the second column.
    expected = torch.tensor([[1.0, 2.0, 3.0], [0.5, -4.0, -1.0]])
    assert _negate(weight, safe, unsafe, 2 / 6) == 2
    assert torch.equal(weight, expected)


def test_weights_that_matter_more_to_safe_features_are_left_whatever_the_share():
    layer = nn.Linear(3, 2, bias=False)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        assert _negate(layer.weight, torch.ones(3), torch.zeros(3), 1.0) == 0
    assert torch.equal(layer.weight, before)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


def test_an_encoder_is_changed_in_both_towers_and_the_base_is_not(encoder):
    batch = Rows(render_quadruplets(12, seed=3), encoder).batch(np.arange(12))
    before = copy.deepcopy(encoder.model.state_dict())
    model, negated = negate_unsafe_weights(encoder, batch.part(0, 12), batch.part(12, 24), 0.001)
    after = model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in encoder.model.state_dict().items())
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(name.startswith("visual.") for name in changed)
    assert any(name.startswith("transformer.") for name in changed)
    assert all(torch.equal(after[name].abs(), before[name].abs()) for name in changed)
    assert sum(int((after[name] != before[name]).sum()) for name in changed) == negated > 0
