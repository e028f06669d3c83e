"""What a training step minimises, and how it is measured on pairs never trained on.

The loss is plain cross-entropy at every answer position, damaged or not: the denoiser must both
repair and leave alone. EOS positions after the first are thinned out; there are many and they say
little.

Shapes: b = batch, t = width, m = positions that enter the loss, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.corruption import CorruptionConfig, corrupt
from lad.denoiser import Denoiser, attention_mask
from lad.training.pairs import PackedPairs

__all__ = ["MASKED_FRACTIONS", "Batch", "answer_logits", "draft_inputs", "take", "validate"]

MASKED_FRACTIONS = (0.25, 0.5, 0.75)

# What a draft is drawn from: like the first iterations of a refinement, mostly masks.
BEFORE_DRAFT = CorruptionConfig(
    all_masked=0.3, mask_probability=1.0, mask_fraction=(0.3, 1.0), structural_probability=0.0
)


class Batch:
    """Rows of packed pairs cut to one width.

    Attributes:
        tokens: `(b, t)` int64, clean.
        prompt_lengths: `(b,)`.
        answer: `(b, t)` bool, the answer region: everything after the prompt.
        tail: `(b, t)` bool, the EOS positions after the first.
    """

    def __init__(self, pairs: PackedPairs, rows: Tensor, width: int) -> None:
        self.tokens = pairs.tokens[rows, :width].long()
        self.prompt_lengths = pairs.prompt_lengths[rows]
        position = torch.arange(width, device=self.tokens.device)
        self.answer = position >= self.prompt_lengths[:, None]
        self.tail = position > pairs.ends[rows][:, None]


def take(pairs: PackedPairs, rows: list[int], width: int) -> Batch:
    """Cut a batch; `rows` are indices into `pairs`."""
    return Batch(pairs, torch.tensor(rows, device=pairs.tokens.device), width)


def answer_logits(
    denoiser: Denoiser, inputs: Tensor, prompt_lengths: Tensor, chosen: Tensor
) -> Tensor:
    """`(m, v)` logits of the `m` positions marked in `chosen`.

    Args:
        inputs: `(b, t)` int64, damaged.
        chosen: `(b, t)` bool, positions to predict; no position 0 with the shifted target.
    """
    settings = denoiser.config
    mask = attention_mask(prompt_lengths, inputs.shape[1], settings.attention, settings.target)
    states = denoiser.hidden_states(inputs, mask)  # (b, t, d)
    if settings.target == "next":  # the state one to the left makes the prediction
        chosen = chosen.roll(-1, dims=1)
    return denoiser.causal_lm.lm_head(states[chosen])


def draft_inputs(denoiser: Denoiser, batch: Batch, generator: torch.Generator) -> Tensor:
    """`(b, t)` the model's own drafts as training inputs.

    One draft a row, drawn greedily for half the rows and from the model's probabilities for the
    rest, as the sampler may do either. Then half the rows are masked again in part, as between
    iterations with re-noising, and half are left whole, as without.

    Training on one's own drafts is what makes the refinement of visible tokens work (SUNDAE,
    Savinov et al., 2022).
    """
    masked = corrupt(
        batch.tokens,
        batch.answer,
        denoiser.vocabulary_size,
        denoiser.mask_token_id,
        generator,
        BEFORE_DRAFT,
    )
    # Gradients stay on and are thrown away: switching them off would make a compiled layer
    # compile again, which costs more than the graph.
    logits = answer_logits(denoiser, masked, batch.prompt_lengths, batch.answer).detach().float()
    b = len(batch.tokens)
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
    gumbel = uniform.clamp_(min=1e-10).log_().neg_().log_().neg_()
    sampled = torch.rand((b, 1), generator=generator, device=logits.device) < 0.5
    sampled = sampled.expand_as(batch.answer)[batch.answer]  # (m,)
    logits[:, denoiser.mask_token_id] = -torch.inf
    drawn = (logits + gumbel * sampled[:, None]).argmax(dim=-1)
    drafts = batch.tokens.masked_scatter(batch.answer, drawn)
    again = CorruptionConfig(
        all_masked=0.0, mask_probability=0.5, mask_fraction=(0.0, 1.0), structural_probability=0.0
    )
    return corrupt(
        drafts,
        batch.answer,
        denoiser.vocabulary_size,
        denoiser.mask_token_id,
        generator,
        again,
    )


def loss_and_accuracy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats, and share of positions whose likeliest token is right."""
    return F.cross_entropy(logits.float(), targets), (logits.argmax(-1) == targets).float().mean()


def validate(
    denoiser: Denoiser,
    pairs: PackedPairs,
    rows_per_batch: int,
    most_rows: int = 512,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Cross-entropy and accuracy where a given share of the answer is masked and the rest is clean.

    Masks fall on the whole answer region, EOS tail included, so the answer's length is not given
    away; only tokens of the answer and its first EOS are counted.

    Returns:
        {"0.25": {"ce": nats, "accuracy": share, "n": tokens counted}, ...}
    """
    context = pairs.tokens.shape[1]
    rows = list(range(min(len(pairs), most_rows)))
    scores = {}
    for fraction in MASKED_FRACTIONS:
        # The same masks at every call: validations of one run differ by the model alone.
        generator = torch.Generator(pairs.tokens.device).manual_seed(seed)
        only_masks = CorruptionConfig(
            all_masked=0.0,
            mask_probability=1.0,
            mask_fraction=(fraction, fraction),
            structural_probability=0.0,
        )
        total = torch.zeros(3, device=pairs.tokens.device, dtype=torch.float64)
        for first in range(0, len(rows), rows_per_batch):
            # One shape throughout, so that a compiled model is reused: the last batch wraps round
            # and what it repeats is not counted.
            part = [rows[i % len(rows)] for i in range(first, first + rows_per_batch)]
            batch = take(pairs, part, context)
            noisy = corrupt(
                batch.tokens,
                batch.answer,
                denoiser.vocabulary_size,
                denoiser.mask_token_id,
                generator,
                only_masks,
            )
            counted = (noisy == denoiser.mask_token_id) & batch.answer & ~batch.tail
            counted[max(len(rows) - first, 0) :] = False
            logits = answer_logits(denoiser, noisy, batch.prompt_lengths, counted).detach().float()
            targets = batch.tokens[counted]
            total[0] += F.cross_entropy(logits, targets, reduction="sum")
            total[1] += (logits.argmax(-1) == targets).sum()
            total[2] += len(targets)
        ce, right, n = total.tolist()
        scores[f"{fraction:g}"] = {"ce": ce / n, "accuracy": right / n, "n": int(n)}
    return scores
