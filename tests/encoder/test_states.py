import numpy as np
import open_clip
import pytest
import torch

from safeclip.encoder.load import load_encoder
from safeclip.encoder.model import text_states
from safeclip.encoder.states import PADDING, held_tokens, state_drift

OWN = ["a dagger beside a cat", "a skull and crossbones", "a cat! a bomb"]
HELD_TO = ["a small dog beside a cat", "a key", "a cat! a key"]
END = 49407


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("world:encoder")


def slow_drift(model, own, held_to):
    """Of one pair of texts: tokens without padding, filled up by hand, states compared one by one."""
    texts = [[t for t in open_clip.tokenize(text, 32)[0].tolist() if t] for text in (own, held_to)]
    length = max(map(len, texts)) + PADDING
    states = [text_states(model, torch.tensor([t + [END] * (length - len(t))]))[0].numpy() for t in texts]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*states, strict=True)]
    return 1 - np.mean(cosines)


@torch.no_grad()
def test_drift_is_the_mean_over_a_texts_own_tokens_whatever_else_is_in_the_batch(encoder):
    own, held_to, read = held_tokens(encoder.tokenizer(OWN), encoder.tokenizer(HELD_TO))
    wanted = text_states(encoder.model, held_to) * read.unsqueeze(-1)
    found = state_drift(text_states(encoder.model, own), wanted)
    expected = [slow_drift(encoder.model, *pair) for pair in zip(OWN, HELD_TO, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.01


def test_tokens_are_filled_up_with_the_end_token_and_cut_to_what_is_held(encoder):
    tokens, others = encoder.tokenizer(OWN), encoder.tokenizer(HELD_TO)
    own, held_to, read = held_tokens(tokens, others)
    ends = torch.maximum(tokens.argmax(1), others.argmax(1)) + 1 + PADDING
    assert own.shape == held_to.shape == read.shape == (3, int(ends.max()))
    assert torch.equal(read.sum(1), ends)
    for row, before in zip(own.tolist(), tokens.tolist(), strict=True):
        end = before.index(END)
        assert row == before[: end + 1] + [END] * (len(row) - end - 1)


def test_texts_that_fill_the_context_are_held_to_its_end(encoder):
    long = encoder.tokenizer(["cat " * 60])
    own, _, read = held_tokens(long, long)
    assert own.shape == long.shape
    assert bool(read.all())


def test_nothing_is_held_where_nothing_is_wanted():
    states = torch.randn(2, 4, 8, requires_grad=True)
    wanted = torch.zeros(2, 4, 8)
    wanted[0, 0] = states[0, 0].detach()
    drift = state_drift(states, wanted)
    assert drift.tolist() == pytest.approx([0, 0], abs=1e-6)
    drift.sum().backward()
    assert bool(torch.isfinite(states.grad).all())
