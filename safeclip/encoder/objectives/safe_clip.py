"""The paper's objective."""

from typing import ClassVar

import torch

from safeclip.encoder.objectives.base import Embeddings, Objective, contrastive, distance


class SafeClip(Objective):
    """The eight terms of Safe-CLIP (Poppi et al., 2024, section 3.3; weights from the released training code).

    Unsafe items are drawn to the safe side of their quadruplet, as the original saw it, and safe items stay where
    the original saw them; across modalities by a contrastive term, within one by a cosine distance. Safe pairs
    without an unsafe side, which the paper has none of, join the terms of the safe items.
    """

    weights: ClassVar[dict[str, float]] = {
        "d(S,S_ref)": 0.10,
        "d(U,S_ref)": 0.10,
        "d(V,V_ref)": 0.10,
        "d(G,V_ref)": 0.20,
        "C(S,V_ref)": 0.25,
        "C(U,V_ref)": 0.25,
        "C(V,S_ref)": 0.25,
        "C(G,S_ref)": 0.50,
    }

    def losses(self, batch: Embeddings) -> dict[str, torch.Tensor]:
        """Returns the eight terms, scalars, unweighted."""
        text, text_ref = batch.safe("text")
        image, image_ref = batch.safe("image")
        return {
            "d(S,S_ref)": distance(text, text_ref),
            "d(U,S_ref)": distance(batch.unsafe_text, batch.safe_text_ref),
            "d(V,V_ref)": distance(image, image_ref),
            "d(G,V_ref)": distance(batch.unsafe_image, batch.safe_image_ref),
            "C(S,V_ref)": contrastive(text, image_ref),
            "C(U,V_ref)": contrastive(batch.unsafe_text, batch.safe_image_ref),
            "C(V,S_ref)": contrastive(image, text_ref),
            "C(G,S_ref)": contrastive(batch.unsafe_image, batch.safe_text_ref),
        }

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the weighted sum over eight, with weights that add up to one, as the released code does."""
        return super().total(losses) / sum(self.used.values()) / len(losses)
