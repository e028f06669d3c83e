"""Strategies: which positions of a draft are masked before the next iteration.

    none         no position: LAD's noiseless refinement, in which visible tokens are repaired
    random       as many as the schedule says, any of them
    guided       as many as the schedule says, rather where the denoiser doubts itself
    threshold    every position the denoiser is not sure enough of, inside a window that moves from
                 left to right; as in LLaDA-like samplers, and for comparison with LAD's own

A strategy is a small frozen object whose fields are settings of the same name and whose one method,
`choose`, looks at a whole batch at once. To add one, write it here and name it in `STRATEGIES`;
what holds for every strategy (fixed positions, permanent unmasking, growth) reaches it as
`Look.open`, and the sampler takes care of the rest.

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo); LLaDA (Nie et al., 2025) and Fast-dLLM (Wu
et al., 2025) for the confidence threshold.

Shapes: b = rows of the batch, a = positions of the answer region.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lad.diffusion.schedule import choose_positions, confidence_weights, split_budget

__all__ = [
    "STRATEGIES",
    "Confidence",
    "Look",
    "Noiseless",
    "Strategy",
    "Threshold",
    "Uniform",
    "make_strategy",
    "repeated",
]


@dataclass(frozen=True)
class Look:
    """What a strategy sees after a draft; every tensor is `(b, a)` unless said otherwise.

    Attributes:
        left: () float64, what the schedule leaves of the noise after this iteration.
        draft: int64, the tokens just drawn.
        confidence: float32, how sure the denoiser is of each.
        masked: bool, positions that were MASK in the input of this iteration.
        open: bool, positions that may be MASK in the next input.
        sizes: `(b,)` int64, positions the schedule's fraction is taken of.
        repeated: bool, positions that repeat a neighbour and are to be drawn again.
        ends: bool, positions whose draft is EOS.
        uniforms: `(b, draws, a)` float32, random numbers: as many a position as `draws` asks for.
    """

    left: Tensor
    draft: Tensor
    confidence: Tensor
    masked: Tensor
    open: Tensor
    sizes: Tensor
    repeated: Tensor
    ends: Tensor
    uniforms: Tensor | None


class Strategy(Protocol):
    """What the sampler asks of a strategy.

    Attributes:
        draws: random numbers it needs for every position and iteration.
        finishes: True when a row is done as soon as it shows a whole answer.
    """

    draws: ClassVar[int]
    finishes: ClassVar[bool]

    def choose(self, look: Look) -> Tensor:
        """`(b, a)` bool: positions to mask before the next iteration, none outside `look.open`
        but those that were MASK and stay so."""


@dataclass(frozen=True)
class Noiseless:
    """Masks nothing: the next input is the draft itself."""

    draws: ClassVar[int] = 0
    finishes: ClassVar[bool] = False

    def choose(self, look: Look) -> Tensor:
        """No position, whatever the draft."""
        return torch.zeros_like(look.open)


@dataclass(frozen=True)
class Uniform:
    """As many positions as the schedule says, all equally likely; `clustering` makes them runs."""

    noise_start: float
    clustering: float

    draws: ClassVar[int] = 1
    finishes: ClassVar[bool] = False

    def choose(self, look: Look) -> Tensor:
        """The schedule's number of positions, and those that repeat a neighbour."""
        count = scheduled(look, self.noise_start)
        weights = look.open.float()
        chosen = choose_positions(weights, count, look.uniforms[:, 0], self.clustering)
        return chosen | look.repeated


@dataclass(frozen=True)
class Confidence:
    """As many positions as the schedule says, likelier where the denoiser doubts itself.

    EOS and other positions share the number in proportion to theirs, or the EOS tail, of which the
    denoiser is always sure, would never be doubted.
    """

    noise_start: float
    noise_clipping: float
    clustering: float

    draws: ClassVar[int] = 2
    finishes: ClassVar[bool] = False

    def choose(self, look: Look) -> Tensor:
        """The schedule's number of positions, and those that repeat a neighbour."""
        weights = confidence_weights(look.confidence, self.noise_clipping) * look.open
        eos, others = weights * look.ends, weights * ~look.ends
        possible = look.open.sum(dim=-1)
        count = scheduled(look, self.noise_start).minimum(possible)
        for_eos, for_others = split_budget(count, (look.open & look.ends).sum(dim=-1), possible)
        return (
            choose_positions(eos, for_eos, look.uniforms[:, 0], self.clustering)
            | choose_positions(others, for_others, look.uniforms[:, 1], self.clustering)
            | look.repeated
        )


