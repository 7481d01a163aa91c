"""Which device a process computes on."""


def reserved_device() -> str:
    """Returns `cuda` where this process may use a GPU, `cpu` elsewhere.

    In Ray's tasks, actors and workers that is one that they reserved: the others see the machine's GPUs, too. Without
    Ray it is any that there is.
    """
    import ray
    import torch

    if ray.is_initialized() and not ray.get_gpu_ids():
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"
