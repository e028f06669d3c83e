"""What an iteration does between logits and the next input, all of it on the device.

Every position is drawn anew; the strategy chooses what of the draft is masked; a row that shows a
whole answer is finished. This is one function of tensors that asks nothing of the host, so that on
a GPU it can be compiled: eager it is a hundred kernels of a microsecond each, compiled a handful.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo).

Shapes: b = rows still at work, a = positions of the answer region, v = vocabulary.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.remasking import Look, Strategy, repeated

__all__ = ["Decision", "Known", "decide", "draw", "forbid"]

# Logits are turned into float32 this many at a time: 256 MB, however large batch and window are.
FLOATS_AT_ONCE = 2**26


class Known(NamedTuple):
    """What is known of the rows when logits have come; see `lad.diffusion.rows.Rows`.

    Attributes:
        answer: `(b, a)` int64, the input that the logits are for.
        fixed, endless, beyond: `(b, a)` bool, or None when there are none.
        shown: `(b, a)` bool, positions that were visible in some input.
        uniforms: `(b, draws, a)` float32 in [0, 1), or None when nothing is left to chance.
        left: () float64, what the schedule leaves of the noise, see `schedule.noise_level`.
        reached: () int64, positions that growth has reached, or None when all are there at once.
        goes_on: () bool, whether another iteration follows.
    """

    answer: Tensor
    fixed: Tensor | None
    endless: Tensor | None
    beyond: Tensor | None
    shown: Tensor
    uniforms: Tensor | None
    left: Tensor
    reached: Tensor | None
    goes_on: Tensor


class Decision(NamedTuple):
    """What comes of it.

    Attributes:
        answer: `(b, a)` int64, the next input.
        shown: as in `Known`, the next input's positions among them.
        told: `(b, 3 a + 2)` int32, all that the host wants to know, to be copied at once: the
            draft, the bits of its float32 confidence, what of it is masked, whether all logits of
            the row were finite, and whether the row is finished.
    """

    answer: Tensor
    shown: Tensor
    told: Tensor


def decide(
    logits: Tensor,
    known: Known,
    strategy: Strategy,
    config: RefineConfig,
    eos: int,
    mask: int,
    at_once: int | None = None,
) -> Decision:
    """From logits `(b, a, v)`, after `forbid`, to the next input; the logits may be written to.

    Args:
        at_once: rows that are drawn at a time, because eager a draw needs a float32 copy of its
            logits; None for all, when it is compiled and needs none.
    """
    rows = len(logits)
    parts = [slice(n, n + (at_once or rows)) for n in range(0, rows, at_once or rows)]
    drawn = [_draw_rows(logits[x], _part(known, x), config, eos, mask) for x in parts]
    draft, confidence, end, finite = (torch.cat(pieces) for pieces in zip(*drawn, strict=True))
    if known.beyond is not None:
        draft = draft.masked_fill(known.beyond, eos)
    hidden = _hide(known, strategy, config, draft, confidence, eos, mask) & known.goes_on
    finished = torch.zeros_like(finite)
    if strategy.finishes:
        draft, confidence, hidden, finished = _finish(known, draft, confidence, end, hidden, eos)
    flags = torch.stack([finite, finished], dim=1)
    bits = confidence.contiguous().view(torch.int32)
    told = torch.cat([draft.int(), bits, hidden.int(), flags.int()], dim=1)
    return Decision(draft.masked_fill(hidden, mask), known.shown | ~hidden, told)


def forbid(logits: Tensor, endless: Tensor | None, eos: int, mask: int) -> None:
    """Rule out, in place, what may not be drawn: MASK, and EOS where the answer cannot end.

    Two columns are written here, because inside `decide` every logit would be compared with them.
    """
    logits[..., mask] = -math.inf  # MASK is an input, never an answer
    if endless is not None:
        logits[..., eos].masked_fill_(endless, -math.inf)


def draw(
    logits: Tensor, config: RefineConfig, uniforms: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token at every position.

    Args:
        logits: `(..., v)` float32.
        uniforms: `(...)` in [0, 1), the randomness: one number a position; None when greedy.

    Returns:
        tokens `(...)` int64; their confidence `(...)` float32, the probability under the denoiser's
        own distribution, before temperature, top-k and top-p narrow it; and `(...)` float32, the
        logarithm of that distribution's sum, which is not finite when a logit is not.
    """
    if config.greedy:
        return greedy_fused(logits) if torch.compiler.is_compiling() else _greedy(logits)
    total = logits.logsumexp(dim=-1)  # (...)
    k = min(config.top_k, logits.shape[-1])
    top, ids = logits.topk(k, dim=-1)  # (..., k), likeliest first
    weights = (top / config.temperature).softmax(dim=-1)
    # Keep a token when what precedes it holds less than top_p: the likeliest always stays.
    weights = weights * (weights.cumsum(dim=-1) - weights < config.top_p)
    ladder = weights.cumsum(dim=-1)
    rung = (ladder <= uniforms[..., None] * ladder[..., -1:]).sum(dim=-1, keepdim=True)
    rung = rung.clamp(max=k - 1)
    tokens = ids.gather(-1, rung)[..., 0]
    return tokens, (top.gather(-1, rung)[..., 0] - total).exp(), total


