"""An objective for a training that is to be met by a second worker."""

import time

import torch.distributed as dist

from safeclip.encoder.objectives import SafeClip


class Waiting(SafeClip):
    """A single worker comes as far as half of the steps, and waits there to be replaced by two."""

    def losses(self, batch):
        if batch.progress > 0.5 and dist.get_world_size() == 1:
            time.sleep(300)
        return super().losses(batch)
