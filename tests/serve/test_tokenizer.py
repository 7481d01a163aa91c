import random
import string
import time

import open_clip

from serve.tokenizer import QuickTokenizer


def words(alphabet: str, lengths: range) -> list[str]:
    """Returns a random word of each length."""
    return ["".join(random.choices(alphabet, k=length)) for length in lengths]


def test_the_tokens_are_open_clips():
    random.seed(0)
    theirs = open_clip.SimpleTokenizer(context_length=40)
    known = random.sample(sorted(theirs.encoder), 300)
    texts = [word.replace("</w>", " ") for word in known]
    texts += ["", "a dog's house, No. 42!", "<start_of_text> x <end_of_text>", "&amp;amp; Ünïted", "a\u0301 \ufb03 ½"]
    for alphabet in (string.ascii_letters, string.digits + "a ", "=-", "aA", "日本語", "😀\U00020000"):
        texts += words(alphabet, range(1, 90))
    assert (QuickTokenizer(theirs)(texts) == theirs(texts)).all()


def test_long_words_are_quick_and_no_word_is_kept():
    random.seed(0)
    tokenizer = QuickTokenizer(open_clip.SimpleTokenizer())
    kept = len(tokenizer.cache)
    began = time.process_time()
    tokenizer(words(string.ascii_lowercase, range(1968, 2001)) + ["\U00020000" * 2000] * 32)
    assert time.process_time() - began < 10  # open_clip's own takes 70 s
    assert len(tokenizer.cache) == kept
