"""Re-masking: which positions of a draft are MASK again in the next input.

    none        no position: LAD's noiseless refinement, in which visible tokens are repaired
    random      as many positions as the schedule says, all equally likely ("intermediate noising")
    guided      as many as the schedule says, likelier where confidence is low
    threshold   every position below a confidence, inside a window that moves from left to right
    entropy     all but those of least entropy, in the same window: as many as fit under a bound
    editing     as threshold, but what is visible stays, unless another token is confident

A strategy is a function of what a step knows (`StepView`) and the settings; it returns the mask. To
add one, write the function, enter it in `STRATEGIES`, and add its name to `config.REMASKING`. What
holds for all of them (fixed positions, permanent unmasking, growth) reaches it as `maskable`.

Sources: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo); LLaDA (Nie et al., 2025) and Fast-dLLM (Wu
et al., 2025) for threshold; EB-sampler (Ben-Hamu et al., 2025) for entropy, as in RND1 and
DiffusionGemma; LLaDA 2.1 (2026) for editing.

Shapes: b = batch, a = positions of the answer region.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import RefineConfig


class StepView(NamedTuple):
    """What a strategy sees after a draft; every tensor is `(b, a)` unless stated otherwise."""

    tokens: Tensor  # int64, the draft
    confidence: Tensor  # float32, the denoiser's probability of each token
    entropy: Tensor  # float32, of the denoiser's distribution at each position, in nats
    is_masked: Tensor  # bool, positions that were MASK in the input of this iteration
    maskable: Tensor  # bool, positions that may be MASK in the next input
    repeated: Tensor  # bool, positions to mask because they repeat a neighbour
    is_eos: Tensor  # bool, positions whose token is EOS
    region: Tensor  # (b,) int64, number of positions that the schedule's fraction is taken of
    noise_level: Tensor  # (1,) float64, see `schedule.noise_level`
    uniforms: Tensor | None  # (b, n, a) float32 in [0, 1), n being the strategy's `num_uniforms`


class Strategy(NamedTuple):
    """A re-masking function and what the sampler must know of it."""

    # Positions to mask, `(b, a)` bool: those that are `maskable`, or were MASK and stay so.
    remask: Callable[[StepView, RefineConfig], Tensor]
    num_uniforms: int = 0  # random numbers it needs for every position and iteration
    stops_when_complete: bool = False  # a run ends as soon as every token up to EOS is shown
    # A visible token changes only to one of confidence `editing_threshold`, and a run goes on while
    # any token up to EOS changes.
    edits: bool = False


def none(view: StepView, config: RefineConfig) -> Tensor:
    """No position: the next input is the draft."""
    return torch.zeros_like(view.maskable)


def random(view: StepView, config: RefineConfig) -> Tensor:
    """The schedule's number of positions, all equally likely."""
    count = _scheduled(view, config)
    chosen = choose_positions(view.maskable.float(), count, view.uniforms[:, 0], config.clustering)
    return chosen | view.repeated


def guided(view: StepView, config: RefineConfig) -> Tensor:
    """The schedule's number of positions, likelier where confidence is low.

    EOS and other positions share the number in proportion to theirs: EOS is nearly always
    confident, and without its share the answer's length would be fixed by the first draft.
    """
    # Clipping keeps confident tokens in play: the lower it is, the stronger the guidance.
    weights = (1 - view.confidence).clamp(min=config.noise_clipping) * view.maskable
    maskable, eos = view.maskable.sum(dim=-1), (view.maskable & view.is_eos).sum(dim=-1)
    count = _scheduled(view, config).minimum(maskable)
    for_eos = (count.double() * eos / maskable.clamp(min=1) + 0.5).floor().long()
    chosen, groups = view.repeated, [(view.is_eos, for_eos), (~view.is_eos, count - for_eos)]
    for n, (group, number) in enumerate(groups):
        more = choose_positions(weights * group, number, view.uniforms[:, n], config.clustering)
        chosen = chosen | more
    return chosen


def threshold(view: StepView, config: RefineConfig) -> Tensor:
    """Every position below `confidence_threshold`, or outside the window.

    A token is often inconsistent with what is later sampled to its left, so a position whose left
    neighbour is still masked needs `isolated_threshold`. The leftmost MASK is always shown: all
    before it is visible, so its token is what a left-to-right model would say. When that position
    repeats its neighbour, the most confident other one is shown, so that every run ends.
    """
    position = torch.arange(view.tokens.shape[1], device=view.tokens.device)
    first, candidates, useful = _candidates(view, config, position)
    confident = (view.confidence >= config.confidence_threshold) & ~view.repeated
    certain = (view.confidence >= config.isolated_threshold) & ~view.repeated
    left_is_visible = torch.ones_like(certain)  # the prompt always is
    left_is_visible[:, 1:] = (~view.is_masked | certain)[:, :-1]
    shown = candidates & confident & (left_is_visible | certain)
    shown |= candidates & (position == first) & ~view.repeated
    rank = (view.confidence - 2.0 * view.repeated).masked_fill(~useful, -torch.inf)
    best = position == rank.argmax(dim=-1, keepdim=True)
    shown |= best & useful & ~(shown & useful).any(dim=-1, keepdim=True)
    return torch.where(view.is_masked, ~shown, view.maskable & ~confident)


