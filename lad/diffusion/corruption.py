"""Corruption, the forward process: structural noise on the answer; the prompt is never touched.

LAD trains its denoiser on text with the faults that drafts have: tokens masked, swapped with a
neighbour, duplicated, replaced at random, or overwritten by a span copied from nearby. Masks teach
filling gaps; the rest teaches repairing visible tokens, which noiseless refinement needs.

Drawing and applying are apart. `draw_plan` makes every random decision from an explicit generator;
`apply_plan` is a pure function of tokens and plan, vectorised here and in plain loops in
`lad.diffusion.reference`, so that the two can be compared token for token.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo) and the authors' training scripts.

Shapes: b = batch, t = positions of the context window. An answer is one contiguous run of
positions; in training it runs to the end of the window, filled up with EOS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import CorruptionConfig
from lad.utils import InvalidInput

LONGEST_SPAN = 3
WIDEST_FRONTIER = 64  # positions between clean text and the masks of the rest, `suffix_share`
FARTHEST_SHIFT = 4


@dataclass(frozen=True)
class Plan:
    """Every random decision of one corruption, in the order in which they are applied.

    The masks are `(b, t)` bool; the span that `shift` copies is `(b,)` int64, of length 0 for none.
    """

    severity: Tensor  # (b,) float32, the p of each row
    mask: Tensor  # positions that become MASK
    swap: Tensor  # exchange positions i and i + 1, taken left to right
    copy_left: Tensor  # take the left neighbour's token
    copy_right: Tensor  # take the right neighbour's token, after the left copies
    replace: Tensor  # take `replacement` instead
    replacement: Tensor  # (b, t) int64, random tokens, never MASK
    shift_from: Tensor
    shift_to: Tensor
    shift_length: Tensor


def draw_plan(
    answer: Tensor,
    vocabulary_size: int,
    mask_token_id: int,
    generator: torch.Generator,
    config: CorruptionConfig | None = None,
    severity: float | Tensor | None = None,
) -> Plan:
    """Every random decision of the noise for a batch.

    All are drawn whatever the configuration, and then switched off, so that with one seed turning a
    kind off leaves the others the same.

    Args:
        answer: `(b, t)` bool, True on the answer region, contiguous in each row.
        vocabulary_size, mask_token_id: what is replaced becomes any of these ids but MASK.
        generator: on the device of `answer`; the global generator is not touched.
        severity: fixes p, one number or `(b,)`; by default each row draws it from U(0, 1).
    """
    config = config or CorruptionConfig()
    uniform = functools.partial(torch.rand, generator=generator, device=answer.device)
    b, t = answer.shape
    p = uniform(b)
    if severity is not None:
        p = torch.as_tensor(severity, dtype=torch.float32, device=answer.device).expand(b)
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise InvalidInput(f"severity = {severity}: expected p between 0 and 1")
    all_masked = uniform(b) < config.all_masked
    partly = (uniform(b) < config.mask_probability) & ~all_masked
    low, high = config.mask_fraction
    length = answer.sum(dim=1)  # (b,)
    count = ((low + (high - low) * uniform(b)) * length).floor() * partly
    # Exactly `count` positions: those with the lowest scores, the prompt's out of reach.
    rank = uniform(b, t).masked_fill(~answer, 2.0).argsort(dim=1).argsort(dim=1)
    mask = (rank < count[:, None]) | all_masked[:, None]
    structural = (uniform(b) < config.structural_probability) & ~all_masked
    probability = p * config.rate * structural
    plan = Plan(
        severity=p,
        mask=mask,
        **_draw_neighbours(answer, probability, vocabulary_size, mask_token_id, uniform, config),
        **_draw_shift(answer, probability, uniform, config),
    )
    # Drawn last, so that figures made before these shapes existed stay the same.
    mask = _shaped_mask(answer, mask, count, partly, uniform, config)
    return replace(plan, mask=mask & answer)


def _draw_neighbours(
    answer: Tensor,
    probability: Tensor,
    vocabulary_size: int,
    mask_token_id: int,
    uniform: Callable[..., Tensor],
    config: CorruptionConfig,
) -> dict[str, Tensor]:
    """Swaps, duplicates and replacements; `probability` `(b,)` of each at a position."""
    b, t = answer.shape
    probability = probability[:, None]
    left_is_answer, right_is_answer = F.pad(answer[:, :-1], (1, 0)), F.pad(answer[:, 1:], (0, 1))
    swap = (uniform(b, t) < probability) & answer & right_is_answer
    copy = (uniform(b, t) < probability) & answer
    from_left = uniform(b, t) < 0.5
    replaced = (uniform(b, t) < probability) & answer
    replacement = torch.randint(
        vocabulary_size - 1, (b, t), generator=uniform.keywords["generator"], device=answer.device
    )
    replacement += replacement >= mask_token_id  # skip MASK
    return {
        "swap": swap & ("swap" in config.kinds),
        "copy_left": copy & from_left & left_is_answer & ("duplicate" in config.kinds),
        "copy_right": copy & ~from_left & right_is_answer & ("duplicate" in config.kinds),
        "replace": replaced & ("replace" in config.kinds),
        "replacement": replacement,
    }


def _draw_shift(
    answer: Tensor, probability: Tensor, uniform: Callable[..., Tensor], config: CorruptionConfig
) -> dict[str, Tensor]:
    """One span of 1 to 3 tokens and where it is copied to, `(b,)` each; length 0 for none."""
    b = len(answer)
    start, length = answer.int().argmax(dim=1), answer.sum(dim=1)
    span = (1 + (uniform(b) * LONGEST_SPAN).long()).clamp(max=LONGEST_SPAN).minimum(length)
    last = (length - span).clamp(min=0)  # the last place where the span fits
    source = (uniform(b) * (last + 1)).long().minimum(last)
    distance = (1 + (uniform(b) * FARTHEST_SHIFT).long()).clamp(max=FARTHEST_SHIFT)
    direction = torch.where(uniform(b) < 0.5, -1, 1)
    target = (source + direction * distance).clamp(min=0).minimum(last)
    acts = (uniform(b) < probability) & ("shift" in config.kinds)
    return {"shift_from": start + source, "shift_to": start + target, "shift_length": span * acts}


def _shaped_mask(
    answer: Tensor,
    mask: Tensor,
    count: Tensor,
    partly: Tensor,
    uniform: Callable[..., Tensor],
    config: CorruptionConfig,
) -> Tensor:
    """`(b, t)` bool: `mask`, but one block or a masked suffix in some of the `partly` masked."""
    b, t = answer.shape
    start, length = answer.int().argmax(dim=1), answer.sum(dim=1)
    shape, survival, place, width = uniform(b), uniform(b), uniform(b), uniform(b)
    survives = uniform(b, t) < survival[:, None]
    offset = torch.arange(t, device=answer.device) - start[:, None]  # (b, t), place in the answer
    first = (place * (length - count + 1)).floor()  # (b,), of a block of `count`
    block = (offset >= first[:, None]) & (offset < (first + count)[:, None])
    cut = (place * length).floor()
    frontier = 1 + (width * WIDEST_FRONTIER).floor()
    ahead = offset >= cut[:, None]
    suffix = ahead & ~(survives & (offset < (cut + frontier)[:, None]))
    is_block = partly & (shape < config.block_share)
    is_suffix = partly & (shape >= 1 - config.suffix_share)
    mask = torch.where(is_block[:, None], block, mask)
    return torch.where(is_suffix[:, None], suffix, mask)


def apply_plan(tokens: Tensor, plan: Plan, mask_token_id: int) -> Tensor:
    """Apply a plan to `(b, t)` int64 tokens; returns the corrupted `(b, t)` copy.

    No loop over positions and no transfer to the host, so a training step can call it on the GPU.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)  # (t,)
    noisy = tokens.masked_fill(plan.mask, mask_token_id)

    # Swaps from left to right: a run of swaps carries the run's first token to its end. The token
    # being carried past position i is the one where the current run of swaps began.
    arriving = F.pad(plan.swap[:, :-1], (1, 0))
    carried = torch.where(arriving, 0, position).cummax(dim=1).values
    source = torch.where(plan.swap, position + 1, carried)
    noisy = noisy.gather(1, source)

    noisy = torch.where(plan.copy_left, noisy.roll(1, dims=1), noisy)
    noisy = torch.where(plan.copy_right, noisy.roll(-1, dims=1), noisy)
    noisy = torch.where(plan.replace, plan.replacement, noisy)

    offset = position - plan.shift_to[:, None]  # (b, t), where in the target span we are
    inside = (offset >= 0) & (offset < plan.shift_length[:, None])
    source = torch.where(inside, plan.shift_from[:, None] + offset, position)
    return noisy.gather(1, source)


def corrupt(
    tokens: Tensor,
    answer: Tensor,
    vocabulary_size: int,
    mask_token_id: int,
    generator: torch.Generator,
    config: CorruptionConfig | None = None,
    severity: float | Tensor | None = None,
) -> Tensor:
    """The `(b, t)` tokens with their answers corrupted; see `draw_plan` for the arguments."""
    plan = draw_plan(answer, vocabulary_size, mask_token_id, generator, config, severity)
    return apply_plan(tokens, plan, mask_token_id)
