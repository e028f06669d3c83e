"""How good refined answers are, in numbers that carry their own doubt.

Every number is an `Estimate`: a value, a 95 % interval, and how many independent things it was
measured on. Those things are answers, not tokens: tokens of one answer share its topic and its
mistakes, so an interval over tokens would be too narrow. Shares of answers get Wilson's interval;
everything that sums over the tokens of an answer gets a percentile bootstrap that draws whole
answers again.

Perplexity is the backbone's: how surprised the model that taught the denoiser is, reading left to
right, by an answer it did not write itself. By itself it flatters text that repeats, which is easy
to predict, so it is never shown without the share of repeats.

Sources: Wilson (1927) for shares, through statsmodels; Efron (1979) for the bootstrap; Li et al.,
2016 (https://arxiv.org/abs/1510.03055) for distinct-n.

Shapes: n = answers, b = batch, t = positions, m = answer positions of a batch, d = hidden size,
v = vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from lad.utils import InvalidInput, NumericalError

__all__ = [
    "Estimate",
    "adjacent_repeats",
    "answer_losses",
    "distinct_trigrams",
    "forwards_per_token",
    "mean",
    "median",
    "perplexities",
    "pooled_ratio",
    "pooled_share",
    "relative_perplexity",
    "tokens_per_forward",
    "wilson",
]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured number.

    Attributes:
        value: NaN when there was nothing to measure it on.
        low, high: ends of its 95 % interval, low <= value <= high unless NaN.
        n: independent things behind it: answers.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict:
        """Plain values, for JSON, which has neither NaN nor infinity: they become None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {key: x if math.isfinite(x) else None for key, x in numbers.items()}
        return finite | {"n": self.n}


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


# -- intervals -------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> Estimate:
    """A share of n independent things, with Wilson's interval.

    Raises:
        InvalidInput: hits outside 0 to n.
    """
    if not 0 <= hits <= n:
        raise InvalidInput(f"{hits} of {n}: expected a count from 0 to the number of things")
    if n == 0:
        return NOTHING
    # statsmodels takes a second to import; `lad refine` and the figures do without it.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, n, alpha=1 - LEVEL, method="wilson")
    value = hits / n
    # At 0 and at n the formula's rounding may end a hair on the wrong side.
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def pooled_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum over answers by sum over answers, with an interval over answers.

    An answer that adds nothing to either sum says nothing and is not counted in n.

    Args:
        numerators, denominators: `(n,)`, at least 0, what each answer adds to either sum.

    Raises:
        InvalidInput: unequal lengths.
    """
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if above.shape != below.shape:
        raise InvalidInput(
            f"{len(above)} numerators and {len(below)} denominators: expected one of each an answer"
        )
    counted = (above > 0) | (below > 0)
    above, below = above[counted], below[counted]
    return _bootstrap(
        len(above), lambda rows: _divide(above[rows].sum(axis=-1), below[rows].sum(axis=-1))
    )


def pooled_share(hits: Sequence[float], counts: Sequence[float]) -> Estimate:
    """`pooled_ratio` for tokens that were counted, of which some are hits.

    Where no token is a hit, or all are, drawing answers again shows no spread at all. Then the
    interval is Wilson's with an answer as the unit: wide, and on the safe side.
    """
    estimate = pooled_ratio(hits, counts)
    if estimate.value in (0, 1):
        bound = wilson(round(estimate.value * estimate.n), estimate.n)
        return Estimate(estimate.value, bound.low, bound.high, estimate.n)
    return estimate


def mean(values: Sequence[float]) -> Estimate:
    """Mean over answers, with an interval over answers."""
    array = np.asarray(values, dtype=float)
    return _bootstrap(len(array), lambda rows: array[rows].mean(axis=-1))


def median(values: Sequence[float]) -> Estimate:
    """Median over answers, with an interval over answers; infinite values are the worst there."""
    array = np.asarray(values, dtype=float)
    return _bootstrap(len(array), lambda rows: np.median(array[rows], axis=-1))


def _bootstrap(n: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of n answers, given their indices `(..., n)`, and its percentile interval."""
    if n == 0:
        return NOTHING
    value = float(statistic(np.arange(n)))
    drawn = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    # A quantile that was drawn, not one between two draws: one of them may be infinite.
    low, high = np.quantile(statistic(drawn), tails, method="inverted_cdf")
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.divide(above, below)


# -- text ------------------------------------------------------------------------------------------


