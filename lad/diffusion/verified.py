"""Verified refinement: the denoiser drafts, the frozen backbone reads the draft and decides.

    even iterations   the denoiser draws a window of MASK behind what is known
    odd iterations    the backbone, without the adapter and with a cache of its own, reads the
                      window once and keeps the longest prefix that it would have said itself, and
                      its own next token; the rest is masked again

The answer is what the backbone says from left to right, token for token; the draft only decides in
how few passes. A window costs two passes and gives at least one token. In the same pass the
backbone may read `variants` of the draft, as a batch, and goes on with the one of which it keeps
most. Sampling is covered too: a position has one random number, and both models draw by it. Fixed
tokens are kept as they are read.

It is exact in float32, up to ties: logits of several positions read at once differ by rounding
from those of one. In bfloat16 rounding is coarser, so two near equal tokens may change places; the
answer is then greedy text under that rounding.

Sources: speculative decoding (Leviathan et al., 2023; Chen et al., 2023), with a draft made in one
pass as in blockwise parallel decoding (Stern et al., 2018).

Shapes: p = prompt, a = positions of the answer region; a batch is answered one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.lookahead import computed_lengths
from lad.diffusion.numbers import draw_uniforms, to_host
from lad.diffusion.sampler import Batch, SamplerState, probability, process_logits, sample_tokens
from lad.diffusion.trace import ALTERNATIVES, Step
from lad.models.loading import SPREAD
from lad.models.registry import load_backbone
from lad.utils import NumericalError

_backbones: WeakKeyDictionary[Denoiser, PreTrainedModel] = WeakKeyDictionary()


def bare_backbone(denoiser: Denoiser) -> PreTrainedModel:
    """The backbone without an adapter, read from its files at the first call.

    A second set of weights (0.5 GB for the default model in float32): an adapter that is merged
    for speed cannot be taken out exactly, nor in less time than a pass.
    """
    if denoiser not in _backbones:
        model = denoiser.causal_lm
        is_spread = len({parameter.device for parameter in model.parameters()}) > 1
        device = SPREAD if is_spread else denoiser.device
        _backbones[denoiser] = load_backbone(denoiser.backbone.spec, device, model.dtype).model
    return _backbones[denoiser]


def verified(denoiser: Denoiser, batch: Batch, config: RefineConfig) -> Iterator[dict[int, Step]]:
    """The steps of every sequence of a batch, one sequence after the other, by its index."""
    for n, index in enumerate(batch.indices):
        state = batch.state.select(torch.tensor([n], device=denoiser.device))
        uniforms = draw_uniforms([batch.generators[n]], int(not config.greedy), state.tokens)
        for step in _verified(denoiser, batch.prompt_ids[n][None], state, config, uniforms):
            yield {index: step}


def variants(
    draft: Tensor, drawn: Sequence[Tensor], fixed: Tensor, chosen: slice, count: int
) -> Tensor:
    """`(c, a)`, c at most `count`: the `(1, a)` draft, and with one token replaced by another.

    Those come first that are likeliest to be what the backbone says where it first disagrees: the
    probability of another token times that of all drafted tokens before it, by the denoiser.
    `drawn` is what it drew, and `chosen` the positions that are read.
    """
    _, confidence, ids, probabilities, _ = (x[:, chosen] for x in drawn)
    before = F.pad(confidence[0], (1, 0), value=1.0)[:-1].cumprod(dim=0)  # (n,)
    free = (ids != draft[:, chosen, None]) & ~fixed[:, chosen, None]
    score = (before[:, None] * probabilities[0].float() * free[0]).flatten()
    top = score.topk(min(count - 1, len(score))).indices
    result = draft.repeat(1 + len(top), 1)
    place = torch.arange(len(top), device=draft.device) + 1
    result[place, chosen.start + top // ids.shape[-1]] = ids.flatten()[top].long()
    return result


def _verified(
    denoiser: Denoiser,
    prompt: Tensor,
    state: SamplerState,
    config: RefineConfig,
    uniforms: Tensor | None,
) -> Iterator[Step]:
    """The steps of one sequence: `(1, p)` prompt, a state of one, `(1, 1, a)` uniforms."""
    backbone, forward = bare_backbone(denoiser), denoiser.prepare(prompt)
    cache = DynamicCache(config=backbone.config)
    inputs, fixed, eos = state.tokens, state.fixed, state.eos_token_id
    a = inputs.shape[1]
    position = torch.arange(a, device=inputs.device)
    window, known = min(config.window or a, config.lookahead or a), 0
    none = torch.zeros(1, a, ALTERNATIVES, device=inputs.device)
    tokens = torch.full_like(none, eos, dtype=torch.int64)
    drawn = tokens[..., 0], none[..., 0], tokens.int(), none.half(), none[..., 0].half()
    for i in range(config.iterations):
        start, reads = time.perf_counter(), i % 2 == 1
        if reads:  # and says a token more than it reads
            high, seen = min(known + window + 1, a), cache.get_seq_length()
            if seen:  # or the prompt would be read as often
                chosen = slice(known, high - 1)
                inputs = variants(inputs, drawn, fixed, chosen, config.variants)  # (c, a)
                cache.batch_select_indices(inputs.new_zeros(len(inputs)))
            tokens = torch.cat([prompt.expand(len(inputs), -1), inputs[:, : high - 1]], dim=1)
            options = {"past_key_values": cache, "logits_to_keep": high - known}
            logits = backbone(tokens[:, seen:], **options).logits
        else:
            lengths = computed_lengths(inputs, config, state.mask_token_id)
            high = a if lengths is None else int(lengths)
            logits = forward(inputs, lengths)[:, known:high]
        new = slice(known, high)
        logits = process_logits(logits, state._replace(no_eos=state.no_eos[:, new]), config)
        uniform = None if uniforms is None else uniforms[:, 0, new].expand(len(logits), -1)
        drew = sample_tokens(logits, config, uniform)
        if reads:  # of several drafts, go on with the one of which most is kept
            said = torch.where(fixed[:, new], state.tokens[:, new], drew[0])
            agreed = (said == inputs[:, new]).long().cumprod(dim=-1).sum(dim=-1)  # (c,)
            best = agreed.argmax(dim=0, keepdim=True)
            inputs, logits, *drew = (x[best] for x in (inputs, logits, *drew))
            cache.batch_select_indices(best)
        tokens, confidence, log_sum, ids, top, entropy = drew
        if not log_sum.isfinite().all():
            raise NumericalError(
                f"iteration {i}: the logits of the {'backbone' if reads else 'denoiser'} hold NaN "
                "or infinity, expected finite numbers; use float32"
            )
        tokens = torch.where(fixed[:, new], state.tokens[:, new], tokens)
        confidence = torch.where(fixed[:, new], probability(logits, tokens, log_sum), confidence)
        probabilities = (top - log_sum[..., None]).exp().half()
        latest = tokens, confidence, ids.int(), probabilities, entropy.half()
        drawn = [  # what this pass did not compute is as it was
            torch.cat([old[:, :known], x, old[:, high:]], dim=1)
            for old, x in zip(drawn, latest, strict=True)
        ]
        draft, confidence, *likely = drawn

        shown, finished = known + window, i == config.iterations - 1
        if reads:
            shown = known = min(known + int(agreed.max()) + 1, high)
            cache.crop(known - high)  # the last token is not read yet
            finished |= known == a or bool((draft[:, :known] == eos).any())
        if finished:
            end = ((draft == eos) | (position >= known)).cumsum(dim=-1) > 0
            behind = end & (draft != eos) & ~fixed
            draft, confidence = draft.masked_fill(behind, eos), confidence.masked_fill(behind, 1.0)
            shown = a
        remask = (position >= shown) & ~fixed
        arrays = to_host([inputs, draft, confidence, remask, *likely, fixed])
        seconds = time.perf_counter() - start
        yield Step(i, *(x[0] for x in arrays), seconds=seconds)
        if finished:
            return
        inputs = draft.masked_fill(remask, state.mask_token_id)
