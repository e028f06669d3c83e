"""The forward process on a sentence of words, and its rates; no model needed.

`lad/diffusion/corruption.py` works on token ids. Here whole words stand in for tokens: a sentence
is split at spaces and punctuation, every piece gets an id, and a list of everyday words supplies
the random replacements. A real tokenizer cuts finer and its vocabulary is some hundred times
larger; the corruption is the same code.

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
from lad.utils import InvalidInput
from lad.viz.noise import Corrupted, Rate

ALL_KINDS = ("mask", *KINDS)  # in the order in which they are applied
MASK = "MASK"
END = "END"  # fills what follows the answer, as EOS does for a model
GAP = "___"  # how a masked word is typed, see `lad.diffusion.drafts`
LONGEST = 200
EVERYDAY = (Path(__file__).parents[1] / "assets/everyday_words.txt").read_text("utf-8").split()


@dataclass(frozen=True)
class Sentence:
    """A sentence as ids of a small word list.

    Attributes:
        pieces: its words and punctuation marks, then the END that fills the rest of the window.
        ids: `(1, t)` int64.
        vocabulary: what each id stands for; id 0 is MASK and the last id is END.
    """

    pieces: tuple[str, ...]
    ids: Tensor
    vocabulary: tuple[str, ...]

    @classmethod
    def of(cls, text: str, ends: int = 0) -> Sentence:
        """Split a text of 1 to 200 words (or InvalidInput), and follow it with `ends` times END."""
        words = re.findall(r"\w+|[^\w\s]", text)
        if not 1 <= len(words) <= LONGEST:
            raise InvalidInput(f"{len(words)} words: expected a text of 1 to {LONGEST}")
        pieces = (*words, *[END] * ends)
        vocabulary = (MASK, *dict.fromkeys([*EVERYDAY, *words]), END)
        # The first and the last entry are not words: a typed "MASK" gets another id.
        number = {word: i for i, word in enumerate(vocabulary[1:-1], start=1)}
        ids = [number[word] for word in words] + [len(vocabulary) - 1] * ends
        return cls(pieces, torch.tensor([ids]), vocabulary)

    def read(self, ids: Tensor) -> tuple[str, ...]:
        """The pieces that `(t,)` ids stand for."""
        return tuple(self.vocabulary[i] for i in ids.tolist())


def only(kind: str) -> CorruptionConfig:
    """A configuration in which one kind of `ALL_KINDS` acts alone, and always."""
    _check_kind(kind)
    if kind == "mask":
        return CorruptionConfig(all_masked=0.0, mask_probability=1.0, kinds=())
    return CorruptionConfig(
        all_masked=0.0, mask_probability=0.0, structural_probability=1.0, kinds=(kind,)
    )


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
    """A sentence under the corruption.

    Args:
        severity: p, from 0 to 1.
        config: which kinds and how much; the paper's by default.
    """
    mask_id, vocabulary_size = 0, len(sentence.vocabulary) - 1  # END is never a replacement
    answer = torch.ones_like(sentence.ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    plan = draw_plan(answer, vocabulary_size, mask_id, generator, config, severity)
    after = apply_plan(sentence.ids, plan, mask_id)[0]
    where = {kind: positions[0] for kind, positions in corrupted_positions(plan).items()}
    return Corrupted(
        before=sentence.pieces,
        after=sentence.read(after),
        masked=tuple((after == mask_id).tolist()),
        causes=tuple(
            tuple(kind for kind in ALL_KINDS if where[kind][i]) for i in range(len(sentence.pieces))
        ),
        shares={kind: float(positions.float().mean()) for kind, positions in where.items()},
    )


def corrupt_text(text: str, kind: str, seed: int = 0) -> str:
    """A text with one more thing wrong in it; words stand in for tokens.

    Args:
        kind: "swap" exchanges two neighbours, "duplicate" writes a word over its neighbour,
            "replace" puts an everyday word in a word's place, "shift" copies one to three words to
            somewhere near, over what stood there, and "mask" hides a word behind ___.
    """
    _check_kind(kind)
    words = text.split()
    least = {"mask": 1, "replace": 1}.get(kind, 2)
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
        near = [start + by for by in range(-4, 5) if by]
        to = int(random.choice([i for i in near if 0 <= i <= len(words) - length]))
        words[to : to + length] = words[start : start + length]
    else:
        visible = [i for i, word in enumerate(words) if word != GAP]
        words[int(random.choice(visible or [0]))] = GAP
    return " ".join(words)


def one_of_each(sentence: Sentence, severity: float) -> dict[str, Corrupted]:
    """The sentence under each kind alone, and then under all of them.

    For each kind the first seed from 0 with which at least two tokens change: most draws of a rare
    kind, such as "shift", would show nothing. A kind that cannot act, as "swap" on a single word,
    shows the sentence as it was. Under all of them, the first seed in which four kinds are seen.
    """

    def first(config: CorruptionConfig, least_kinds: int) -> Corrupted:
        draws = (corrupt(sentence, severity, config, seed) for seed in range(200))
        found = (d for d in draws if d.changed >= 2 and len({*d.shown} - {""}) >= least_kinds)
        return next(found, corrupt(sentence, severity, config))

    everything = CorruptionConfig(all_masked=0.0, mask_probability=1.0)
    return {kind: first(only(kind), 1) for kind in ALL_KINDS} | {
        "all of them": first(everything, 4)
    }


def drawn_rates(
    severities: Sequence[float],
    config: CorruptionConfig | None = None,
    length: int = 256,
    rows: int = 400,
    seed: int = 0,
) -> list[Rate]:
    """How often each kind acts, counted on `rows` answers of `length` tokens at each severity.

    Answers that are masked whole are left out: the other kinds act on none of them. A rate is the
    share of positions, but for "shift" the share of answers, as in
    `CorruptionConfig.expected_rates`. The interval is mean ± 1.96 standard errors over the answers, which are independent of one
    another (neighbouring positions are not).
    """
    config = replace(config or CorruptionConfig(), all_masked=0.0)
    generator = torch.Generator().manual_seed(seed)
    answer = torch.ones(rows, length, dtype=torch.bool)
    rates = []
    for severity in severities:
        plan = draw_plan(answer, 1000, 0, generator, config, severity)
        for kind, positions in corrupted_positions(plan).items():
            if kind in config.kinds or kind == "mask":
                share = positions.any(1).double() if kind == "shift" else positions.double().mean(1)
                mean, half = float(share.mean()), 1.96 * float(share.std()) / rows**0.5
                rates.append(Rate(kind, float(severity), mean, mean - half, mean + half))
    return rates


def masked_shares(
    config: CorruptionConfig | None = None, length: int = 256, rows: int = 4000, seed: int = 0
) -> np.ndarray:
    """Share of an answer that is masked, for each of `rows` training answers: `(rows,)` float64."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.ones(rows, length, dtype=torch.bool)
    return draw_plan(answer, 1000, 0, generator, config).mask.double().mean(1).numpy()


def _check_kind(kind: str) -> None:
    if kind not in ALL_KINDS:
        raise InvalidInput(f"kind = {kind!r}: expected one of {', '.join(ALL_KINDS)}")
