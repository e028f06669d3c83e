"""The forward process on a sentence of words, and its rates; no model needed.

Whole words stand in for tokens: every piece gets an id, and a list of everyday words supplies the
random replacements. The corruption is that of `lad.diffusion.corruption`.

Shapes: b = batch, t = positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.corruption import Plan, apply_plan, draw_plan
from lad.utils import InvalidInput, check_text
from lad.viz.noise import Corrupted, Rate

ALL_KINDS = ("mask", *KINDS)  # in the order in which they are applied
MASK = "MASK"
END = "END"  # fills what follows the answer, as EOS does for a model
GAP = "___"  # how a masked word is typed, see `lad.diffusion.drafts`
LONGEST = 200
EVERYDAY = (Path(__file__).parents[1] / "assets/everyday_words.txt").read_text("utf-8").split()


@dataclass(frozen=True)
class Sentence:
    """A sentence as `(1, t)` ids of a small word list, of which 0 is MASK and the last is END."""

    pieces: tuple[str, ...]
    ids: Tensor
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, text: str, ends: int = 0) -> Sentence:
        """Split a text of 1 to 200 words and follow it with `ends` times END."""
        words = re.findall(r"\w+|[^\w\s]", check_text(text))
        if not 1 <= len(words) <= LONGEST:
            raise InvalidInput(f"{len(words)} words: expected a text of 1 to {LONGEST}")
        vocabulary = (MASK, *dict.fromkeys([*EVERYDAY, *words]), END)
        # The first and the last entry are not words: a typed "MASK" gets another id.
        number = {word: i for i, word in enumerate(vocabulary[1:-1], start=1)}
        ids = [number[word] for word in words] + [len(vocabulary) - 1] * ends
        return cls((*words, *[END] * ends), torch.tensor([ids]), vocabulary)

    def read(self, ids: Tensor) -> tuple[str, ...]:
        """The pieces that `(t,)` ids stand for."""
        return tuple(self.vocabulary[i] for i in ids.tolist())


def only(kind: str) -> CorruptionConfig:
    """A configuration in which one kind of `ALL_KINDS` acts alone, and always."""
    if kind == "mask":
        return CorruptionConfig(all_masked=0.0, mask_probability=1.0, kinds=())
    rates = {"all_masked": 0.0, "mask_probability": 0.0, "structural_probability": 1.0}
    return CorruptionConfig(**rates, kinds=(kind,))


def corrupted_positions(plan: Plan) -> dict[str, Tensor]:
    """Which positions each kind acts on: kind -> `(b, t)` bool."""
    swapped = plan.swap.clone()
    swapped[:, 1:] |= plan.swap[:, :-1]
    offset = torch.arange(plan.mask.shape[1]) - plan.shift_to[:, None]
    return {
        "mask": plan.mask,
        "swap": swapped,
        "duplicate": plan.copy_left | plan.copy_right,
        "replace": plan.replace,
        "shift": (offset >= 0) & (offset < plan.shift_length[:, None]),
    }


def corrupt(
    sentence: Sentence, severity: float, config: CorruptionConfig | None = None, seed: int = 0
) -> Corrupted:
    """A sentence under the corruption at severity p, 0 to 1, see `CorruptionConfig`."""
    size = len(sentence.vocabulary) - 1  # END is never a replacement
    answer = torch.ones_like(sentence.ids, dtype=torch.bool)
    plan = draw_plan(answer, size, 0, torch.Generator().manual_seed(seed), config, severity)
    after = apply_plan(sentence.ids, plan, 0)[0]
    where = {kind: positions[0] for kind, positions in corrupted_positions(plan).items()}
    causes = [tuple(kind for kind in ALL_KINDS if where[kind][i]) for i in range(len(after))]
    masked = tuple((after == 0).tolist())
    shares = {kind: float(positions.float().mean()) for kind, positions in where.items()}
    return Corrupted(sentence.pieces, sentence.read(after), masked, tuple(causes), shares)


def corrupt_text(text: str, kind: str, seed: int = 0) -> str:
    """A text with one more error of a kind of `ALL_KINDS`; "mask" hides a word behind ___."""
    words = text.split()
    least = 1 if kind in ("mask", "replace") else 2
    if len(words) < least:
        raise InvalidInput(f"{len(words)} words: expected at least {least} for {kind!r}")
    random = np.random.default_rng(seed)
    if kind in ("swap", "duplicate"):
        # Two equal neighbours would change places unseen.
        pairs = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        i = int(random.choice(pairs or [0]))
        words[i : i + 2] = [words[i + 1] if kind == "swap" else words[i], words[i]]
    elif kind == "replace":
        i = int(random.integers(len(words)))
        words[i] = str(random.choice([word for word in EVERYDAY if word != words[i]]))
    elif kind == "shift":
        length = min(int(random.integers(1, 4)), len(words) - 1)
        start = int(random.integers(len(words) - length + 1))
        near = [i for i in range(len(words) - length + 1) if 0 < abs(i - start) <= 4]
        to = int(random.choice(near))
        words[to : to + length] = words[start : start + length]
    else:
        visible = [i for i, word in enumerate(words) if word != GAP]
        words[int(random.choice(visible or [0]))] = GAP
    return " ".join(words)


def one_of_each(sentence: Sentence, severity: float) -> dict[str, Corrupted]:
    """The sentence under each kind alone, with two or more tokens changed, and then under all.

    A kind that cannot act shows the sentence as it was.
    """

    def first(config: CorruptionConfig, least_kinds: int) -> Corrupted:
        draws = (corrupt(sentence, severity, config, seed) for seed in range(200))
        found = (d for d in draws if d.changed >= 2 and len({*d.shown} - {""}) >= least_kinds)
        return next(found, corrupt(sentence, severity, config))

    everything = CorruptionConfig(all_masked=0.0, mask_probability=1.0)
    alone = {kind: first(only(kind), 1) for kind in ALL_KINDS}
    return alone | {"all of them": first(everything, 4)}


def drawn_rates(
    severities: Sequence[float], config=None, length=256, rows=400, seed=0
) -> list[Rate]:
    """How often each kind acts, counted on `rows` answers of `length` tokens, none masked whole.

    A rate is the share of positions, but for "shift" the share of answers. The interval is the
    mean ± 1.96 standard errors over answers: neighbouring positions are not independent.
    """
    config = replace(config or CorruptionConfig(), all_masked=0.0)
    generator = torch.Generator().manual_seed(seed)
    answer, rates = torch.ones(rows, length, dtype=torch.bool), []
    for severity in severities:
        plan = draw_plan(answer, 1000, 0, generator, config, severity)
        for kind, positions in corrupted_positions(plan).items():
            if kind in config.kinds or kind == "mask":
                share = positions.any(1).double() if kind == "shift" else positions.double().mean(1)
                mean, half = float(share.mean()), 1.96 * float(share.std()) / rows**0.5
                rates.append(Rate(kind, float(severity), mean, mean - half, mean + half))
    return rates


def masked_shares(rows: int = 4000) -> np.ndarray:
    """Share of an answer that is masked, for each of `rows` training answers: `(rows,)` float64."""
    answer = torch.ones(rows, 256, dtype=torch.bool)
    plan = draw_plan(answer, 1000, 0, torch.Generator().manual_seed(0))
    return plan.mask.double().mean(1).numpy()
