"""What pictures drawn of safe prompts are compared with: a set's safe side, as the untouched base encoder sees it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safeclip.artifacts import Folder
from safeclip.config import Config
from safeclip.errors import UserError
from safeclip.evaluation.batches import Missing
from safeclip.evaluation.embeddings import EmbeddedSet, embed_sets
from safeclip.evaluation.encoders import Source, identify, resolve
from safeclip.evaluation.sets import EvaluationSet


@dataclass(frozen=True)
class Reference:
    """The base encoder, and its embeddings of n quadruplets' safe sides."""

    encoder: Source
    """What `load_from` takes."""
    identity: str
    """As `identify` tells it."""
    ids: list[str]
    """Of the quadruplets."""
    texts: np.ndarray
    """Of the safe captions: float32 (n, d), of unit length."""
    images: np.ndarray
    """Of the safe pictures: float32 (n, d), of unit length."""

    def of(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the embeddings of some quadruplets' safe captions and pictures, in the order of the ids."""
        places = {each: row for row, each in enumerate(self.ids)}
        rows = [places[each] for each in ids]
        return self.texts[rows], self.images[rows]


def find_reference(
    config: Config,
    source: EvaluationSet,
    embedded: EmbeddedSet,
    encoders: dict[str, Source],
    identities: dict[str, str],
    cache: Folder,
) -> Reference | Missing:
    """Returns the base encoder's view of a set, or why there is none.

    Needs a Ray that is connected, unless the base is one of the encoders that the set was embedded with.

    Args:
        config: names the base (`train.base`), and says how to embed.
        source: the set.
        embedded: the set, embedded with some encoders.
        encoders: these, by label.
        identities: of these, as `identify` tells them.
        cache: where embeddings are kept.
    """
    base = resolve(config.train.base)
    label = next((label for label, encoder in encoders.items() if encoder == base), None)
    if label is None:
        label = "base"
        try:
            identities = identify({label: base})
            embedded = embed_sets([source], {label: base}, config.evaluate, cache, identities)[source.name]
        except UserError as error:
            return Missing(str(error))
    sides = embedded.embeddings[label]
    return Reference(base, identities[label], embedded.ids, sides.safe_text, sides.safe_image)
