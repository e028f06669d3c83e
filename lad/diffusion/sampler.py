"""The sampler: refine whole answers over iterations.

    tokens <- all MASK, or a given draft
    for i in 0 .. iterations - 1:
        logits <- denoiser(prompt, tokens)                      one forward pass
        draft  <- a token for every position, with its confidence
        stop when the draft is complete or no longer changes
        tokens <- draft, with some positions masked again       lad.diffusion.remasking

`step` is everything between the logits and the next input; `refine` is the loop around it. Without
re-masking ("noiseless") the next input is the draft: the denoiser repairs visible tokens. In a
batch every sequence has its own generator and leaves when it finishes.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). `lad.diffusion.reference` is the same loop in
plain Python; the tests compare the two token for token.

Shapes: b = sequences in the batch, a = positions of the answer region, v = vocabulary size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser, pad_prompts
from lad.diffusion.drafts import check_draft, check_prompt_fits
from lad.diffusion.lookahead import computed_lengths, whole_region
from lad.diffusion.numbers import draw_uniforms, likeliest, log_sum_and_entropy, to_host
from lad.diffusion.remasking import STRATEGIES, StepView, repeated
from lad.diffusion.schedule import noise_level
from lad.diffusion.trace import ALTERNATIVES, Step, Trace, make_trace
from lad.models.chat import Prompt
from lad.utils import InvalidInput, NumericalError

# Logits are made float32 this many at a time: 4 MB on a CPU, whose cache holds them, 256 MB on a
# GPU, however large batch and window are. Where the step is compiled they are never stored.
FLOATS_AT_ONCE = (2**20, 2**26)


class SamplerState(NamedTuple):
    """The unfinished sequences of a batch between two iterations.

    Attributes:
        tokens: `(b, a)` int64, the input of the next forward pass.
        previous: `(b, a)` int64, the last draft; -1 before the first.
        unchanged: `(b,)` int64, number of identical drafts in a row.
        ever_unmasked: `(b, a)` bool, positions that were visible in some input.
        fixed: `(b, a)` bool, positions that never change.
        no_eos: `(b, a)` bool, positions where the answer cannot end.
        noise_levels: `(iterations,)` float64, see `schedule.noise_level`.
        mask_token_id, eos_token_id: the two tokens with a meaning of their own.
    """

    tokens: Tensor
    previous: Tensor
    unchanged: Tensor
    ever_unmasked: Tensor
    fixed: Tensor
    no_eos: Tensor
    noise_levels: Tensor
    mask_token_id: int
    eos_token_id: int

    def select(self, keep: Tensor) -> SamplerState:
        """The sequences that `keep`, an index on the device, names."""
        return SamplerState(*(x[keep] for x in self[:6]), *self[6:])


class StepOutput(NamedTuple):
    """What a step decides.

    Attributes:
        tokens: `(b, a)` int64, the draft; never MASK.
        confidence: `(b, a)` float32 in [0, 1], the denoiser's probability of each token.
        remask: `(b, a)` bool, positions that are MASK in the next input.
        finished: `(b,)` bool, sequences that are done.
        is_finite: `(b,)` bool, False where a logit is NaN or infinite.
        alternatives, probabilities, entropy: those of `Step`, for each sequence.
        state: the state before the next iteration.
    """

    tokens: Tensor
    confidence: Tensor
    remask: Tensor
    finished: Tensor
    is_finite: Tensor
    alternatives: Tensor
    probabilities: Tensor
    entropy: Tensor
    state: SamplerState


# -- one step --------------------------------------------------------------------------------------


def process_logits(logits: Tensor, state: SamplerState, config: RefineConfig) -> Tensor:
    """`(b, a, v)` logits, changed in place: no MASK, no EOS where the answer cannot end, EOS bias.

    Apart from `step`, because a compiler would then compare every logit instead of two columns.
    """
    logits[..., state.eos_token_id] += config.eos_bias
    no_eos = state.no_eos[:, : logits.shape[1]]  # not all positions may be computed
    logits[..., state.eos_token_id].masked_fill_(no_eos, -math.inf)
    logits[..., state.mask_token_id] = -math.inf  # MASK is an input, never an answer
    return logits


def sample_tokens(
    logits: Tensor, config: RefineConfig, uniforms: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Sample a token at every position.

    Args:
        logits: `(b, a, v)`.
        uniforms: `(b, a)` in [0, 1), one random number a position; None when greedy.

    Returns:
        tokens `(b, a)` int64; confidence `(b, a)` float32, the probability under the denoiser's own
        distribution, before temperature, top-k and top-p; `(b, a)` float32, the log of that
        distribution's sum, which is not finite when a logit is not; and of it, too, the likeliest
        tokens `(b, a, 5)` int64, their logits, and the entropy `(b, a)` in nats, both float32.
    """
    at_once = max(1, FLOATS_AT_ONCE[logits.is_cuda] // logits.shape[-1])
    if logits[..., 0].numel() > at_once and not torch.compiler.is_compiling():
        chunks = logits.flatten(0, 1).split(at_once)
        for_each = [None] * len(chunks) if config.greedy else uniforms.flatten().split(at_once)
        parts = zip(*map(sample_tokens, chunks, [config] * len(chunks), for_each), strict=True)
        return tuple(torch.cat(part).unflatten(0, logits.shape[:2]) for part in parts)
    logits = logits.float()
    ids = likeliest(logits, ALTERNATIVES)  # (b, a, 5)
    top = logits.gather(-1, ids)
    log_sum, entropy = log_sum_and_entropy(logits, top[..., 0])
    likely = ids, top, entropy
    if config.greedy:
        return ids[..., 0], (top[..., 0] - log_sum).exp(), log_sum, *likely
    k = min(config.top_k, logits.shape[-1])
    if k > ALTERNATIVES:
        top, ids = logits.topk(k, dim=-1)
    top, ids = top[..., :k], ids[..., :k]  # (b, a, k), likeliest first
    weights = (top / config.temperature).softmax(dim=-1)
    # A token stays when those before it hold less than top_p: the likeliest always does.
    weights = weights * (weights.cumsum(dim=-1) - weights < config.top_p)
    cumulative = weights.cumsum(dim=-1)
    place = (cumulative <= uniforms[..., None] * cumulative[..., -1:]).sum(dim=-1, keepdim=True)
    place = place.clamp(max=k - 1)
    confidence = (top.gather(-1, place)[..., 0] - log_sum).exp()
    return ids.gather(-1, place)[..., 0], confidence, log_sum, *likely


def step(
    logits: Tensor,
    state: SamplerState,
    config: RefineConfig,
    i: int | Tensor,
    uniforms: Tensor | None = None,
) -> StepOutput:
    """From `(b, a, v)` logits to a draft and the next input.

    Args:
        logits: as `process_logits` leaves them.
        i: iteration, from 0; a tensor where the step is compiled once for all of them.
        uniforms: `(b, n, a)` float32 in [0, 1): the first for sampling unless greedy, then the
            strategy's `num_uniforms`.
    """
    strategy = STRATEGIES[config.remasking]
    eos, mask = state.eos_token_id, state.mask_token_id
    i = torch.as_tensor(i, device=logits.device)
    for_sampling, for_remasking = None, uniforms
    if not config.greedy:
        for_sampling, for_remasking = uniforms[:, 0, : logits.shape[1]], uniforms[:, 1:]

    # Draft: every position is sampled anew; held ones keep their token.
    drawn = sample_tokens(logits, config, for_sampling)
    is_finite = drawn[2].isfinite().all(dim=-1)
    lengths = computed_lengths(state.tokens, config, mask)
    region = whole_region(drawn, state.tokens.shape[1], lengths, eos)
    tokens, confidence, log_sum, alternatives, top, entropy = region
    held = state.fixed
    if strategy.edits:  # MASK, and EOS where the answer cannot end, are minus infinity
        possible = logits.gather(-1, state.tokens[..., None])[..., 0] > -math.inf
        held = held | (possible & (confidence < config.editing_threshold))
    tokens = torch.where(held, state.tokens, tokens)
    if config.repeats == "replace":
        confidence = torch.where(held, probability(logits, tokens, log_sum), confidence)
        again = repeated(tokens, confidence, tokens == eos, ~held)
        tokens = torch.where(again, _unlike_neighbours(alternatives, tokens, eos), tokens)
        held = held | again
    confidence = torch.where(held, probability(logits, tokens, log_sum), confidence)

    # Re-masking, unless this was the last iteration.
    free = ~state.fixed
    maskable = free & ~state.ever_unmasked if config.permanent else free
    reached = torch.ones_like(free[:1])  # (1, a), positions that growth has reached
    if config.added_tokens is not None:
        position = torch.arange(free.shape[1], device=free.device)[None]
        reached = position < config.added_tokens * (i + 1)
    is_eos = tokens == eos
    again = torch.zeros_like(free)
    if config.repeats == "remask":
        again = repeated(tokens, confidence, is_eos, maskable) & reached
    view = StepView(
        tokens=tokens,
        confidence=confidence,
        entropy=entropy,
        is_masked=state.tokens == mask,
        maskable=maskable & reached,
        repeated=again,
        is_eos=is_eos,
        region=(free & reached).sum(dim=-1),
        noise_level=state.noise_levels.index_select(0, i.reshape(1)),
        uniforms=for_remasking,
    )
    remask = strategy.remask(view, config) | (maskable & ~reached)
    remask = remask & (i < config.iterations - 1)

    # Completion: all tokens before the first visible EOS are shown; what follows becomes EOS.
    finished = torch.zeros_like(state.unchanged, dtype=torch.bool)
    if strategy.stops_when_complete:
        eos_seen = (is_eos & ~remask).cumsum(dim=-1) > 0
        unsettled = remask | (tokens != state.tokens) if strategy.edits else remask
        finished = ~(unsettled & ~eos_seen).any(dim=-1)
        tail = finished[:, None] & eos_seen & free
        tokens = tokens.masked_fill(tail, eos)
        confidence = torch.where(tail, probability(logits, tokens, log_sum), confidence)
        remask = remask & ~finished[:, None]

    # Early stop: identical drafts in a row, or a greedy draft that reproduces its own input.
    following = advance(state, tokens, remask, config)
    if config.patience > 0:
        finished = finished | (following.unchanged >= config.patience)
        if config.greedy:
            finished = finished | ((tokens == state.tokens) & ~remask).all(dim=-1)
    remask = remask & ~finished[:, None]
    likely = alternatives.int(), (top - log_sum[..., None]).exp().half(), entropy.half()
    return StepOutput(tokens, confidence, remask, finished, is_finite, *likely, following)


def advance(state: SamplerState, tokens: Tensor, remask: Tensor, config) -> SamplerState:
    """The state after a draft and its re-masking; `lad.diffusion.resume` restores it by this."""
    same = (tokens == state.previous).all(dim=-1)
    if STRATEGIES[config.remasking].stops_when_complete or config.added_tokens is not None:
        same &= (remask | state.ever_unmasked).all(dim=-1)  # nothing is shown for the first time
    unchanged = torch.where(same, state.unchanged + 1, 1)
    following = tokens.masked_fill(remask, state.mask_token_id)
    return SamplerState(following, tokens, unchanged, state.ever_unmasked | ~remask, *state[4:])


def probability(logits: Tensor, tokens: Tensor, log_sum: Tensor) -> Tensor:
    """`(b, a)` float32: the denoiser's probability of these tokens; 0 if not computed."""
    n = logits.shape[1]
    log = logits.gather(-1, tokens[:, :n, None])[..., 0].float() - log_sum[:, :n]
    return F.pad(log.exp(), (0, tokens.shape[1] - n))


def _unlike_neighbours(ids: Tensor, tokens: Tensor, eos: int) -> Tensor:
    """`(b, a)` int64: the likeliest of `(b, a, 5)` ids that no neighbour has; EOS may repeat."""
    neighbours = F.pad(tokens.masked_fill(tokens == eos, -1), (1, 1), value=-1)  # (b, a + 2)
    taken = (ids == neighbours[:, :-2, None]) | (ids == neighbours[:, 2:, None])
    return ids.gather(-1, (~taken).long().argmax(dim=-1, keepdim=True))[..., 0]


# -- the loop --------------------------------------------------------------------------------------


def refine(
    denoiser: Denoiser,
    prompt: Prompt | Tensor,
    config: RefineConfig | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Iterator[Step]:
    """The `Step` of every iteration, the last with the final draft; inputs are checked at the call.

    Args:
        prompt: text, chat messages, or `(p,)` token ids from `denoiser.encode`.
        config: `PRESETS["default"]` by default.
        draft: `(a,)` token ids to start from, MASK where nothing is known; all MASK by default.
        fixed: `(a,)` bool, positions of the draft that never change (infilling). The answer cannot
            end before the last of them.

    Raises:
        InvalidInput: an empty prompt, one that leaves no room for the answer, or a draft that does
            not fit.
        NumericalError: NaN or infinite logits; the message names the iteration.
    """
    config = config or PRESETS["default"]
    batch = make_batch(denoiser, [prompt], config, [draft], [fixed])
    return (steps[0] for steps in run_batch(denoiser, batch, config))


@torch.inference_mode()
def run_batch(denoiser: Denoiser, batch: Batch, config: RefineConfig) -> Iterator[dict[int, Step]]:
    """The steps of the unfinished sequences after every iteration, by the index of their prompt."""
    if config.remasking == "verified":
        from lad.diffusion.verified import verified

        yield from verified(denoiser, batch, config)
        return
    state, indices, generators = batch.state, batch.indices, batch.generators
    several = len(indices) > 1
    forward = denoiser.prepare(batch.prompts, batch.padding)
    take_step = denoiser.step or step
    num_uniforms = STRATEGIES[config.remasking].num_uniforms + (not config.greedy)
    inputs, fixed = state.tokens.cpu().numpy(), state.fixed.cpu().numpy()
    for i in range(batch.iteration, config.iterations):
        start = time.perf_counter()
        uniforms = draw_uniforms(generators, num_uniforms, state.tokens)  # while a GPU is idle
        lengths = computed_lengths(state.tokens, config, state.mask_token_id)
        logits = process_logits(forward(state.tokens, lengths), state, config)  # (b, a, v)
        output = take_step(logits, state, config, i, uniforms)
        tokens, confidence, remask, finished, is_finite, *likely = to_host(output[:-1])
        if not is_finite.all():
            where = f", prompt {indices[int(is_finite.argmin())]}" if several else ""
            raise NumericalError(
                f"iteration {i}{where}: the logits hold NaN or infinity, expected finite numbers; "
                "check the adapter with `lad info`, or use float32"
            )
        seconds = time.perf_counter() - start
        arrays = zip(inputs, tokens, confidence, remask, *likely, fixed, strict=True)
        yield {index: Step(i, *of, seconds) for index, of in zip(indices, arrays, strict=True)}
        if finished.all():
            return
        state, inputs = output.state, np.where(remask, denoiser.mask_token_id, tokens)
        if finished.any():
            left = np.flatnonzero(~finished)
            keep = torch.from_numpy(left).to(denoiser.device)
            state, inputs, fixed = state.select(keep), inputs[left], fixed[left]
            forward.select(keep)
            indices = [indices[n] for n in left]
            generators = [generators[n] for n in left]


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
    """Refine many answers at once; each is what a single run gives.

    Args:
        prompts: of any lengths, each as in `refine`; each answer region is `answer_length` long.
        on_iteration: called after every iteration with the steps of the unfinished sequences, by
            the index of their prompt. Raise from it to stop.
        drafts, fixed: one entry a prompt, as in `refine`; None where there is none.
        batch_size: most sequences at a time.

    Returns:
        One trace a prompt, in their order; a step's `seconds` are those of the whole batch.

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
    batches = []
    for n in range(0, len(prompts), batch_size):
        part = slice(n, n + batch_size)
        batches.append(make_batch(denoiser, prompts[part], config, drafts[part], fixed[part], n))
    steps_of: list[list[Step]] = [[] for _ in prompts]
    for batch in batches:
        for steps in run_batch(denoiser, batch, config):
            for index, taken in steps.items():
                steps_of[index].append(taken)
            if on_iteration is not None:
                on_iteration(steps)
    prompt_ids = [ids for batch in batches for ids in batch.prompt_ids]
    runs = zip(prompts, prompt_ids, steps_of, strict=True)
    return [make_trace(denoiser, text, ids, config, steps) for text, ids, steps in runs]


def record(
    denoiser: Denoiser,
    prompt: Prompt,
    config: RefineConfig | None = None,
    on_step: Callable[[Step], object] | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Trace:
    """The trace of a whole refinement; arguments and errors are those of `refine`.

    `on_step` is called after every iteration; raise from it to stop.
    """
    watch = None if on_step is None else lambda steps: on_step(steps[0])
    return refine_batch(denoiser, [prompt], config, watch, drafts=[draft], fixed=[fixed])[0]


# -- inputs ----------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Checked inputs: `prompts` `(b, p)` int64, left-padded by `padding` `(b,)`, and the state."""

    indices: list[int]
    prompt_ids: list[Tensor]
    prompts: Tensor
    padding: Tensor | None
    state: SamplerState
    generators: list[torch.Generator]
    iteration: int = 0  # the first to run: see `lad.diffusion.resume`


@torch.inference_mode()
def make_batch(
    denoiser: Denoiser,
    prompts: Sequence[Prompt | Tensor],
    config: RefineConfig,
    drafts: Sequence[Tensor | None],
    fixed: Sequence[Tensor | None],
    first: int = 0,
) -> Batch:
    """Check every input and make one batch; `first` is the index of the first prompt."""
    prompt_ids = [
        prompt.to(denoiser.device) if isinstance(prompt, Tensor) else denoiser.encode(prompt)
        for prompt in prompts
    ]
    for ids in prompt_ids:
        check_prompt_fits(denoiser, ids, config)
    b, a = len(prompts), config.answer_length
    tokens = torch.full((b, a), denoiser.mask_token_id, device=denoiser.device)
    is_fixed = torch.zeros_like(tokens, dtype=torch.bool)
    for n, (draft, positions) in enumerate(zip(drafts, fixed, strict=True)):
        check_draft(denoiser, a, draft, positions)
        if draft is not None:
            tokens[n] = draft
        if positions is not None:
            is_fixed[n] = positions
    # A fixed word behind an EOS would not be part of the answer.
    words = is_fixed & (tokens != denoiser.eos_token_id)
    word_follows = words.flip(-1).cumsum(dim=-1).flip(-1) > 0
    levels = [noise_level(i, config.iterations, config.sharpness) for i in range(config.iterations)]
    state = SamplerState(
        tokens=tokens,
        previous=torch.full_like(tokens, -1),
        unchanged=torch.ones(b, dtype=torch.int64, device=denoiser.device),
        ever_unmasked=tokens != denoiser.mask_token_id,
        fixed=is_fixed,
        no_eos=word_follows & ~is_fixed,
        noise_levels=torch.tensor(levels, dtype=torch.float64, device=denoiser.device),
        mask_token_id=denoiser.mask_token_id,
        eos_token_id=denoiser.eos_token_id,
    )
    generators = [torch.Generator().manual_seed(config.seed) for _ in prompts]
    padded, padding = pad_prompts(prompt_ids)
    return Batch([*range(first, first + b)], prompt_ids, padded, padding, state, generators)
