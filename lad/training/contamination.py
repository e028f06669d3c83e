"""Text that training must not share with what is tested: how it is found.

Two texts overlap when one is the other, but for case and punctuation, or when they have 13 words in
a row in common, the length that GPT-3's authors chose.

Reference: Language Models are Few-Shot Learners, https://arxiv.org/abs/2005.14165, appendix C.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from lad.training.data import Pair

__all__ = ["NGRAM", "Passages", "contaminated", "normalised"]

NGRAM = 13  # words


def normalised(text: str) -> list[str]:
    """Words in lower case without punctuation: what counts as the same text."""
    return re.findall(r"[^\W_]+", text.lower())


class Passages:
    """Texts to keep away from, such as the questions of a benchmark."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Hashes: some benchmarks have millions of n-grams, and a tuple of words takes 20 times as
        # much room. Two that differ share one with a chance of about 1 in 10^12 for all of them.
        self._whole: set[int] = set()
        self._parts: set[int] = set()
        for text in texts:
            words = normalised(text)
            self._whole.add(hash(tuple(words)))
            self._parts.update(_parts(words))

    def are(self, text: str) -> bool:
        """True when one of them is `text`."""
        return hash(tuple(normalised(text))) in self._whole

    def share(self, text: str) -> bool:
        """True when one of them has 13 words in a row in common with `text`."""
        return not self._parts.isdisjoint(_parts(normalised(text)))


def _parts(words: list[str]) -> Iterator[int]:
    """Hashes of the n-grams of a text."""
    return map(hash, zip(*(words[i:] for i in range(NGRAM)), strict=False))


def contaminated(pairs: Iterable[Pair], passages: Passages | Iterable[str]) -> set[Pair]:
    """Pairs whose prompt is one of `passages`, or whose prompt or answer overlaps with one."""
    away = passages if isinstance(passages, Passages) else Passages(passages)
    return {
        pair
        for pair in pairs
        if away.are(pair.prompt) or away.share(pair.prompt) or away.share(pair.answer)
    }
