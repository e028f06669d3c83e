"""What a training step minimises, and how it is measured on pairs never trained on.

The loss is cross-entropy on the answer, at every position that was damaged and at a share of those
that were not: the denoiser must both repair and leave alone. EOS positions after the first are
thinned out; there are many and they say little. What stands far from anything it could be told from
counts less the farther it is (`weigh`).

Inputs are of two sorts: text under structural noise (lad/diffusion/corruption.py), and the denoiser's own
drafts. A chain of drafts costs no forward pass beyond those that train: the logits of one step are
the drafts that the next step learns to mend, masked again as the sampler would or left whole.
Training on one's own drafts is what makes the refinement of visible tokens work (SUNDAE, Savinov et
al., 2022).

Beside them some rows are merely read on, clean, from left to right (`anchor`): the backbone knows
the next token far better than any adapter trained for minutes, and a row with a gap at the end asks
for a next token only once, where reading asks for it at every position.

Shapes: b = batch, t = width, m = positions that are predicted, d = hidden size, v = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lad.diffusion.config import CorruptionConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser, attention_mask
from lad.training.data import PackedPairs

__all__ = [
    "MASKED_FRACTIONS",
    "Batch",
    "Manner",
    "anchor",
    "answer_logits",
    "mask_share",
    "redraw",
    "take",
    "token_losses",
    "validate",
    "weigh",
]

MASKED_FRACTIONS = (0.25, 0.5, 0.75)

# What the first draft of a chain is drawn from: mostly nothing but masks, as in a refinement.
BEFORE_DRAFTS = CorruptionConfig(
    all_masked=0.6,
    mask_probability=1.0,
    mask_fraction=(0.2, 1.0),
    suffix_share=0.5,
    structural_probability=0.5,
)

# How the rows of a chain are masked again, as shares: left whole; all but what is sure; a part.
MANNERS = {"none": 0.5, "threshold": 0.25, "part": 0.25}


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
    denoiser: Denoiser,
    inputs: Tensor,
    prompt_lengths: Tensor,
    chosen: Tensor,
    reading_from: Tensor | None = None,
) -> Tensor:
    """`(m, v)` logits of the `m` positions marked in `chosen`.

    Args:
        inputs: `(b, t)` int64, damaged.
        chosen: `(b, t)` bool, positions to predict; no position 0 with the shifted target.
        reading_from: `(b,)` int64, see `attention_mask`.
    """
    settings = denoiser.config
    # A prompt that holds the MASK token as text is read as text.
    answer = torch.arange(inputs.shape[1], device=inputs.device) >= prompt_lengths[:, None]
    masked = (inputs == denoiser.mask_token_id) & answer
    mask = attention_mask(
        prompt_lengths,
        inputs.shape[1],
        settings.attention,
        settings.target,
        masked=masked,
        causal_from=reading_from,
    )
    states = denoiser.hidden_states(inputs, mask)  # (b, t, d)
    chosen = chosen.roll(-settings.shift, dims=1)  # the states that predict these
    return denoiser.causal_lm.lm_head(states[chosen])


def anchor(
    batch: Batch, inputs: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A share of the rows as clean text that is read on from a random position of the answer.

    Up to that position a row is seen as a denoiser sees it, both ways; from there on each token is
    predicted from those before it alone.

    Returns:
        `(b, t)` int64, `inputs` but for the rows chosen, and `(b,)` int64, where each row's
        reading begins: t for all the others.
    """
    rows, t = inputs.shape
    chance, place = torch.rand((2, rows), generator=generator, device=inputs.device)
    chosen = chance < share
    lengths = batch.answer.sum(dim=1) - batch.tail.sum(dim=1)  # the first EOS counts
    start = batch.prompt_lengths + (place * lengths).long()
    clean = torch.where(chosen[:, None], batch.tokens, inputs)
    return clean, torch.where(chosen, start, t)


@dataclass(frozen=True)
class Manner:
    """How each row of a chain of drafts is masked again, from its first draft to its last.

    Attributes:
        kind: `(b,)` int64, an index into `MANNERS`.
        threshold: `(b,)`, the confidence from which a token stays visible, kind "threshold".
        window: `(b,)` int64, how far beyond the leftmost mask tokens may become visible.
    """

    kind: Tensor
    threshold: Tensor
    window: Tensor

    @classmethod
    def draw(cls, rows: int, generator: torch.Generator) -> Manner:
        """One for each row, at random."""
        uniform = torch.rand((3, rows), generator=generator, device=generator.device)
        ladder = torch.tensor(list(MANNERS.values()), device=generator.device).cumsum(0)
        kind = torch.bucketize(uniform[0], ladder, right=True).clamp(max=len(MANNERS) - 1)
        return cls(kind, 0.3 + 0.65 * uniform[1], (8 + 120 * uniform[2] ** 2).long())