@dataclass(frozen=True)
class Threshold:
    """Shows what is at least `threshold` sure, inside a window; the rest is masked again.

    The window of `window` positions begins at the leftmost MASK of the input; to the right of it
    what is MASK stays so. So that a run ends, at least one MASK an iteration becomes a token: the
    surest of the window, but not one behind the draft's first EOS while there is another, because
    forwards spent on the tail add nothing to the answer (they were half of all, measured on short
    answers). A row is finished when no MASK is left before its first visible EOS.

    That is `advance` "surest". With "leftmost" the leftmost MASK becomes a token as well, however
    unsure: all before it is known, so its likeliest token is what a left-to-right model would say.
    "run" carries this on and asks nothing else: from the leftmost MASK to the right, a MASK becomes
    a token while those to its left that become one with it are together at least `threshold` sure.

    A token drawn to the right of an unknown one belongs, as like as not, to another sentence than
    what its neighbour becomes. So a token must be at least `apart` sure where its left neighbour is
    neither visible nor itself as sure as that; 0 asks nothing more.
    """

    confidence_threshold: float
    window: int | None
    isolated_threshold: float

    draws: ClassVar[int] = 0
    finishes: ClassVar[bool] = True

    def choose(self, look: Look) -> Tensor:
        """Every position that is not sure enough, or that repeats a neighbour, or lies beyond."""
        position = torch.arange(look.draft.shape[1], device=look.draft.device)
        candidates = look.masked & look.open
        first = look.masked.long().argmax(dim=-1, keepdim=True)  # 0 where nothing is masked
        if self.window is not None:
            candidates &= position < first + self.window
        sure = (look.confidence >= self.confidence_threshold) & ~look.repeated
        known = ~look.masked | ((look.confidence >= self.isolated_threshold) & ~look.repeated)
        beside = torch.ones_like(known)  # whether the left neighbour is known; a prompt always is
        beside[:, 1:] = known[:, :-1]
        shown = candidates & sure & (beside | known)
        shown |= candidates & (position == first) & ~look.repeated
        inside = look.ends.cumsum(dim=-1) - look.ends.long() == 0  # up to the draft's first EOS
        useful = candidates & inside
        useful = useful.where(useful.any(dim=-1, keepdim=True), candidates)
        # One that repeats its neighbour is shown only when there is nothing else to show.
        rank = (look.confidence - 2.0 * look.repeated).masked_fill(~useful, -torch.inf)
        surest = position == rank.argmax(dim=-1, keepdim=True)
        shown |= surest & useful & ~(shown & useful).any(dim=-1, keepdim=True)
        return torch.where(look.masked, ~shown, look.open & ~sure)


STRATEGIES: dict[str, type[Strategy]] = {
    "none": Noiseless,
    "random": Uniform,
    "guided": Confidence,
    "threshold": Threshold,
}


def make_strategy(config) -> Strategy:
    """The strategy that `config.remasking` names, with the settings it has a field for."""
    kind = STRATEGIES[config.remasking]
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})


def scheduled(look: Look, noise_start: float) -> Tensor:
    """`(b,)` int64: `schedule.mask_count` for every row."""
    return (look.left * look.sizes.double() * noise_start).floor().long()


def repeated(draft: Tensor, confidence: Tensor, ends: Tensor, open_: Tensor) -> Tensor:
    """`(b, a)` bool: of two equal neighbours that are not EOS, the one to draw again.

    That is the less sure of the two (the right one when they are equally sure), or the one that may
    be masked at all; of a longer run, its surest token stays.

    Args:
        draft, confidence: `(b, a)`.
        ends: `(b, a)` bool, where the draft is EOS.
        open_: `(b, a)` bool, positions that may be masked.
    """
    pair = (draft[:, 1:] == draft[:, :-1]) & ~ends[:, 1:]  # (b, a - 1), by its left position
    left_less_sure = confidence[:, :-1] < confidence[:, 1:]
    left = pair & open_[:, :-1] & (left_less_sure | ~open_[:, 1:])
    right = pair & open_[:, 1:] & (~left_less_sure | ~open_[:, :-1])
    result = torch.zeros_like(ends)
    result[:, :-1] |= left
    result[:, 1:] |= right
    return result