def _greedy(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A greedy draw, for `draw`."""
    total = logits.logsumexp(dim=-1)
    top, tokens = logits.max(dim=-1)
    return tokens, (top - total).exp(), total


def greedy_fused(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in two readings of the logits and few operations each, for a compiler to fuse.

    Of equal ones the first is drawn. Where it is, is found along with the sum: carrying an index
    through the search for the largest costs more than all else (0.7 ms against 0.47 for 0.8 GB of
    logits on an H200).
    """
    top = logits.amax(dim=-1, keepdim=True)
    total = (logits - top).exp().sum(dim=-1).log()
    places = torch.arange(logits.shape[-1], device=logits.device)
    tokens = torch.where(logits == top, places, len(places)).amin(dim=-1)
    # Where a logit is not a number, no place is: any token will do, the run ends anyway.
    return tokens.clamp(max=len(places) - 1), (-total).exp(), total + top[..., 0]


def _part(known: Known, rows: slice) -> Known:
    """Some of the rows, as far as a draw wants to know them."""
    cut = {
        name: None if getattr(known, name) is None else getattr(known, name)[rows]
        for name in ("answer", "fixed", "endless", "beyond", "uniforms")
    }
    return known._replace(**cut)


def _draw_rows(
    logits: Tensor, known: Known, config: RefineConfig, eos: int, mask: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draft, confidence, EOS's own probability `(b, a)`; and whether all is finite, `(b,)` bool."""
    keep = known.fixed
    own = logits.float()
    if config.eos_bias:
        own[..., eos] += config.eos_bias
    draft, confidence, total = draw(own, config, None if config.greedy else known.uniforms[:, 0])
    if keep is not None:
        draft = known.answer.where(keep, draft)
        sure = (own.gather(-1, draft[..., None])[..., 0] - total).exp()
        confidence = sure.where(keep, confidence)
    if config.repeats == "replace":
        there = draft if known.beyond is None else draft.masked_fill(known.beyond, eos)
        free = torch.ones_like(draft, dtype=torch.bool) if keep is None else ~keep
        other, sure = _unlike_neighbours(own, there, eos)
        again = repeated(there, confidence, there == eos, free)
        draft, confidence = other.where(again, draft), (sure - total).exp().where(again, confidence)
    return draft, confidence, (own[..., eos] - total).exp(), total.isfinite().all(dim=-1)


def _unlike_neighbours(logits: Tensor, draft: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """`(b, a)`: the likeliest token at each position that no neighbour holds, and its logit.

    Of an EOS there may be two in a row.
    """
    held = draft.masked_fill(draft == eos, -1)
    neighbours = F.pad(held, (1, 1), value=-1)  # (b, a + 2)
    top, ids = logits.topk(3, dim=-1)  # two of them may be the neighbours'
    taken = (ids == neighbours[:, :-2, None]) | (ids == neighbours[:, 2:, None])
    pick = (~taken).long().argmax(dim=-1, keepdim=True)
    return ids.gather(-1, pick)[..., 0], top.gather(-1, pick)[..., 0]


def _hide(
    known: Known,
    strategy: Strategy,
    config: RefineConfig,
    draft: Tensor,
    confidence: Tensor,
    eos: int,
    mask: int,
) -> Tensor:
    """`(b, a)` bool: the positions that are MASK in the next input, if there is one."""
    free = torch.ones_like(known.shown) if known.fixed is None else ~known.fixed
    if known.beyond is not None:
        free = free & ~known.beyond
    may = free & ~known.shown if config.permanent else free
    grown = torch.ones_like(free[:1])  # (1, a), what growth has reached
    if known.reached is not None:
        grown = torch.arange(free.shape[1], device=free.device)[None] < known.reached
    ends = draft == eos
    again = torch.zeros_like(free)
    if config.repeats == "remask":
        again = repeated(draft, confidence, ends, may) & grown
    drawing = 0 if config.greedy else 1
    look = Look(
        left=known.left,
        draft=draft,
        confidence=confidence,
        masked=known.answer == mask,
        open=may & grown,
        sizes=(free & grown).sum(dim=-1),
        repeated=again,
        ends=ends,
        uniforms=None if known.uniforms is None else known.uniforms[:, drawing:],
    )
    return strategy.choose(look) | (may & ~grown)


def _finish(
    known: Known, draft: Tensor, confidence: Tensor, end: Tensor, hidden: Tensor, eos: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that show every token before their first visible EOS are done: what follows is EOS."""
    seen = ((draft == eos) & ~hidden).cumsum(dim=-1)  # visible EOS up to here
    finished = ~(hidden & (seen == 0)).any(dim=-1)  # (b,)
    tail = finished[:, None] & (seen > 0)
    if known.fixed is not None:
        tail = tail & ~known.fixed
    return (
        draft.masked_fill(tail, eos),
        end.where(tail, confidence),
        hidden & ~finished[:, None],
        finished,
    )
