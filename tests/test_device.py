import subprocess
import sys

import pytest
import torch

from safeclip.actors import leaving_lost_gpu
from safeclip.device import gpu_is_lost, reserved_device


def device_of_a_machine_with_a_gpu():
    torch.cuda.is_available = lambda: True  # of this process, which ends with the task
    return reserved_device()


def test_a_task_that_reserved_no_gpu_uses_none_that_it_sees(ray_cluster):
    import ray

    assert ray.get(ray.remote(max_calls=1)(device_of_a_machine_with_a_gpu).remote()) == "cpu"


@pytest.mark.parametrize("answers", [True, False])
def test_a_gpu_is_lost_where_it_no_longer_answers(monkeypatch, answers):
    def synchronize():
        if not answers:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    assert not gpu_is_lost(), "there is none"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert gpu_is_lost() is not answers


def test_an_error_that_the_process_survives_is_handed_on():
    with pytest.raises(ValueError, match="of the caller's"), leaving_lost_gpu():
        raise ValueError("of the caller's")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("work", "lost"),
    [
        ("torch.zeros(3, device='cuda')[torch.tensor([5], device='cuda')].cpu()", True),
        ("torch.empty(2**50, device='cuda')", False),
    ],
)
def test_a_failed_assertion_loses_the_gpu_and_too_little_memory_does_not(work, lost):
    code = f"import torch; from safeclip.actors import leaving_lost_gpu\nwith leaving_lost_gpu():\n    {work}"
    ended = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert ended.returncode == 1
    assert ("the GPU is lost to this process" in ended.stderr) == lost, ended.stderr
