"""What the forward process does to a sentence, in words and in numbers; no model needed.

The noise of `lad/diffusion/corruption.py` works on token ids and never asks what they mean. To show it,
whole words stand in for tokens here: a sentence is split at spaces and punctuation, every piece
gets an id, and a list of everyday words supplies the random replacements. A real tokenizer cuts
finer and its vocabulary is some hundred times larger; the noise is the same code.

Shapes: b = batch, t = positions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.corruption import Plan, apply_plan, draw_plan
from lad.utils import InvalidInput

__all__ = [
    "DAMAGES",
    "END",
    "MASK",
    "Damage",
    "Rate",
    "Sentence",
    "damage",
    "damage_text",
    "drawn_rates",
    "masked_shares",
    "one_of_each",
    "only",
    "touched",
]

DAMAGES = ("mask", *KINDS)  # in the order in which they are applied
MASK = "MASK"
END = "END"  # fills what follows the answer, as EOS does for a model
GAP = "___"  # how a hidden word is typed, see `lad.diffusion.drafts`
LONGEST = 200

_WORDS = """
about after again air all also and animal answer any apple around at away back be before behind
bird black blue boat book bread bridge bring build but by call came can car cat child city clean
clear clock close cloud cold come country dance day deep dog door down draw drink drive dry each
early earth easy eat end evening every fall family far feel few field find fire first fish five
flower fly food forest four free fresh friend from full game garden give go gold good grass great
green ground grow half hand happy hard head hear heart heavy help here high hill hold home hot
hour house how ice idea in iron island jump keep key kind king kitchen lake land large last late
learn leave left letter light like line listen little live long look lost loud love low make man
many market may meet milk mind money moon morning mountain mouth move much music name near new
next night not now number ocean of often old on once one open or orange other our out over paper
park path people plant play pull push put queen quick quiet rain read red rest rich right river
road rock room round run say school sea second see sharp ship shoe shop short show side silver
sing sky sleep slow small smile snow soap soft some song soon spring stand star stone stop story
street strong sugar summer sun sweet swim table take talk tall tell that the then there thin think
three time to today together town train tree true turn two under up use very voice wait walk wall
warm wash water way we wet when white wide wild wind window winter wise with wood word work world
write year yellow yes young
"""
EVERYDAY = _WORDS.split()


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
        """Split a text, and follow it with `ends` times END.

        Raises:
            InvalidInput: no word in it, or more than 200.
        """
        words = re.findall(r"\w+|[^\w\s]", text)
        if not 1 <= len(words) <= LONGEST:
            raise InvalidInput(f"{len(words)} words: expected a text of 1 to {LONGEST}")
        pieces = (*words, *[END] * ends)
        vocabulary = (MASK, *dict.fromkeys([*EVERYDAY, *words]), END)
        # The first and the last entry are not words, whatever somebody types.
        number = {word: i for i, word in enumerate(vocabulary[1:-1], start=1)}
        ids = [number[word] for word in words] + [len(vocabulary) - 1] * ends
        return cls(pieces, torch.tensor([ids]), vocabulary)

    def read(self, ids: Tensor) -> tuple[str, ...]:
        """The pieces that `(t,)` ids stand for."""
        return tuple(self.vocabulary[i] for i in ids.tolist())


@dataclass(frozen=True)
class Damage:
    """One sentence before and after the noise.

    Attributes:
        before, after: t pieces each.
        masked: for each position, whether it shows MASK now.
        causes: for each position the kinds that touched it, of `DAMAGES`, in order.
        shares: kind -> share of positions it touched in this draw.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    masked: tuple[bool, ...]
    causes: tuple[tuple[str, ...], ...]
    shares: dict[str, float]

    @property
    def changed(self) -> int:
        """Number of positions that show something else than before."""
        return sum(a != b for a, b in zip(self.before, self.after, strict=True))

    @property
    def shown(self) -> tuple[str, ...]:
        """For each position what a viewer should be told: "mask", the last cause, or ""."""
        return tuple(
            "mask" if masked else (causes[-1] if causes else "")
            for masked, causes in zip(self.masked, self.causes, strict=True)
        )


@dataclass(frozen=True)
class Rate:
    """How often a kind of noise acted at one severity, with a 95 % interval over the rows drawn."""

    kind: str
    severity: float
    mean: float
    low: float
    high: float


def only(kind: str, config: CorruptionConfig | None = None) -> CorruptionConfig:
    """A configuration in which one kind of noise acts alone, and always.

    Raises:
        InvalidInput: not one of `DAMAGES`.
    """
    if kind not in DAMAGES:
        raise InvalidInput(f"kind = {kind!r}: expected one of {', '.join(DAMAGES)}")
    config = replace(config or CorruptionConfig(), all_masked=0.0)
    if kind == "mask":
        return replace(config, mask_probability=1.0, kinds=())
    return replace(config, mask_probability=0.0, structural_probability=1.0, kinds=(kind,))


def touched(plan: Plan) -> dict[str, Tensor]:
    """Which positions each kind acts on: kind -> `(b, t)` bool."""
    swapped = plan.swap.clone()
    swapped[:, 1:] |= plan.swap[:, :-1]
    position = torch.arange(plan.mask.shape[1], device=plan.mask.device)
    offset = position - plan.shift_to[:, None]
    return {
        "mask": plan.mask,
        "swap": swapped,
        "duplicate": plan.copy_left | plan.copy_right,
        "replace": plan.replace,
        "shift": (offset >= 0) & (offset < plan.shift_length[:, None]),
    }