def entropy(view: StepView, config: RefineConfig) -> Tensor:
    """All that is MASK but the positions of least entropy.

    By rising entropy, a token is shown while the entropies before it sum to at most
    `entropy_bound`: that sum bounds what tokens drawn together leave out of their joint
    distribution. The first is always shown; one that repeats its neighbour only as the first.
    """
    position = torch.arange(view.tokens.shape[1], device=view.tokens.device)
    _, _, useful = _candidates(view, config, position)
    cost = (view.entropy.double() + REPEATED * view.repeated).masked_fill(~useful, torch.inf)
    cost, order = cost.sort(dim=-1, stable=True)
    before = F.pad(cost.cumsum(dim=-1)[:, :-1], (1, 0))
    fits = (before <= config.entropy_bound) & ((cost < REPEATED) | (position == 0))
    return view.is_masked & ~(useful & torch.zeros_like(useful).scatter(-1, order, fits))


def editing(view: StepView, config: RefineConfig) -> Tensor:
    """What `threshold` leaves masked; nothing that is visible, which `step` edits in place."""
    return threshold(view, config) & view.is_masked


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(none),
    "random": Strategy(random, num_uniforms=1),
    "guided": Strategy(guided, num_uniforms=2),
    "threshold": Strategy(threshold, stops_when_complete=True),
    "entropy": Strategy(entropy, stops_when_complete=True),
    "editing": Strategy(editing, stops_when_complete=True, edits=True),
}
REPEATED = 1e6  # nats, more than any entropy: repeats come last


def _candidates(view: StepView, config: RefineConfig, position: Tensor) -> tuple[Tensor, ...]:
    """The leftmost MASK `(b, 1)`, where the window starts; what is MASK inside, `(b, a)` bool; and
    what of it to show first: up to the draft's first EOS, because more adds nothing to the answer.
    """
    candidates = view.is_masked & view.maskable
    first = view.is_masked.long().argmax(dim=-1, keepdim=True)  # 0 where nothing is masked
    for size in (config.window, config.lookahead if config.remasking == "threshold" else None):
        if size is not None:
            candidates &= position < first + size
    useful = candidates & (view.is_eos.cumsum(dim=-1) - view.is_eos.long() == 0)
    return first, candidates, useful.where(useful.any(dim=-1, keepdim=True), candidates)


def _scheduled(view: StepView, config: RefineConfig) -> Tensor:
    """`(b,)` int64: `schedule.mask_count` for every sequence."""
    return (view.noise_level * view.region.double() * config.noise_start).floor().long()


def repeated(tokens: Tensor, confidence: Tensor, is_eos: Tensor, maskable: Tensor) -> Tensor:
    """`(b, a)` bool: of two equal neighbours that are not EOS, the less confident one.

    Of two equally confident ones it is the right one; where only one may be masked, that one. Of a
    longer run the most confident token stays.

    Args:
        tokens: `(b, a)` int64; confidence `(b, a)` float; is_eos, maskable: `(b, a)` bool.
    """
    pair = (tokens[:, 1:] == tokens[:, :-1]) & ~is_eos[:, 1:]  # (b, a - 1), by its left position
    left_is_lower = confidence[:, :-1] < confidence[:, 1:]
    left = pair & maskable[:, :-1] & (left_is_lower | ~maskable[:, 1:])
    right = pair & maskable[:, 1:] & (~left_is_lower | ~maskable[:, :-1])
    result = torch.zeros_like(is_eos)
    result[:, :-1] |= left
    result[:, 1:] |= right
    return result


def choose_positions(
    weights: Tensor, count: int | Tensor, uniforms: Tensor, clustering: float = 0.0
) -> Tensor:
    """`(..., a)` bool: `count` positions drawn without replacement, in proportion to `weights`.

    Adding Gumbel noise to the log-weights and taking the largest samples exactly as drawing one
    position after another in proportion to the weights (Kool et al., 2019, "Stochastic beams and
    where to find them").

    With clustering c only a share 1 - c of them (at least one) is drawn so; the others are the
    positions nearest to those, so that masks come in runs.

    Args:
        weights: `(..., a)` non-negative; 0 excludes a position.
        count: one number or `(...)`.
        uniforms: `(..., a)` in [0, 1), one random number a position.
        clustering: c in [0, 1].
    """
    possible = weights > 0
    keys = weights.double().log() - (-uniforms.double().clamp(min=1e-12).log()).log()
    rank = _rank(-keys)
    count = torch.as_tensor(count, device=weights.device)[..., None]
    if clustering == 0:
        return possible & (rank < count)
    singly = ((1 - clustering) * count.double() + 0.5).floor().clamp(min=1).minimum(count.double())
    seeds = possible & (rank < singly)
    # Nearest first; equally near ones in the order of their keys. Excluded positions come last.
    order = _distance(seeds) * weights.shape[-1] + rank
    return possible & (_rank(order.masked_fill(~possible, torch.iinfo(torch.int64).max)) < count)


def _rank(keys: Tensor) -> Tensor:
    """`(..., a)` int64: 0 at the smallest key, 1 at the next, and so on."""
    return keys.argsort(dim=-1).argsort(dim=-1)


def _distance(marked: Tensor) -> Tensor:
    """`(..., a)` int64: steps from every position to the nearest marked one."""
    a = marked.shape[-1]
    position = torch.arange(a, device=marked.device)
    before = position.where(marked, -a).cummax(dim=-1).values
    after = position.where(marked, 2 * a).flip(-1).cummin(dim=-1).values.flip(-1)
    return (position - before).minimum(after - position)
