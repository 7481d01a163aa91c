"""Which device a process computes on, and whether it still answers."""


class LostGpuError(RuntimeError):
    """A GPU failed in a process that works for this one."""


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


def gpu_is_lost() -> bool:
    """Whether this process's GPU answers no more: after an illegal access or a failed assertion it never does again.

    An error that left it able to compute, such as memory that did not do, is no loss.
    """
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