def redraw(
    denoiser: Denoiser,
    batch: Batch,
    inputs: Tensor,
    logits: Tensor,
    manner: Manner,
    generator: torch.Generator,
) -> Tensor:
    """`(b, t)` the inputs of the next step: the likeliest tokens, masked again row by row.

    Args:
        inputs: `(b, t)` int64, what `logits` were computed from.
        logits: `(m, v)` of every answer position.
    """
    logits = logits.detach()
    best, ids = logits.max(dim=-1)
    sure = (best.float() - logits.float().logsumexp(dim=-1)).exp()  # (m,)
    drafts = batch.tokens.masked_scatter(batch.answer, ids)
    confidence = inputs.new_zeros(inputs.shape, dtype=torch.float32)
    confidence = confidence.masked_scatter(batch.answer, sure)

    # "threshold": what was shown stays shown; of the rest what is sure, and always the surest one.
    hidden = batch.answer & (inputs == denoiser.mask_token_id)
    position = torch.arange(inputs.shape[1], device=inputs.device)
    leftmost = torch.where(hidden, position, inputs.shape[1]).amin(dim=1, keepdim=True)
    near = hidden & (position < leftmost + manner.window[:, None])
    candidates = confidence.masked_fill(~near, -1.0)
    shown = candidates >= torch.minimum(
        manner.threshold[:, None], candidates.amax(dim=1, keepdim=True).clamp(min=0.0)
    )
    unsure = hidden & ~shown

    # "part": any share, the doubtful sooner than the sure.
    share = torch.rand((len(inputs), 1), generator=generator, device=inputs.device)
    chance = torch.rand(inputs.shape, generator=generator, device=inputs.device)
    score = (chance * (1.01 - confidence)).masked_fill(~batch.answer, -1.0)
    rank = score.argsort(dim=1, descending=True).argsort(dim=1)
    part = (rank < share * batch.answer.sum(dim=1, keepdim=True)) & batch.answer

    kind = manner.kind[:, None]
    names = list(MANNERS)
    again = (unsure & (kind == names.index("threshold"))) | (part & (kind == names.index("part")))
    return drafts.masked_fill(again, denoiser.mask_token_id)


def weigh(
    batch: Batch,
    inputs: Tensor,
    mask_token_id: int,
    clean_share: float,
    eos_tail_share: float,
    reach: float,
    own: bool,
    generator: torch.Generator,
    reading_from: Tensor | None = None,
) -> Tensor:
    """`(b, t)` float32: how much each position counts in the loss of a step; 0 is not at all.

    Args:
        reach: in positions; a position so far from anything it could be told from counts 1/e.
        own: True when the inputs are the denoiser's own drafts. Behind its first wrong token a
            draft tells another story than the target, position by position: asking for the target
            there teaches the mean of all stories, which reads ", , , the the".
        reading_from: `(b,)` int64, from `anchor`: such a row counts from there on, and in full.
    """
    chance = torch.rand((2, *inputs.shape), generator=generator, device=inputs.device)
    damaged = inputs != batch.tokens
    wanted = damaged | (chance[0] < clean_share)
    chosen = batch.answer & wanted & (~batch.tail | (chance[1] < eos_tail_share))
    t = inputs.shape[1]
    position = torch.arange(t, device=inputs.device)
    if reading_from is not None:
        read = reading_from[:, None] < t
        ahead = batch.answer & ~batch.tail & (position >= reading_from[:, None])
        chosen = torch.where(read, ahead, chosen)
    if not reach:
        return chosen.float()
    hidden = batch.answer & (inputs == mask_token_id)
    # How many masks stand between a masked position and the nearest token; on the left there is
    # always one, the prompt's last.
    left = torch.where(hidden, 0, position).cummax(dim=1).values
    right = torch.where(hidden, 2 * t, position).flip(1).cummin(dim=1).values.flip(1)
    distance = torch.minimum(position - left, right - position) - hidden.long()
    if own:
        first_wrong = torch.where(damaged & ~hidden, position, t).amin(dim=1, keepdim=True)
        distance = torch.maximum(distance, position - first_wrong)
    return chosen * torch.exp(-distance / reach)


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`(m,)` cross-entropies in nats, and `(m,)` bool: is the likeliest token the right one?"""
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return losses, logits.argmax(-1) == targets


def mask_share(
    denoiser: Denoiser, batch: Batch, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A given share of each answer masked, the rest clean.

    Masks fall on the whole answer region, EOS tail included, so the answer's length is not given
    away; only tokens of the answer and its first EOS are counted.

    Returns:
        `(b, t)` int64, the damaged rows, and `(b, t)` bool, the masked positions that count.
    """
    only_masks = CorruptionConfig(
        all_masked=0.0,
        mask_probability=1.0,
        mask_fraction=(fraction, fraction),
        structural_probability=0.0,
    )
    size, mask = denoiser.vocabulary_size, denoiser.mask_token_id
    noisy = corrupt(batch.tokens, batch.answer, size, mask, generator, only_masks)
    return noisy, (noisy == mask) & batch.answer & ~batch.tail


def validate(
    denoiser: Denoiser,
    pairs: PackedPairs,
    rows_per_batch: int,
    most_rows: int = 512,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Cross-entropy and accuracy where a given share of the answer is masked, see `mask_share`.

    Returns:
        {"0.25": {"ce": nats, "accuracy": share, "n": tokens counted}, ...}
    """
    context = pairs.tokens.shape[1]
    rows = list(range(min(len(pairs), most_rows)))
    scores = {}
    for fraction in MASKED_FRACTIONS:
        # The same masks at every call: validations of one run differ by the model alone.
        generator = torch.Generator(pairs.tokens.device).manual_seed(seed)
        total = torch.zeros(3, device=pairs.tokens.device, dtype=torch.float64)
        for first in range(0, len(rows), rows_per_batch):
            # One shape throughout, so that a compiled model is reused: the last batch wraps round
            # and what it repeats is not counted.
            part = [rows[i % len(rows)] for i in range(first, first + rows_per_batch)]
            batch = take(pairs, part, context)
            noisy, counted = mask_share(denoiser, batch, fraction, generator)
            counted[max(len(rows) - first, 0) :] = False
            logits = answer_logits(denoiser, noisy, batch.prompt_lengths, counted).detach().float()
            targets = batch.tokens[counted]
            total[0] += F.cross_entropy(logits, targets, reduction="sum")
            total[1] += (logits.argmax(-1) == targets).sum()
            total[2] += len(targets)
        ce, right, n = total.tolist()
        scores[f"{fraction:g}"] = {"ce": ce / n, "accuracy": right / n, "n": int(n)}
    return scores
