"""Fewer positions a pass: an answer region that ends with a window behind the leftmost MASK.

Where tokens are shown from left to right, nothing behind the window can be shown in this iteration.
With `lookahead` a pass leaves those positions out, as if the answer region were shorter: the head
and every layer have less to do, and what is computed does not see them. The region grows with the
answer.

What is visible is computed anew in every pass: under all three kinds of attention it sees the
answer, and so a token that is shown anywhere changes its states. Only the prompt's can be kept.

Shapes: b = batch, a = positions of the answer region, n = the first of them that a pass computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import RefineConfig


def computed_lengths(tokens: Tensor, config: RefineConfig, mask_token_id: int) -> Tensor | None:
    """`(b,)` int64: how many positions a pass computes, given its `(b, a)` input; None for all.

    `lookahead` of them from the leftmost MASK on, and all up to the last visible one.
    """
    if config.lookahead is None or config.remasking not in ("threshold", "verified"):
        return None
    a, is_masked = tokens.shape[1], tokens == mask_token_id
    position = torch.arange(a, device=tokens.device)
    first = position.where(is_masked, a).amin(dim=-1)
    visible = (position + 1).where(~is_masked, 0).amax(dim=-1)
    return (first + config.lookahead).maximum(visible).clamp(max=a)


def whole_region(drawn: Sequence[Tensor], a: int, lengths: Tensor | None, eos: int) -> list[Tensor]:
    """What `sampler.sample_tokens` drew at n positions, for all a: EOS of probability 0 elsewhere.

    A position from its sequence's length on counts as not computed.
    """
    if lengths is None:
        return list(drawn)
    outside = torch.arange(a, device=lengths.device) >= lengths[:, None]  # (b, a)
    padded = []
    for x, filler in zip(drawn, (eos, 0.0, math.inf, eos, -math.inf, 0.0), strict=True):
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, a - x.shape[1]))
        padded.append(x.masked_fill(outside[..., None] if x.ndim == 3 else outside, filler))
    return padded
