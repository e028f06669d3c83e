"""The noise schedule: how many tokens are masked again after an iteration.

After iteration i of N the sampler masks

    n_i = floor(noise_level_i * answer_length * noise_start),
    noise_level_i = (exp(-s x) - exp(-s)) / (1 - exp(-s)),   x = i / N,

which falls from 1 to 0; the sharpness s sets how fast. Which positions: `lad.diffusion.remasking`.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo).
"""

from __future__ import annotations

import math

from lad.utils import InvalidInput


def noise_level(iteration: int, iterations: int, sharpness: float) -> float:
    """Fraction of the starting noise left after an iteration: 1 at the first, near 0 at the last.

    Args:
        iteration: index from 0, below `iterations`, which is at least 1.
        sharpness: s > 0; near 0 the fall is linear, at 20 it is over almost at once.
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
    """n_i, the positions to mask again; 0 after the last iteration. `noise_start` is in [0, 1]."""
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
