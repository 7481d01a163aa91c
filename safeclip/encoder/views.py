"""Random views of training pictures: a little larger or smaller, a little to one side.

Unsafe pictures are few, and an encoder that sees the same ones epoch after epoch learns them by heart instead of
what is unsafe in them. A view is drawn for a row and a step, so neither workers nor a resume change it.
"""

import numpy as np
import torch
import torch.nn.functional as F

from safeclip.config import Views
from safeclip.records import row_seed


def choose_views(rows: np.ndarray, views: Views, *words: object) -> np.ndarray:
    """Draws the view of each row's picture.

    Args:
        rows: numbers of the rows, (n,).
        views: how many pictures get one, and how far it goes.
        words: what the draw depends on besides the row, such as a seed and a step.

    Returns:
        (n, 3): by what factor the picture is enlarged, and where its centre goes to the right and down, in shares of
        its side; 1, 0, 0 for a picture as it is.
    """
    chosen = np.zeros((len(rows), 3))
    for view, row in zip(chosen, rows, strict=True):
        random = np.random.default_rng(row_seed("view", *words, int(row)))
        view[:] = (1, 0, 0)
        if random.random() < views.share:
            view += random.uniform(-1, 1, 3) * (views.zoom, views.shift, views.shift)
    return chosen


def take_views(pixels: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
    """Returns views of pictures; what lies beyond an edge repeats the edge.

    Args:
        pixels: uint8 (n, 3, H, W).
        chosen: (n, 3), as `choose_views` returns them.

    Returns:
        uint8 (n, 3, H, W); a picture that stays as it is stays so bit for bit.
    """
    moved = np.flatnonzero((chosen != (1, 0, 0)).any(1))
    if not len(moved):
        return pixels
    zoom, right, down = torch.from_numpy(chosen[moved]).float().T
    # From places in the view to places in the picture, both from -1 to 1, so twice a share of the side.
    affine = torch.zeros(len(moved), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 / zoom
    affine[:, 0, 2], affine[:, 1, 2] = -2 * right / zoom, -2 * down / zoom
    before = pixels[moved].float()
    grid = F.affine_grid(affine, list(before.shape), align_corners=False)
    after = F.grid_sample(before, grid, padding_mode="border", align_corners=False)
    found = pixels.clone()
    found[moved] = after.round().clamp(0, 255).to(torch.uint8)
    return found
