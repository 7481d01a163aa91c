"""Zero-shot classification: a picture is of the class whose description is most like it (Radford et al., 2021)."""

from collections.abc import Callable, Sequence

import numpy as np

from safeclip.encoder.model import Encoder
from safeclip.evaluation.ranking import rank_targets

Template = Callable[[str], str]


def class_embeddings(encoder: Encoder, classes: Sequence[str], templates: Sequence[Template]) -> np.ndarray:
    """Returns one embedding a class (n, d), of unit length: the mean over its descriptions, each of unit length.

    Args:
        encoder: whose text tower embeds them.
        classes: names.
        templates: each makes a description of a name, as `open_clip.OPENAI_IMAGENET_TEMPLATES` do.
    """
    texts = [template(name) for name in classes for template in templates]
    return mean_of_descriptions(encoder.encode_texts(texts), len(classes))


def mean_of_descriptions(texts: np.ndarray, classes: int) -> np.ndarray:
    """Returns one embedding a class (m, d), of unit length, from those of its descriptions.

    Args:
        texts: (m t, d), all of the first class, then all of the second one …
        classes: how many, m.
    """
    means = texts.reshape(classes, -1, texts.shape[1]).mean(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def classify(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns whether each picture's own class is the most similar one, `top1`, and among the first five, `top5`.

    Args:
        images: embeddings (n, d) of unit length.
        classes: embeddings (m, d) of unit length; of equal similarities the first class counts.
        labels: int (n,), numbers of classes.
    """
    rank = rank_targets(images, classes, labels).rank
    return {"top1": rank < 1, "top5": rank < 5}
