"""Which tokens of an option are hidden when its likelihood is read.

Shapes: s = samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["drawn", "left_to_right", "sample_masks"]


def sample_masks(
    lengths: Sequence[int], samples: int, seed: int, key: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks for options of these lengths, from the same random numbers.

    Returns:
        For each option `(s, length)` bool, True is masked, and `(s,)` the weights length / masked.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    # In equal steps from 0 to 1, and then in any order, so that l and the places are unrelated.
    shares = generator.permutation((np.arange(samples) + generator.random(samples)) / samples)
    places = generator.random((samples, max(lengths)))
    masks = []
    for length in lengths:
        count = 1 + np.floor(shares * length).astype(int).clip(max=length - 1)  # (s,)
        rank = places[:, :length].argsort(axis=1).argsort(axis=1)
        masks.append((rank < count[:, None], length / count))
    return masks


def drawn(masks: np.ndarray, weights: np.ndarray) -> Iterator[tuple]:
    """Each distinct mask, where it is read, with which weight, and which samples it is."""
    distinct, which = np.unique(masks, axis=0, return_inverse=True)
    for number, mask in enumerate(distinct):
        samples = np.flatnonzero(which.ravel() == number)
        yield mask, np.flatnonzero(mask), float(weights[samples[0]]), samples


def left_to_right(length: int) -> Iterator[tuple]:
    """The same for a sum over tokens, each read behind those before it: one sample."""
    for place in range(length):
        yield np.arange(length) >= place, np.array([place]), 1.0, np.array([0])
