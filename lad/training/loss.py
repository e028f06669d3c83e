"""What a training step minimises, and how it is measured on pairs never trained on.

The loss is the cross-entropy of the answer's tokens, at every corrupted position and at a fraction
of the others: the denoiser must both repair and leave alone. A fraction of the pairs is instead
left clean and predicted left to right (`add_causal_lm`), which the backbone must not forget.
A second stage may add the entropy of masked tokens that are predicted right, so that more of them
pass a threshold at once (certainty forcing: dParallel, https://arxiv.org/abs/2509.26488). Where
nothing behind a token is visible, a part of its target may be the backbone's own distribution, not
the one token it took (Hinton et al., 2015, https://arxiv.org/abs/1503.02531).

Shapes: b = batch, t = width, m = predicted positions, d = hidden size, v = vocabulary, k = the
backbone's likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lad.diffusion.config import CorruptionConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser, attention_mask
from lad.training.config import TrainConfig
from lad.training.data import CHOICE, USUAL, PackedPairs
from lad.utils import NumericalError

MASKED_FRACTIONS = (0.25, 0.5, 0.75)
MOST_VALIDATED = 512  # pairs
WINDOWS = (8, 64)  # positions, of `cut_regions`
LIKELIEST = 16  # k


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed pairs cut to one width."""

    tokens: Tensor  # (b, t) int64, clean
    prompt_lengths: Tensor  # (b,)
    answer: Tensor  # (b, t) bool, the answer region: everything after the prompt
    tail: Tensor  # (b, t) bool, the EOS positions after the first
    kinds: Tensor  # (b,) int64, see `PackedPairs`
    likely: Tensor | None  # (b, t, k) int64 and
    shares: Tensor | None  # (b, t, k) float32, see `PackedPairs`


def take(pairs: PackedPairs, indices: list[int], width: int) -> Batch:
    """A batch of the pairs at `indices`, cut to `width` positions."""
    position = torch.arange(width, device=pairs.tokens.device)
    indices = torch.tensor(indices, device=position.device)
    lengths, ends = pairs.prompt_lengths[indices], pairs.ends[indices]
    tokens = pairs.tokens[indices, :width].long()
    answer, tail = position >= lengths[:, None], position > ends[:, None]
    likely = shares = None
    if pairs.likely is not None:
        likely, shares = pairs.likely[indices, :width].long(), pairs.shares[indices, :width].float()
    return Batch(tokens, lengths, answer, tail, pairs.kinds[indices], likely, shares)


