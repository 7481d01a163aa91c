"""CLIP's tokenizer for texts from anybody."""

from open_clip import SimpleTokenizer
from tokenizers.models import BPE


class QuickTokenizer(SimpleTokenizer):
    """The same tokens as open_clip's, in time that does not grow faster than a text, and no word is kept.

    open_clip's takes time that grows with the square of a word's length, 0.2 s for 2,000 letters, and keeps every
    word for ever.
    """

    def __init__(self, tokenizer: SimpleTokenizer):
        """Takes over a tokenizer's words and settings."""
        self.__dict__.update(tokenizer.__dict__)
        merges = list(tokenizer.bpe_ranks)  # by rank
        self.merger = BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>", cache_capacity=0)

    def bpe(self, token: str) -> str:
        """Returns the parts of a word, with spaces between them."""
        if token in self.cache:  # no more than the special tokens, which have no parts
            return self.cache[token]
        return " ".join(part.value for part in self.merger.tokenize(token))
