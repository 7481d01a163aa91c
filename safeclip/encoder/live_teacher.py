"""The teacher at work beside the student, for what its embeddings, computed once, do not tell.

Those are embeddings of pictures as a step shows them, in views, and the states of texts, which are too many to keep.
"""

import torch

from safeclip.encoder.data import Batch
from safeclip.encoder.model import Encoder, text_states
from safeclip.encoder.placement import Placement
from safeclip.encoder.states import held_tokens


class LiveTeacher:
    """The base encoder, whose weights and modes nobody changes."""

    def __init__(self, encoder: Encoder, placement: Placement) -> None:
        """Takes the base encoder over, which is on the placement's device."""
        self.model, self.normalize_pixels, self.placement = encoder.model, encoder.normalize_pixels, placement

    @torch.no_grad()
    def embed_safe_pictures(self, batch: Batch, rows: int, at_once: int | None = None) -> torch.Tensor:
        """Returns embeddings (B + P, d), float32, of a batch's safe pictures, those of quadruplets first.

        Args:
            batch: safe items, unsafe items, safe pairs; on the CPU.
            rows: how many quadruplets are in it, B.
            at_once: how many pictures pass through the tower at a time; all unless given.
        """
        safe = self.placement.put(torch.cat([batch.pixels[:rows], batch.pixels[2 * rows :]]))
        parts = safe.split(at_once or len(safe))
        with self.placement.autocast():
            found = [self.model.encode_image(self.normalize_pixels(part), normalize=True) for part in parts]
        return torch.cat(found).float()

    @torch.no_grad()
    def hold_texts(self, batch: Batch, rows: int, at_once: int | None = None) -> Batch:
        """Returns a batch with the states that its texts are held to: the teacher's, of the safe text of their row.

        Args:
            batch: safe items, unsafe items, safe pairs; on the CPU.
            rows: how many quadruplets are in it, B.
            at_once: how many texts pass through the tower at a time; all unless given.
        """
        tokens = batch.tokens
        safe = torch.cat([tokens[:rows], tokens[:rows], tokens[2 * rows :]])
        tokens, safe, read = held_tokens(tokens, safe)
        once = self.placement.put(torch.cat([safe[:rows], safe[2 * rows :]]))
        with self.placement.autocast():
            parts = [text_states(self.model, part).float() for part in once.split(at_once or len(once))]
        states = torch.cat(parts)
        wanted = torch.cat([states[:rows], states]) * self.placement.put(read).unsqueeze(-1)
        return Batch(tokens, batch.pixels, wanted)
