"""The comparison of training on a GPU: its count of the arithmetic, and its course, on a tiny encoder."""

import json
from collections import Counter

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from safeclip.benchmarks.train_gpu import arithmetic, compare_training_on_gpu
from safeclip.config import Lora
from safeclip.encoder import worker
from safeclip.encoder.student import make_student
from safeclip.encoder.towers import TwoTowers
from safeclip.errors import UserError

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 48, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


class Plain:
    """Leaves pixels as they are but for their type."""

    def normalize_pixels(self, pixels):
        return pixels.float()


def test_the_count_is_what_torch_counts():
    torch.manual_seed(0)
    student = make_student(open_clip.CLIP(**TINY), Lora(rank=4))
    towers = TwoTowers(student, Plain()).train()
    counts = {}
    for items in (6, 12):
        tokens = torch.randint(1, 1000, (items, 11))
        pixels = torch.zeros(items, 3, 224, 224, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            towers(tokens, pixels).sum().backward()
        counts[items] = counter.get_total_flops()
    # A sample is two items. What does not depend on their number is the merging of the adapters.
    assert counts[12] - counts[6] == pytest.approx(6 / 2 * sum(arithmetic(TINY, 11, 4).values()), rel=1e-9)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    return "tiny-for-tests"


def test_every_candidate_is_measured(tiny):
    found = compare_training_on_gpu(1, "cpu", tiny, (2, 4), (), (8, 3), 64)
    json.dumps(found)
    assert set(found["candidates"]) == {"reference_recipe", "ours", "ours_2", "ours_4"}
    figures = found["figures"]
    assert figures["batch"] in (2, 4)
    share = found["candidates"]["ours"]["median"] * found["arithmetic"]["total"] / figures["matrix_tflops"] / 1e3
    assert figures["matrix_share"] == pytest.approx(share, rel=0.05)


def test_batches_that_do_not_fit_are_left_out_and_the_others_measured(tiny, monkeypatch, capsys):
    backward, steps = worker.backward, Counter()

    def with_little_memory(parts, *others, **named):
        done = backward(parts, *others, **named)
        steps[len(parts[0])] += 1
        if (len(parts[0]), steps[16]) == (16, 2) or len(parts[0]) == 10:  # as late as can be, half through an epoch
            raise torch.OutOfMemoryError
        return done

    monkeypatch.setattr(worker, "backward", with_little_memory)
    found = compare_training_on_gpu(1, "cpu", tiny, (2, 8, 4), (), (16, 3), 64)
    assert set(found["candidates"]) == {"reference_recipe", "ours", "ours_2", "ours_4"}
    assert {"memory_gib", "memory_gib_16"} <= found["figures"].keys()
    assert steps[8] == 2 + 4  # of batch 4: all steps to warm up and to measure, though batch 8 was cut off
    assert "ours_8: does not fit into cpu's memory, left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="no batch of 5 or more fits"):
        compare_training_on_gpu(1, "cpu", tiny, (5,), (), (16, 3), 64)
