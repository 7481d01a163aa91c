import torch

from safeclip.device import reserved_device


def device_of_a_machine_with_a_gpu():
    torch.cuda.is_available = lambda: True  # of this process, which ends with the task
    return reserved_device()


def test_a_task_that_reserved_no_gpu_uses_none_that_it_sees(ray_cluster):
    import ray

    assert ray.get(ray.remote(max_calls=1)(device_of_a_machine_with_a_gpu).remote()) == "cpu"