@torch.no_grad()
def with_likely_tokens(denoiser: Denoiser, pairs: PackedPairs, positions: int) -> PackedPairs:
    """The pairs with the backbone's likeliest next tokens; `positions` are computed at a time."""
    n, t = pairs.tokens.shape
    likely = pairs.tokens.new_zeros((n, t, LIKELIEST))
    shares = torch.zeros_like(likely, dtype=torch.float16)
    with denoiser.adapter_off():
        for rows in pairs.ends.argsort().split(max(positions // t, 1)):
            width = int(pairs.ends[rows].max()) + 1
            tokens = pairs.tokens[rows, :width].long()
            mask = attention_mask(pairs.ends.new_full((len(rows),), width), width, "prompt-causal")
            states = denoiser.hidden_states(tokens, mask)[:, :-1]
            best = denoiser.causal_lm.lm_head(states).topk(LIKELIEST)
            likely[rows, 1:width] = best.indices.int()
            shares[rows, 1:width] = best.values.float().softmax(-1).half()
    return replace(pairs, likely=likely, shares=shares)


def answer_states(
    denoiser: Denoiser, inputs: Tensor, prompt_lengths: Tensor, chosen: Tensor, causal_from=None
) -> Tensor:
    """`(m, d)` final hidden states that predict the `m` positions marked in `chosen` `(b, t)`.

    `causal_from` is `(b,)` int64, from `add_causal_lm`.
    """
    config, width = denoiser.config, inputs.shape[1]
    # A prompt that holds the MASK token as text is read as text.
    answer = torch.arange(width, device=inputs.device) >= prompt_lengths[:, None]
    given = {"is_masked": (inputs == denoiser.mask_token_id) & answer, "causal_from": causal_from}
    mask = attention_mask(prompt_lengths, width, config.attention, config.target, **given)
    states = denoiser.hidden_states(inputs, mask)  # (b, t, d)
    return states[chosen.roll(-config.shift, dims=1)]


def answer_logits(denoiser: Denoiser, *args) -> Tensor:
    """`(m, v)` logits of the `m` chosen positions; takes the arguments of `answer_states`.

    NumericalError where one is NaN or infinite.
    """
    logits = denoiser.causal_lm.lm_head(answer_states(denoiser, *args))
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError(
            "the logits hold NaN or infinity, expected finite numbers; "
            "check the adapter with `lad info`, or use float32"
        )
    return logits


def token_losses(
    logits: Tensor,
    targets: Tensor,
    certainty: Tensor | None = None,
    soft: Tensor | None = None,
    likely: Tensor | None = None,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`(m,)` cross-entropies in nats, and `(m,)` bool: is the likeliest token the right one?

    Where it is, `certainty` `(m,)` times the entropy of the prediction is added to the former.
    A share `soft` `(m,)` of each target is the distribution `shares` `(m, k)` over `likely`
    `(m, k)`, the rest the right token.
    """
    correct, log_p = logits.argmax(-1) == targets, logits.float().log_softmax(-1)
    losses = -log_p.gather(-1, targets[:, None])[:, 0]
    if soft is not None:
        losses = losses.lerp(-(shares * log_p.gather(-1, likely)).sum(-1), soft)
    if certainty is not None:
        losses = losses + certainty * correct * -(log_p.exp() * log_p).sum(-1)
    return losses, correct


def chunked_losses(
    head: nn.Module, states: Tensor, chunk: int, **given: Tensor
) -> tuple[Tensor, Tensor]:
    """`token_losses` of `(m, d)` states with the logits of `chunk` positions in memory at a time.

    `given` are its further arguments. The logits are computed again in the backward pass: 2,048
    positions of LLaMA 3's vocabulary take 1 GB in float32, and their gradient as much again. 0
    computes all of them once.
    """

    def losses(states: Tensor, *given_here: Tensor) -> tuple[Tensor, Tensor]:
        return token_losses(head(states), **dict(zip(given, given_here, strict=True)))

    if not chunk:
        return losses(states, *given.values())
    parts = [
        checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(*(values.split(chunk) for values in (states, *given.values())), strict=True)
    ]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def denoising_loss(
    denoiser: Denoiser, batch: Batch, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy (nats, with a gradient) and accuracy of a batch under noise."""
    inputs = noisy_inputs(denoiser, batch, config, generator)
    causal_from = None
    if config.causal_lm_fraction:
        inputs, causal_from = add_causal_lm(batch, inputs, config.causal_lm_fraction, generator)
    weights = loss_weights(batch, inputs, denoiser.mask_token_id, config, generator, causal_from)
    if config.cut_share:
        cut = cut_regions(batch, inputs, denoiser.mask_token_id, config.cut_share, generator)
        weights = weights * (torch.arange(inputs.shape[1], device=cut.device) < cut[:, None])
        # From there on nothing is seen from before, as where a left-to-right sequence begins.
        causal_from = cut if causal_from is None else cut.minimum(causal_from)
    chosen = weights > 0
    given = {"targets": batch.tokens[chosen]}
    if config.certainty:
        given["certainty"] = config.certainty * (inputs == denoiser.mask_token_id)[chosen]
    if batch.likely is not None:
        open_end = behind_all_visible(batch, inputs, denoiser.mask_token_id, causal_from)[chosen]
        given |= {"soft": config.soft_targets * open_end}
        given |= {"likely": batch.likely[chosen], "shares": batch.shares[chosen]}
    weights = weights[chosen]
    states = answer_states(denoiser, inputs, batch.prompt_lengths, chosen, causal_from)
    head = denoiser.causal_lm.lm_head
    losses, correct = chunked_losses(head, states, config.loss_chunk, **given)
    total = weights.sum().clamp(min=1.0)
    return (losses * weights).sum() / total, (correct * weights).sum() / total


def noisy_inputs(
    denoiser: Denoiser, batch: Batch, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    """`(b, t)` int64, the batch's tokens under the noise that training gives each of them."""
    inputs = batch.tokens
    for kind, corruption in enumerate(config.corruptions):
        noisy = corrupt_batch(denoiser, batch, corruption, generator)
        inputs = torch.where(batch.kinds[:, None] == kind, noisy, inputs)
    return inputs


def corrupt_batch(
    denoiser: Denoiser, batch: Batch, config: CorruptionConfig, generator: torch.Generator
) -> Tensor:
    """`(b, t)` int64, the batch's tokens with its answers under noise."""
    vocabulary = (denoiser.vocabulary_size, denoiser.mask_token_id)
    return corrupt(batch.tokens, batch.answer, *vocabulary, generator, config)


def add_causal_lm(
    batch: Batch, inputs: Tensor, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A fraction of the batch made clean, to be predicted left to right from a random position on.

    Up to that position of the answer, attention is that of the denoiser; from there on each token
    is predicted from those before it alone. Returned are `(b, t)` inputs and `(b,)` these
    positions, t for all other sequences.
    """
    b, t = inputs.shape
    chance, place = torch.rand((2, b), generator=generator, device=inputs.device)
    chosen = chance < fraction
    lengths = batch.answer.sum(dim=1) - batch.tail.sum(dim=1)  # the first EOS counts
    start = batch.prompt_lengths + (place * lengths).long()
    clean = torch.where(chosen[:, None], batch.tokens, inputs)
    return clean, torch.where(chosen, start, t)


def cut_regions(
    batch: Batch, inputs: Tensor, mask_token_id: int, share: float, generator: torch.Generator
) -> Tensor:
    """`(b,)` int64: where each answer region ends; for a share of the batch behind a window.

    The window is 8 to 64 positions from the leftmost MASK on, and all that is visible, as with
    `RefineConfig.lookahead`, so that a region's end does not tell where the answer ends. t for all
    other sequences.
    """
    b, t = inputs.shape
    chance, place = torch.rand((2, b), generator=generator, device=inputs.device)
    position = torch.arange(t, device=inputs.device)
    is_masked = batch.answer & (inputs == mask_token_id)
    first = position.where(is_masked, t).amin(dim=1)
    visible = (position + 1).where(~is_masked, 0).amax(dim=1)
    low, high = WINDOWS
    cut = (first + low + (place * (high - low + 1)).long()).maximum(visible).clamp(max=t)
    return cut.where(chance < share, t)


def behind_all_visible(
    batch: Batch, inputs: Tensor, mask_token_id: int, causal_from: Tensor | None = None
) -> Tensor:
    """`(b, t)` bool: where the backbone wrote the answer and nothing to the right is visible.

    Not behind the first EOS, where it wrote nothing.
    """
    position = torch.arange(inputs.shape[1], device=inputs.device)
    is_visible = (inputs != mask_token_id) | ~batch.answer
    last = position.where(is_visible, 0).amax(dim=1)
    if causal_from is not None:
        last = last.minimum(causal_from - 1)
    return (batch.kinds[:, None] == USUAL) & (position > last[:, None]) & ~batch.tail


def loss_weights(
    batch: Batch,
    inputs: Tensor,
    mask_token_id: int,
    config: TrainConfig,
    generator: torch.Generator,
    causal_from: Tensor | None = None,
) -> Tensor:
    """`(b, t)` float32: the weight of each position in the loss; 0 is left out.

    A sequence of `add_causal_lm` counts from `causal_from` to its first EOS, in full.
    """
    t = inputs.shape[1]
    chance = torch.rand((2, *inputs.shape), generator=generator, device=inputs.device)
    wanted = (inputs != batch.tokens) | (chance[0] < config.clean_share)
    chosen = batch.answer & wanted & (~batch.tail | (chance[1] < config.eos_tail_share))
    position = torch.arange(t, device=inputs.device)
    if causal_from is not None:
        ahead = batch.answer & ~batch.tail & (position >= causal_from[:, None])
        chosen = torch.where(causal_from[:, None] < t, ahead, chosen)
    weights = torch.where(batch.kinds[:, None] == CHOICE, config.choice_weight, 1.0) * chosen
    if not config.distance_decay:
        return weights
    masked = batch.answer & (inputs == mask_token_id)
    left = torch.where(masked, 0, position).cummax(dim=1).values
    right = torch.where(masked, 2 * t, position).flip(1).cummin(dim=1).values.flip(1)
    # Masks between a masked position and the nearest token; on the left, at least the prompt's.
    distance = torch.minimum(position - left, right - position) - masked.long()
    return weights * torch.exp(-distance / config.distance_decay)


def mask_share(
    denoiser: Denoiser, batch: Batch, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`(b, t)` int64 tokens with a fraction of each answer masked, and `(b, t)` bool, which count.

    Masks fall on the whole answer region, EOS tail included, so the answer's length is not given
    away; only masked tokens of the answer and its first EOS count.
    """
    amounts = {"all_masked": 0.0, "mask_probability": 1.0, "mask_fraction": (fraction, fraction)}
    only_masks = CorruptionConfig(**amounts, kinds=())
    noisy = corrupt_batch(denoiser, batch, only_masks, generator)
    return noisy, (noisy == denoiser.mask_token_id) & batch.answer & ~batch.tail


def masked_predictions(
    denoiser: Denoiser,
    pairs: PackedPairs,
    fraction: float,
    batch_size: int,
    seed: int,
    on_done: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What a denoiser predicts where a given share of every answer is masked, see `mask_share`.

    Yields `(m, v)` float32 logits, `(m,)` right tokens and `(m,)` indices of their pairs. The masks
    hang on the seed alone.
    """
    n, context = pairs.tokens.shape
    batch = take(pairs, list(range(n)), context)
    generator = torch.Generator(batch.tokens.device).manual_seed(seed)
    noisy, counted = mask_share(denoiser, batch, fraction, generator)
    place = torch.arange(min(batch_size, n), device=noisy.device)
    for first in range(0, n, batch_size):
        # One shape throughout, so that a compiled model is reused: the last batch wraps round and
        # what it repeats is not counted.
        index = (first + place) % n
        chosen = counted[index] & (first + place < n)[:, None]
        logits = answer_logits(denoiser, noisy[index], batch.prompt_lengths[index], chosen)
        yield logits.detach().float(), batch.tokens[index][chosen], index[chosen.nonzero()[:, 0]]
        on_done(min(first + batch_size, n), n)


def masked_sums(denoiser: Denoiser, pairs: PackedPairs, *args) -> Tensor:
    """`(3, n)` float64 on the CPU: losses, hits and number of masked tokens, summed for each pair.

    Takes the arguments of `masked_predictions`.
    """
    sums = torch.zeros((3, len(pairs)), dtype=torch.float64)
    for logits, targets, rows in masked_predictions(denoiser, pairs, *args):
        losses, hits = token_losses(logits, targets)
        values = torch.stack([losses, hits, torch.ones_like(losses)])
        sums.index_add_(1, rows.cpu(), values.double().cpu())
    return sums


def validate(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{"0.25": {"ce": nats, "accuracy": fraction, "error", "n", "answers"}, ...}, see `mask_share`.

    `n` tokens of the first 512 `answers` are counted; where n is 0 the others are None. `error` is
    the accuracy's standard error over answers, because the tokens of one are not independent
    (Cochran, 1977). With gradients, as in training, so that compiled layers are not compiled again.
    """
    pairs, scores = pairs.map(lambda values: values[:MOST_VALIDATED]), {}
    for fraction in MASKED_FRACTIONS:
        losses, hits, tokens = masked_sums(denoiser, pairs, fraction, batch_size, seed)
        n = tokens.sum()
        accuracy = hits.sum() / n
        error = (hits - accuracy * tokens).norm() / n
        values = {"ce": losses.sum() / n, "accuracy": accuracy, "error": error}
        scores[f"{fraction:g}"] = {k: v.item() if n else None for k, v in values.items()}
        scores[f"{fraction:g}"] |= {"n": int(n), "answers": int((tokens > 0).sum())}
    return scores
