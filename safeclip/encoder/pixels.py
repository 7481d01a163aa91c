"""Resized pictures, kept on a machine while it trains: each is decoded and resized once and not in every epoch."""

import errno
import os
from pathlib import Path

import numpy as np


class PixelStore:
    """Pictures of one size in a file that all workers of a machine may read and fill at the same time.

    Each picture is followed by a byte that is 1. It is written last, so a picture that is there is there as a whole;
    two workers that both miss a picture write the same bytes. The file is not mapped, for a full disk would end
    the process.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        """Opens the file, which may be removed as soon as every worker has it open.

        Args:
            path: of the file; one that is not there is made, readable by its owner alone.
            shape: of each picture, (3, H, W).
        """
        self.file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        self.path, self.size = path, int(np.prod(shape))
        self.is_full = False
        """Whether the disk was found full; what is not there yet is then left out."""

    def read(self, number: int, into: np.ndarray) -> bool:
        """Reads a picture, if it is there.

        Args:
            number: of the picture, from 0.
            into: uint8 (3, H, W), contiguous; of no meaning where the picture is not there.

        Returns:
            Whether it is there.
        """
        start = number * (self.size + 1)
        if os.pread(self.file.fileno(), 1, start + self.size) != b"\1":  # before the picture, which is whole then
            return False
        return os.preadv(self.file.fileno(), [into.data], start) == self.size

    def write(self, number: int, pixels: np.ndarray) -> None:
        """Keeps a picture, uint8 (3, H, W), contiguous, unless the disk is full."""
        if self.is_full:
            return
        try:
            os.pwritev(self.file.fileno(), [pixels.data, b"\1"], number * (self.size + 1))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.is_full = True
            print(f"encoder: no room in {self.path.parent}; some pictures are decoded every time (see TMPDIR)")
