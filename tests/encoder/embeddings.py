"""Embeddings drawn at random, for tests of what looks at them."""

import numpy as np
import torch

from safeclip.encoder.objectives import Embeddings, Nearest

SIDES = ("safe_text", "safe_image", "unsafe_text", "unsafe_image")


def random_embeddings(rows: int, width: int, seed: int, preserved: int = 0, progress: float = 1.0) -> Embeddings:
    """Unit vectors, float64; no two are alike."""
    random = np.random.default_rng(seed)

    def draw(count: int) -> torch.Tensor:
        vectors = random.normal(size=(count, width))
        return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    student = {side: draw(rows) for side in SIDES}
    teacher = {f"{side}_ref": draw(rows) for side in SIDES}
    pairs = {f"preserved_{name}": draw(preserved) for name in ("text", "image", "text_ref", "image_ref")}
    labels = {f"{kind}_unsafe": torch.from_numpy(random.random(rows) < 0.7) for kind in ("text", "image")}
    nearest = Nearest(*(draw(rows) for _ in range(4)), torch.linspace(0, 1, rows, dtype=torch.float64))
    drift = {
        f"{side}_drift": draw(n)[:, 0] + 1 for side, n in (("safe", rows), ("unsafe", rows), ("preserved", preserved))
    }
    return Embeddings(**student, **teacher, **pairs, **labels, **drift, progress=progress, nearest=nearest)


def embeddings_of(**sides: torch.Tensor) -> Embeddings:
    """These sides; the teacher's are the safe sides unless given, and there are no safe pairs."""
    text, image = sides["safe_text"], sides["safe_image"]
    none = text[:0]
    labels = torch.ones(len(text), dtype=torch.bool)
    others = {
        "safe_text_ref": text.detach(), "safe_image_ref": image.detach(), "unsafe_text_ref": text.detach(),
        "unsafe_image_ref": image.detach(), "preserved_text": none, "preserved_image": none,
        "preserved_text_ref": none.detach(), "preserved_image_ref": none.detach(),
        "text_unsafe": labels, "image_unsafe": labels,
    }  # fmt: skip
    return Embeddings(**{**others, **sides})