def adjacent_repeats(answers: Sequence[Sequence[int]]) -> Estimate:
    """Share of answer tokens equal to the one before, over all answers: how much they stutter.

    A first token has none before it and is not counted.

    Args:
        answers: token ids of each answer, without its EOS.
    """
    arrays = [np.asarray(answer, dtype=np.int64) for answer in answers]
    return pooled_share(
        [int((a[1:] == a[:-1]).sum()) for a in arrays], [max(len(a) - 1, 0) for a in arrays]
    )


def distinct_trigrams(answers: Sequence[Sequence[int]]) -> Estimate:
    """Distinct-3: share of an answer's runs of three tokens that are the first of their kind in it.

    Counted within answers, not over all of them together: many short answers to similar questions
    rightly share words, and a share over all would fall with their number.
    """
    runs = [list(zip(a, a[1:], a[2:], strict=False)) for a in map(list, answers)]
    return pooled_share([len(set(run)) for run in runs], [len(run) for run in runs])


# -- cost ------------------------------------------------------------------------------------------


def tokens_per_forward(tokens: Sequence[int], forwards: Sequence[int]) -> Estimate:
    """TPF: answer tokens by forward passes, both summed over the answers."""
    return pooled_ratio(tokens, forwards)


def forwards_per_token(tokens: Sequence[int], forwards: Sequence[int]) -> Estimate:
    """Forward passes an answer token, both summed; empty answers count with what they cost."""
    return pooled_ratio(forwards, tokens)


# -- perplexity under the backbone -----------------------------------------------------------------


@torch.inference_mode()
def answer_losses(
    backbone: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int = 8,
) -> list[np.ndarray]:
    """What each token of each answer costs the backbone, reading left to right, in nats.

    Args:
        backbone: bare, or inside `Denoiser.adapter_off`.
        prompts: token ids, chat template included, at least one each.
        answers: token ids.

    Returns:
        One `(tokens,)` float64 array an answer.

    Raises:
        InvalidInput: unequal numbers of prompts and answers.
        NumericalError: a loss is NaN or infinite.
    """
    if len(prompts) != len(answers):
        raise InvalidInput(
            f"{len(prompts)} prompts and {len(answers)} answers: expected an answer to each prompt"
        )
    device = backbone.lm_head.weight.device
    losses = [np.zeros(0)] * len(answers)
    # Rows of like length share a batch, so little is spent on padding.
    rows = sorted(range(len(answers)), key=lambda row: len(prompts[row]) + len(answers[row]))
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        width = max(len(prompts[row]) + len(answers[row]) for row in part)
        tokens = torch.zeros((len(part), width), dtype=torch.int64)  # (b, t), padded on the right,
        predicted = torch.zeros_like(tokens, dtype=torch.bool)  # which a causal mask never sees
        for i, row in enumerate(part):
            p, end = len(prompts[row]), len(prompts[row]) + len(answers[row])
            tokens[i, :end] = torch.tensor([*prompts[row], *answers[row]])
            predicted[i, p:end] = True
        tokens, predicted = tokens.to(device), predicted.to(device)
        states = backbone.model(input_ids=tokens, use_cache=False).last_hidden_state  # (b, t, d)
        logits = backbone.lm_head(states[:, :-1][predicted[:, 1:]]).float()  # (m, v)
        batch = F.cross_entropy(logits, tokens[predicted], reduction="none")
        flat = batch.double().cpu().numpy()
        if not np.isfinite(flat).all():
            raise NumericalError(
                "the backbone's loss is NaN or infinite, expected finite numbers; "
                "check it with `lad fetch`, or use float32"
            )
        ends = np.cumsum([len(answers[row]) for row in part])
        for row, values in zip(part, np.split(flat, ends[:-1]), strict=True):
            losses[row] = values
    return losses


def perplexities(losses: Sequence[np.ndarray]) -> np.ndarray:
    """`(n,)` perplexity of each answer: exp of its mean loss; infinite for an empty answer.

    An empty answer has no perplexity. Leaving it out would reward saying nothing, so it counts as
    the worst.
    """
    return np.array([math.exp(x.mean()) if len(x) else math.inf for x in losses])


def relative_perplexity(
    losses: Sequence[np.ndarray], reference_losses: Sequence[np.ndarray]
) -> Estimate:
    """Median over answers of their perplexity by that of another answer to the same prompt.

    Prompts to which the reference has no answer are left out.

    Raises:
        InvalidInput: unequal lengths.
    """
    if len(losses) != len(reference_losses):
        raise InvalidInput(
            f"{len(losses)} answers and {len(reference_losses)} references: expected one for each"
        )
    own, other = perplexities(losses), perplexities(reference_losses)
    return median((own / other)[np.isfinite(other)])
