"""The reverse process: refine whole answers, draft after draft.

    answer <- all MASK, or a draft that was given
    repeat: run the denoiser once; draw every position anew from its logits;
            stop a row early when its draft cannot or does not change any more;
            let the strategy choose what is masked before the next iteration (lad/strategies.py).

Without re-noising ("noiseless") the next input is the draft itself: the denoiser, trained on
structural noise, repairs tokens that are visible and wrong.

Many prompts are refined together: padded on the left, each row with a generator of its own, each
stopping on its own and then leaving the batch, so that a row's answer is that of a run alone.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). `lad/reference.py` is the same loop as a
plain reader would write it; the tests hold the two together token for token.

Shapes: b = rows still at work, a = positions of the answer region, v = vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lad.controls import PRESETS, RANGES, RENOISING, RefineConfig, preset
from lad.denoiser import Denoiser
from lad.errors import InvalidInput, NumericalError
from lad.layers import compiled
from lad.passes import Passes
from lad.prompts import Prompt
from lad.recording import make_trace
from lad.rows import Rows, prepare
from lad.strategies import Look, Strategy, make_strategy, repeated
from lad.trace import Step, Trace

__all__ = [
    "PRESETS",
    "RANGES",
    "RENOISING",
    "RefineConfig",
    "draw",
    "make_trace",
    "preset",
    "record",
    "refine",
    "refine_batch",
]

# Logits are turned into float32 this many at a time: 256 MB, however large batch and window are.
FLOATS_AT_ONCE = 2**26


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
    total = logits.logsumexp(dim=-1)  # (...)
    if config.greedy:
        top, tokens = logits.max(dim=-1)
        return tokens, (top - total).exp(), total
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


def refine(
    denoiser: Denoiser,
    prompt: Prompt | Tensor,
    config: RefineConfig | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Iterator[Step]:
    """Refine an answer, yielding a `Step` after every iteration; the last holds the final draft.

    Inputs are checked at the call, before the first step is asked for. To stop a run, stop asking.

    Args:
        prompt: text, chat messages, or `(p,)` token ids from `denoiser.encode`.
        draft: `(a,)` token ids to start from instead of MASK, or with MASK where nothing is known.
        fixed: `(a,)` bool, positions of the draft that never change: infilling. The answer cannot
            end before the last of them.

    Raises:
        InvalidInput: an empty prompt, one that leaves no room for the answer, or a draft that does
            not fit.
        NumericalError: NaN or infinite logits, named with the iteration.
    """
    config = config or PRESETS["default"]
    rows = prepare(denoiser, [prompt], config, [draft], [fixed])
    return (steps[0] for steps in _iterate(denoiser, rows, config))


def refine_batch(
    denoiser: Denoiser,
    prompts: Sequence[Prompt | Tensor],
    config: RefineConfig | None = None,
    on_iteration: Callable[[dict[int, Step]], object] | None = None,
    *,
    drafts: Sequence[Tensor | None] | None = None,
    fixed: Sequence[Tensor | None] | None = None,
    batch_size: int = 64,
) -> list[Trace]:
    """Refine many answers at once; what each becomes is what a run alone would give.

    Args:
        prompts: of any lengths; each as in `refine`, and each answer region `answer_length` long.
        on_iteration: called after every iteration with the steps of the rows still at work, by the
            index of their prompt. A run is cut short by raising from it.
        drafts, fixed: one entry a prompt, as in `refine`; None where there is none.
        batch_size: most rows at work at a time.

    Returns:
        One trace a prompt, in their order. A step's `seconds` are those of the whole batch's
        iteration.

    Raises:
        InvalidInput, NumericalError: as `refine`; nothing runs when one prompt is refused.
    """
    config = config or PRESETS["default"]
    if batch_size < 1:
        raise InvalidInput(f"batch_size = {batch_size}: expected a whole number from 1 up")
    if isinstance(prompts, str):
        raise InvalidInput("prompts is one text: expected a list of prompts; put it in brackets")
    drafts = [None] * len(prompts) if drafts is None else list(drafts)
    fixed = [None] * len(prompts) if fixed is None else list(fixed)
    if not len(prompts) == len(drafts) == len(fixed):
        raise InvalidInput(
            f"{len(prompts)} prompts, {len(drafts)} drafts and {len(fixed)} fixed masks: expected "
            "as many of each; put None where there is none"
        )
    parts = [slice(n, n + batch_size) for n in range(0, len(prompts), batch_size)]
    prepared = [prepare(denoiser, prompts[x], config, drafts[x], fixed[x], x.start) for x in parts]
    kept: list[list[Step]] = [[] for _ in prompts]
    for rows in prepared:
        for steps in _iterate(denoiser, rows, config):
            for index, step in steps.items():
                kept[index].append(step)
            if on_iteration is not None:
                on_iteration(steps)
    prompt_ids = [ids for rows in prepared for ids in rows.prompt_ids]
    return [
        make_trace(denoiser, prompt, ids, config, steps)
        for prompt, ids, steps in zip(prompts, prompt_ids, kept, strict=True)
    ]


@torch.inference_mode()
def _iterate(denoiser: Denoiser, rows: Rows, config: RefineConfig) -> Iterator[dict[int, Step]]:
    """Steps of the rows still at work, by prompt, after every iteration."""
    strategy = make_strategy(config)
    grows = strategy.finishes or config.added_tokens is not None
    many = len(rows.index) > 1
    passes = Passes(denoiser, rows.prompts, rows.padding)
    inputs = rows.answer.cpu().numpy()
    shown = inputs != denoiser.mask_token_id
    position = np.arange(inputs.shape[1])
    sure = np.ones(inputs.shape, dtype=np.float32)  # of what is dropped: as when it was computed
    previous, unchanged = None, np.ones(len(inputs), dtype=int)

    for i in range(config.iterations):
        started = time.perf_counter()
        drawing = 0 if config.greedy else 1
        uniforms = rows.uniforms(drawing + strategy.draws)
        beyond = rows.beyond
        width = None if beyond is None else (~beyond).sum(dim=-1)
        logits = passes.logits(rows.answer, width)  # (b, a, v)
        draft, confidence, end, finite = _draw_all(denoiser, rows, logits, config, uniforms)
        del logits
        if beyond is not None:
            draft = draft.masked_fill(beyond, denoiser.eos_token_id)
        if i == config.iterations - 1:
            hidden = torch.zeros_like(draft, dtype=torch.bool)
        else:
            own = None if uniforms is None else uniforms[:, drawing:]
            hidden = _hide(denoiser, rows, strategy, config, i, draft, confidence, own)
        finished = torch.zeros_like(finite)
        if strategy.finishes:
            draft, confidence, hidden, finished = _finish(
                denoiser, rows, draft, confidence, end, hidden
            )

        # The one transfer of an iteration; from here on everything is small and on the host.
        answers, doubts, renoised, flags = _to_host(draft, confidence, hidden, finite, finished)
        if not flags[0].all():
            bad = rows.index[int(np.flatnonzero(~flags[0])[0])]
            raise NumericalError(
                f"iteration {i}{f', prompt {bad}' if many else ''}: the logits hold NaN or "
                "infinity, expected finite numbers; check the adapter with `lad info`, or use "
                "float32"
            )
        answers, renoised = (_widen(x, inputs.shape[1]) for x in (answers, renoised))
        answers[position >= rows.width[:, None]] = denoiser.eos_token_id
        doubts = np.where(position < rows.width[:, None], _widen(doubts, len(position)), sure)
        sure = doubts
        if config.tail is not None and previous is not None:
            # With growth or a threshold, far positions are drafted long before they are shown.
            words = (answers != denoiser.eos_token_id) | (renoised & grows)
            words |= previous != denoiser.eos_token_id
            ends = np.where(words, position + 1, 0).max(axis=1)
            rows.width = np.minimum(rows.width, ends + config.tail)
            renoised &= position < rows.width[:, None]
        same = np.zeros(len(answers), dtype=bool)
        if previous is not None:
            same = (answers == previous).all(axis=1)
        if grows:
            same &= ~(~renoised & ~shown).any(axis=1)
            shown |= ~renoised
        unchanged = np.where(same, unchanged + 1, 1)
        stopping = flags[1]
        if config.patience > 0:
            stopping |= unchanged >= config.patience
            if config.greedy:  # the same input again, now and ever after
                stopping |= (answers == inputs).all(axis=1) & ~renoised.any(axis=1)
        renoised[stopping] = False
        seconds = time.perf_counter() - started
        yield {
            row: Step(i, inputs[n], answers[n], doubts[n], renoised[n], seconds)
            for n, row in enumerate(rows.index)
        }
        if stopping.all():
            return
        rows.shown |= ~hidden
        rows.answer = draft.masked_fill(hidden, denoiser.mask_token_id)
        inputs = np.where(renoised, denoiser.mask_token_id, answers)
        previous = answers
        if stopping.any():
            stay = np.flatnonzero(~stopping)
            passes.keep(rows.keep(stay))
            inputs, previous, unchanged, shown, sure = (
                array[stay] for array in (inputs, previous, unchanged, shown, sure)
            )
        if config.tail is not None:
            rows.narrow(denoiser.eos_token_id)


def _widen(values: np.ndarray, positions: int) -> np.ndarray:
    """`(b, ·)` values with zeros where nothing is computed any more: `(b, positions)`."""
    return np.pad(values, ((0, 0), (0, positions - values.shape[1])))


def _draw_all(
    denoiser: Denoiser, rows: Rows, logits: Tensor, config: RefineConfig, uniforms: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draft and confidence `(b, a)`, EOS's own probability `(b, a)`, and `(b,)` bool: all finite.

    The float32 copy that a sum over the vocabulary needs is made for a few rows at a time;
    compiled, a greedy draw needs none.
    """
    keep = rows.fixed
    if not config.redraw:
        shown = rows.answer != denoiser.mask_token_id
        if rows.endless is not None:  # an end that may not be one
            shown &= ~(rows.endless & (rows.answer == denoiser.eos_token_id))
        keep = shown if keep is None else keep | shown
    numbers = None if config.greedy else uniforms[:, 0]
    given = (rows.answer, keep, rows.endless, rows.beyond, numbers)
    ids = (denoiser.eos_token_id, denoiser.mask_token_id)
    if config.greedy and denoiser.graphs is not None and logits.is_cuda:
        return compiled(_draw_some)(logits, *given, *ids, config)
    at_once = max(1, FLOATS_AT_ONCE // logits[0].numel())
    parts = [slice(n, n + at_once) for n in range(0, len(logits), at_once)]
    drawn = [
        _draw_some(logits[x], *(None if y is None else y[x] for y in given), *ids, config)
        for x in parts
    ]
    return tuple(torch.cat(pieces) for pieces in zip(*drawn, strict=True))


def _draw_some(
    logits: Tensor,
    answer: Tensor,
    keep: Tensor | None,
    endless: Tensor | None,
    beyond: Tensor | None,
    uniforms: Tensor | None,
    eos: int,
    mask: int,
    config: RefineConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_draw_all`, for some rows of logits `(·, a, v)`.

    Args:
        keep: `(·, a)` bool, positions that stay what they are in `answer`.
        endless: `(·, a)` bool, positions that may not become EOS.
        beyond: `(·, a)` bool, positions that are not there any more.
    """
    own = logits.float()  # valid until the next pass, so it may be written to
    own[..., eos] += config.eos_bias
    own[..., mask] = -math.inf  # MASK is an input, never an answer
    if endless is not None:
        own[..., eos].masked_fill_(endless, -math.inf)
    draft, confidence, total = draw(own, config, uniforms)
    if keep is not None:
        draft = answer.where(keep, draft)
        sure = (own.gather(-1, draft[..., None])[..., 0] - total).exp()
        confidence = sure.where(keep, confidence)
    if config.repeats == "replace":
        there = draft if beyond is None else draft.masked_fill(beyond, eos)
        free = torch.ones_like(draft, dtype=torch.bool) if keep is None else ~keep
        other, sure = _unlike_neighbours(own, there, eos)
        again = repeated(there, confidence, there == eos, free)
        draft, confidence = other.where(again, draft), (sure - total).exp().where(again, confidence)
    return draft, confidence, (own[..., eos] - total).exp(), total.isfinite().all(dim=-1)


def _unlike_neighbours(logits: Tensor, draft: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """`(·, a)`: the likeliest token at each position that no neighbour holds, and its logit.

    Of an EOS there may be two in a row.
    """
    held = draft.masked_fill(draft == eos, -1)
    neighbours = F.pad(held, (1, 1), value=-1)  # (·, a + 2)
    top, ids = logits.topk(3, dim=-1)  # two of them may be the neighbours'
    taken = (ids == neighbours[:, :-2, None]) | (ids == neighbours[:, 2:, None])
    pick = (~taken).long().argmax(dim=-1, keepdim=True)
    return ids.gather(-1, pick)[..., 0], top.gather(-1, pick)[..., 0]


def _hide(
    denoiser: Denoiser,
    rows: Rows,
    strategy: Strategy,
    config: RefineConfig,
    iteration: int,
    draft: Tensor,
    confidence: Tensor,
    uniforms: Tensor | None,
) -> Tensor:
    """`(b, a)` bool: the positions that are MASK in the next input."""
    free = torch.ones_like(rows.shown) if rows.fixed is None else ~rows.fixed
    if rows.beyond is not None:
        free = free & ~rows.beyond
    may = free & ~rows.shown if config.permanent else free
    grown = torch.ones_like(free[:1])  # (1, a), what growth has reached
    if config.added_tokens is not None:
        grown[:, config.added_tokens * (iteration + 1) :] = False
    ends = draft == denoiser.eos_token_id
    again = torch.zeros_like(free)
    if config.repeats == "remask":
        again = repeated(draft, confidence, ends, may) & grown
    look = Look(
        iteration=iteration,
        iterations=config.iterations,
        draft=draft,
        confidence=confidence,
        masked=rows.answer == denoiser.mask_token_id,
        open=may & grown,
        sizes=(free & grown).sum(dim=-1),
        repeated=again,
        ends=ends,
        uniforms=uniforms,
    )
    return strategy.choose(look) | (may & ~grown)


def _finish(
    denoiser: Denoiser, rows: Rows, draft: Tensor, confidence: Tensor, end: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that show every token before their first visible EOS are done: what follows is EOS."""
    seen = ((draft == denoiser.eos_token_id) & ~hidden).cumsum(dim=-1)  # visible EOS up to here
    finished = ~(hidden & (seen == 0)).any(dim=-1)  # (b,)
    tail = finished[:, None] & (seen > 0)
    if rows.fixed is not None:
        tail &= ~rows.fixed
    return (
        draft.masked_fill(tail, denoiser.eos_token_id),
        end.where(tail, confidence),
        hidden & ~finished[:, None],
        finished,
    )


def _to_host(
    draft: Tensor, confidence: Tensor, hidden: Tensor, *flags: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Everything an iteration gives, in one copy: a GPU is waited for once.

    Returns:
        `(b, a)` int64, `(b, a)` float32, `(b, a)` bool, and the flags `(number of flags, b)` bool.
    """
    a = draft.shape[1]
    parts = [draft.int(), confidence.float().contiguous().view(torch.int32), hidden.int()]
    packed = torch.cat([*parts, torch.stack(flags, dim=1).int()], dim=1).cpu().numpy()
    return (
        packed[:, :a].astype(np.int64),
        np.ascontiguousarray(packed[:, a : 2 * a]).view(np.float32),
        packed[:, 2 * a : 3 * a].astype(bool),
        packed[:, 3 * a :].T.astype(bool),
    )


def record(
    denoiser: Denoiser,
    prompt: Prompt,
    config: RefineConfig | None = None,
    on_step: Callable[[Step], object] | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Trace:
    """Refine to the end and keep everything; `on_step` is called after every iteration.

    A run is cut short by raising from `on_step`; everything else is as in `refine`.
    """
    config = config or PRESETS["default"]
    prompt_ids = denoiser.encode(prompt)
    steps = []
    for step in refine(denoiser, prompt_ids, config, draft=draft, fixed=fixed):
        steps.append(step)
        if on_step is not None:
            on_step(step)
    return make_trace(denoiser, prompt, prompt_ids, config, steps)
