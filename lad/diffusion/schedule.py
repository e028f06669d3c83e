"""The noising schedule: how many tokens are masked again after an iteration, and which.

After iteration i of N the sampler masks

    n_i = floor(noise_level_i * answer_length * noise_start),
    noise_level_i = (exp(-s x) - exp(-s)) / (1 - exp(-s)),   x = i / N,

which falls from 1 to 0; the sharpness s says how fast. Which positions: uniformly, or guided by the
denoiser's own confidence, so that what it doubts is drawn again.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). Shapes: a = positions of the answer region.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lad.utils import InvalidInput

__all__ = [
    "choose_positions",
    "confidence_weights",
    "mask_count",
    "mask_counts",
    "noise_level",
    "split_budget",
]


def noise_level(iteration: int, iterations: int, sharpness: float) -> float:
    """Fraction of the starting noise left after an iteration: 1 at the first, near 0 at the last.

    Args:
        iteration: index from 0, below `iterations`.
        iterations: total number of iterations, at least 1.
        sharpness: s > 0; towards 0 the fall is linear, at 20 it is over almost at once.
    """
    if iterations < 1 or not 0 <= iteration < iterations:
        raise InvalidInput(f"iteration {iteration} of {iterations}: expected 0 <= i < iterations")
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise InvalidInput(f"sharpness = {sharpness}: expected a finite number above 0")
    x = iteration / iterations
    # expm1 keeps the difference exact when s is small: both terms are then close to 1.
    return (math.expm1(-sharpness * x) - math.expm1(-sharpness)) / -math.expm1(-sharpness)


def mask_count(
    iteration: int, iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> int:
    """Number of positions to mask again after an iteration; 0 after the last.

    Args:
        answer_length: number of positions in the answer region.
        noise_start: fraction masked after the first iteration, in [0, 1].
    """
    if not 0 <= noise_start <= 1:
        raise InvalidInput(f"noise_start = {noise_start}: expected a fraction between 0 and 1")
    if iteration == iterations - 1:
        return 0
    return math.floor(noise_level(iteration, iterations, sharpness) * answer_length * noise_start)


def mask_counts(
    iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> list[int]:
    """`mask_count` after every iteration: the schedule as a list of `iterations` numbers."""
    return [
        mask_count(i, iterations, answer_length, sharpness, noise_start) for i in range(iterations)
    ]


def confidence_weights(confidence: Tensor, clipping: float) -> Tensor:
    """`(a,)` weights for guided noising: max(1 - confidence, clipping).

    The clipping keeps sure tokens in play: the lower it is, the stronger the guidance.
    """
    return (1 - confidence).clamp(min=clipping)


def split_budget(count: Tensor, eos_positions: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Share `count` masks between EOS and other positions in proportion to their numbers.

    Without it a guided sampler would never doubt the EOS tail, of which it is always sure, and the
    answer's length would be decided by the first draft.

    Args:
        count, eos_positions, positions: `(b,)` int64: masks, EOS positions and all positions.

    Returns:
        `(b,)` int64 for EOS, and for the others.
    """
    share = count.double() * eos_positions / positions.clamp(min=1)
    for_eos = (share + 0.5).floor().long()
    return for_eos, count - for_eos


def choose_positions(
    weights: Tensor, count: int | Tensor, uniforms: Tensor, clustering: float = 0.0
) -> Tensor:
    """Choose `count` positions a row without replacement, with probabilities led by their weights.

    Adding Gumbel noise to the log-weights and taking the largest draws exactly as picking one
    position after another in proportion to the weights would (Kool et al., 2019, "Stochastic beams
    and where to find them").

    With clustering c, only a share 1 - c of them (at least one) is chosen so; the others are the
    positions nearest to those, so that masks come in runs.

    Args:
        weights: `(..., a)` non-negative; a weight of 0 excludes the position.
        count: how many, one number or `(...)`; at most the positive weights of a row are chosen.
        uniforms: `(..., a)` in [0, 1), the randomness: one number a position.
        clustering: c, from 0 (singly) to 1 (one run).

    Returns:
        `(..., a)` bool.
    """
    possible = weights > 0
    keys = weights.double().log() - (-uniforms.double().clamp(min=1e-12).log()).log()
    rank = _rank(-keys)
    count = torch.as_tensor(count, device=weights.device)[..., None]
    if clustering == 0:
        return possible & (rank < count)
    singly = ((1 - clustering) * count.double() + 0.5).floor().clamp(min=1).minimum(count.double())
    seeds = possible & (rank < singly)
    # Nearest first; among equally near ones, as the keys have it. Excluded positions come last.
    order = _distance(seeds) * weights.shape[-1] + rank
    return possible & (_rank(order.masked_fill(~possible, torch.iinfo(torch.int64).max)) < count)


def _rank(keys: Tensor) -> Tensor:
    """`(..., a)` int64: 0 where a row's key is smallest, 1 at the next, and so on."""
    return keys.argsort(dim=-1).argsort(dim=-1)


def _distance(marked: Tensor) -> Tensor:
    """`(..., a)` int64: steps from every position to the nearest marked one of its row."""
    a = marked.shape[-1]
    position = torch.arange(a, device=marked.device)
    before = position.where(marked, -a).cummax(dim=-1).values
    after = position.where(marked, 2 * a).flip(-1).cummin(dim=-1).values.flip(-1)
    return (position - before).minimum(after - position)
