"""The noising schedule: how many tokens are masked again after an iteration, and which.

After iteration i of N the sampler masks

    n_i = floor(threshold_i * answer_length * noise_start),
    threshold_i = (exp(-s x) - exp(-s)) / (1 - exp(-s)),   x = i / N,

which falls from 1 to 0; the sharpness s says how fast. Which positions: uniformly, or guided by the
denoiser's own confidence, so that what it doubts is drawn again.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). Shapes: a = positions of the answer region.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lad.errors import InvalidInput

__all__ = [
    "choose_positions",
    "confidence_weights",
    "mask_count",
    "mask_counts",
    "split_budget",
    "threshold",
]


def threshold(iteration: int, iterations: int, sharpness: float) -> float:
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
    return math.floor(threshold(iteration, iterations, sharpness) * answer_length * noise_start)


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


def split_budget(count: int, eos_positions: int, answer_length: int) -> tuple[int, int]:
    """Share `count` masks between EOS and other positions in proportion to their numbers.

    Without it a guided sampler would never doubt the EOS tail, of which it is always sure, and the
    answer's length would be decided by the first draft. Returns (for EOS, for the others).
    """
    for_eos = math.floor(count * eos_positions / answer_length + 0.5)
    return for_eos, count - for_eos


def choose_positions(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose `count` positions without replacement, with probabilities led by their weights.

    Adding Gumbel noise to the log-weights and taking the largest draws exactly as picking one
    position after another in proportion to the weights would (Kool et al., 2019, "Stochastic beams
    and where to find them").

    Args:
        weights: `(a,)` non-negative; a weight of 0 excludes the position.
        count: how many; at most the number of positive weights is chosen.
        generator: a CPU generator, so that one seed gives one answer on every device.

    Returns:
        `(a,)` bool on the device of `weights`.
    """
    draws = torch.rand(weights.shape, generator=generator).to(weights.device)
    keys = weights.double().log() - (-draws.double().clamp(min=1e-12).log()).log()
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    chosen[keys.topk(min(count, len(weights))).indices] = True
    return chosen & (weights > 0)