def damage(
    sentence: Sentence, severity: float, config: CorruptionConfig | None = None, seed: int = 0
) -> Damage:
    """Damage one sentence.

    Args:
        severity: p, from 0 to 1.
        config: which noise and how much; the paper's by default.
        seed: of a generator of its own.
    """
    mask_id, vocabulary_size = 0, len(sentence.vocabulary) - 1  # END is never a replacement
    answer = torch.ones_like(sentence.ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    plan = draw_plan(answer, vocabulary_size, mask_id, generator, config, severity)
    after = apply_plan(sentence.ids, plan, mask_id)[0]
    where = {kind: positions[0] for kind, positions in touched(plan).items()}
    return Damage(
        before=sentence.pieces,
        after=sentence.read(after),
        masked=tuple((after == mask_id).tolist()),
        causes=tuple(
            tuple(kind for kind in DAMAGES if where[kind][i]) for i in range(len(sentence.pieces))
        ),
        shares={kind: float(positions.float().mean()) for kind, positions in where.items()},
    )


def damage_text(text: str, kind: str, seed: int = 0) -> str:
    """A text with one more thing wrong in it; words stand in for tokens.

    Args:
        kind: "swap" exchanges two neighbours, "duplicate" writes a word over its neighbour,
            "replace" puts an everyday word in a word's place, "shift" copies one to three words to
            somewhere near, over what stood there, and "mask" hides a word behind ___.
        seed: of a generator of its own.

    Raises:
        InvalidInput: not one of `DAMAGES`, or too few words for it.
    """
    if kind not in DAMAGES:
        raise InvalidInput(f"kind = {kind!r}: expected one of {', '.join(DAMAGES)}")
    words = text.split()
    least = {"mask": 1, "replace": 1}.get(kind, 2)
    if len(words) < least:
        raise InvalidInput(f"{len(words)} words: expected at least {least} for {kind!r}")
    random = np.random.default_rng(seed)
    if kind == "swap":
        # Two equal neighbours would change places unseen.
        pairs = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        i = int(random.choice(pairs or [0]))
        words[i : i + 2] = [words[i + 1], words[i]]
    elif kind == "duplicate":
        pairs = [i for i in range(len(words) - 1) if words[i] != words[i + 1]]
        i = int(random.choice(pairs or [0]))
        words[i + 1] = words[i]
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
        open_ = [i for i, word in enumerate(words) if word != GAP]
        words[int(random.choice(open_ or [0]))] = GAP
    return " ".join(words)


def one_of_each(sentence: Sentence, severity: float) -> dict[str, Damage]:
    """The sentence under each kind of noise alone, and then under all of them.

    For each kind the first seed from 0 with which at least two tokens change: most draws of a rare
    kind, such as "shift", would show nothing. A kind that cannot act, as "swap" on a single word,
    shows the sentence as it was. Under all of them, the first seed in which four kinds are seen.
    """
    everything = CorruptionConfig(all_masked=0.0, mask_probability=1.0)

    def first(config: CorruptionConfig, least_kinds: int) -> Damage:
        draws = (damage(sentence, severity, config, seed) for seed in range(200))
        telling = (d for d in draws if d.changed >= 2 and len({*d.shown} - {""}) >= least_kinds)
        return next(telling, damage(sentence, severity, config))

    return {kind: first(only(kind), 1) for kind in DAMAGES} | {"all of them": first(everything, 4)}


def drawn_rates(
    severities: Sequence[float],
    config: CorruptionConfig | None = None,
    length: int = 256,
    rows: int = 400,
    seed: int = 0,
) -> list[Rate]:
    """Draw `rows` answers of `length` tokens at each severity and count what was touched.

    Answers that are masked whole are left out: the other kinds act on none of them. A rate is the
    share of positions touched, but for "shift" the share of answers, as in
    `corruption.expected_rates`. The interval is mean ± 1.96 standard errors over the rows, which
    are independent of one another (neighbouring positions are not).
    """
    config = replace(config or CorruptionConfig(), all_masked=0.0)
    generator = torch.Generator().manual_seed(seed)
    answer = torch.ones(rows, length, dtype=torch.bool)
    rates = []
    for severity in severities:
        plan = draw_plan(answer, 1000, 0, generator, config, severity)
        for kind, positions in touched(plan).items():
            if kind in config.kinds or kind == "mask":
                share = positions.any(1).double() if kind == "shift" else positions.double().mean(1)
                mean, error = float(share.mean()), float(share.std()) / rows**0.5
                rates.append(
                    Rate(kind, float(severity), mean, mean - 1.96 * error, mean + 1.96 * error)
                )
    return rates


def masked_shares(
    config: CorruptionConfig | None = None, length: int = 256, rows: int = 4000, seed: int = 0
) -> np.ndarray:
    """Share of an answer that is masked, for each of `rows` training answers: `(rows,)` float64."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.ones(rows, length, dtype=torch.bool)
    return draw_plan(answer, 1000, 0, generator, config).mask.double().mean(1).numpy()
