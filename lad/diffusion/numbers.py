"""Numbers of logits, random numbers, and their way to the host.

Few passes over the logits, and operations that a compiler fuses: this is most of a step's time.

Shapes: b = batch, a = positions of the answer region, v = vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # logits of which first the largest alone is looked at


def likeliest(logits: Tensor, k: int) -> Tensor:
    """`(..., k)` int64: ids of the largest of `(..., v)` logits, the largest first.

    They are in the k blocks with the largest maxima, so one pass finds the maxima, and what is left
    is small: a sixth of the time of `topk` on a CPU. Of equal logits the first comes first. k is at
    most v, and at least k logits are not minus infinity.
    """
    size = math.gcd(logits.shape[-1], BLOCK)
    blocks = logits.unflatten(-1, (-1, size))  # (..., v / size, size)
    # In the order in which they stand, so that of equal logits the first is found first.
    best = _largest(blocks.amax(dim=-1), k).sort(dim=-1).values
    within = blocks.gather(-2, best[..., None].expand(*best.shape, size)).flatten(-2)
    at = _largest(within, k)
    return best.gather(-1, at // size) * size + at % size


def _largest(values: Tensor, k: int) -> Tensor:
    """`(..., k)` int64: where the largest values are; by `argmax`, since `topk` is not fused."""
    places, found = torch.arange(values.shape[-1], device=values.device), []
    for _ in range(min(k, len(places))):  # there may be fewer blocks
        found.append(values.argmax(dim=-1, keepdim=True))
        values = values.masked_fill(places == found[-1], -math.inf)
    return torch.cat(found, dim=-1)


def log_sum_and_entropy(logits: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the sum of `exp(logits)` and the entropy in nats, `(...)` both.

    `top` `(...)` is the largest of the `(..., v)` float32 logits. Both are NaN where a logit is NaN
    or infinity; minus infinity is a probability of 0.
    """
    below = (logits - top[..., None]).clamp_(min=-1e4)  # finite: 0 times infinity would be NaN
    weights = below.exp()
    total = weights.sum(dim=-1)
    return total.log() + top, total.log() - weights.mul_(below).sum(dim=-1) / total


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Arrays of tensors, which are copied together and waited for once."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors[0].is_cuda:
        torch.cuda.current_stream().synchronize()
    return [copy.numpy() for copy in copies]


def draw_uniforms(generators: list[torch.Generator], count: int, like: Tensor) -> Tensor | None:
    """`(b, count, a)` float32 in [0, 1) from each sequence's generator, None for a count of 0.

    They are drawn on the CPU, so that a seed gives the same numbers on every device; `like` is
    `(b, a)`.
    """
    if count == 0:
        return None
    drawn = [torch.rand(count, like.shape[1], generator=generator) for generator in generators]
    return torch.stack(drawn).to(like.device)
