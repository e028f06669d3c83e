"""Between the host and the device: results copied together, random numbers drawn on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
