"""Text that training must not share with what is tested.

Two texts overlap when one is the other, but for case and punctuation, or when they have 13 words in
a row in common, the length that GPT-3's authors chose.

Reference: Language Models are Few-Shot Learners, https://arxiv.org/abs/2005.14165, appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

NGRAM = 13  # words


def normalised(text: str) -> list[str]:
    """Words in lower case without punctuation: what counts as the same text."""
    return re.findall(r"[^\W_]+", text.lower())


class Passages:
    """Texts that training pairs must not overlap with, such as the questions of a benchmark."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Hashes: some benchmarks have millions of n-grams, and a tuple of words takes 20 times as
        # much memory. A false match has a chance of about 1 in 10^12 for all of them.
        self._whole: set[int] = set()
        self._ngrams: set[int] = set()
        for text in texts:
            words = normalised(text)
            self._whole.add(hash(tuple(words)))
            self._ngrams.update(_ngrams(words))

    def overlap(self, prompt: str, *texts: str) -> bool:
        """True when one of them is the prompt, or has 13 words in a row in common with any text."""
        words = [normalised(text) for text in (prompt, *texts)]
        return hash(tuple(words[0])) in self._whole or any(
            not self._ngrams.isdisjoint(_ngrams(text)) for text in words
        )


def _ngrams(words: list[str]) -> Iterator[int]:
    return map(hash, zip(*(words[i:] for i in range(NGRAM)), strict=False))
