"""Which safe row an unsafe item is nearest to, in the frozen original: found once, before training."""

import torch

from safeclip.encoder.objectives import Nearest

BLOCK = 1024  # rows compared at once


class NearestSafe:
    """For each row of a split, the nearest safe row of a gallery, by caption and by picture."""

    def __init__(self, rows: dict[str, torch.Tensor], gallery: dict[str, torch.Tensor]) -> None:
        """Finds them, in blocks.

        Args:
            rows: the teacher's embeddings of a split, `unsafe_text_ref` and `unsafe_image_ref`, each (n, d).
            gallery: those of the rows to choose from, `safe_text_ref` and `safe_image_ref`, each (m, d).
        """
        self.gallery = gallery
        self.text, text_cosine = _nearest(rows["unsafe_text_ref"], gallery["safe_text_ref"])
        self.image, image_cosine = _nearest(rows["unsafe_image_ref"], gallery["safe_image_ref"])
        ranks = (text_cosine + image_cosine).argsort(descending=True).argsort()
        self.difficulty = ranks.float() / max(1, len(ranks) - 1)

    def of(self, rows: torch.Tensor, device: str = "cpu") -> Nearest:
        """Returns what an objective gets for rows, by their numbers, on a device."""
        text, image = self.text[rows], self.image[rows]
        found = (
            self.gallery["safe_text_ref"][text],
            self.gallery["safe_image_ref"][text],
            self.gallery["safe_text_ref"][image],
            self.gallery["safe_image_ref"][image],
            self.difficulty[rows],
        )
        return Nearest(*(value.to(device) for value in found))


def _nearest(queries: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the row number in the gallery and the cosine of each query's most similar item, shapes (n,)."""
    found = [(queries[start : start + BLOCK] @ gallery.T).max(1) for start in range(0, len(queries), BLOCK)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])
