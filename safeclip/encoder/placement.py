"""Where a worker computes, and in which type."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Placement:
    """A device, and the type that matrix products are computed in there."""

    device: str = "cpu"
    dtype: str = "float32"
    """`bfloat16` for autocast to it."""

    def autocast(self) -> torch.autocast:
        """Returns the context to compute in."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the CPU in memory that a GPU reads by itself; as it is where there is no GPU."""
        return tensor.pin_memory() if self.device.startswith("cuda") and tensor.device.type == "cpu" else tensor

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor on the device, without waiting for the device to be done with what it has."""
        return self.pin(tensor).to(self.device, non_blocking=True)
