"""Measured numbers with 95 % intervals.

Tokens of one answer share its topic and its mistakes, so intervals are over whole answers: Wilson's
for shares of answers, a percentile bootstrap (Efron, 1979) for what sums over tokens. The latter is
not `scipy.stats.bootstrap`, which refuses a single answer and gives NaN where a perplexity is
infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A measured number and its 95 % interval: low <= value <= high, or all NaN where n is 0."""

    value: float
    low: float
    high: float
    n: int  # answers that it was measured on

    def to_dict(self) -> dict:
        """Plain values for JSON, which has neither NaN nor infinity: they become None."""
        return {key: x if math.isfinite(x) else None for key, x in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping) -> Estimate:
        """The estimate that `to_dict` wrote; None is infinite where something was measured."""
        missing = math.inf if values["n"] else math.nan
        numbers = (values[key] for key in ("value", "low", "high"))
        return cls(*(missing if x is None else x for x in numbers), values["n"])

    def text(self, factor: float = 1, digits: int = 1) -> str:
        """Value times `factor`, and interval, such as "78.1 (75.0–81.2)"; a dash where n is 0."""

        def number(x: float) -> str:
            if math.isinf(x):
                return "∞"
            return f"{factor * x:.{digits if abs(factor * x) < 1000 else 0}f}"

        if math.isnan(self.value):
            return "–"
        if self.n == 1 and self.low == self.high:
            return number(self.value)
        return f"{number(self.value)} ({number(self.low)}–{number(self.high)})"


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def wilson(hits: int, n: int) -> Estimate:
    """The share of n independent things that are hits, with Wilson's interval (1927)."""
    if n == 0:
        return NOTHING
    # statsmodels takes a second to import; `lad refine` and the figures do without it.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, n, alpha=1 - LEVEL, method="wilson")
    value = hits / n
    # At 0 and at n the formula's rounding may end a hair on the wrong side.
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def pooled_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum by sum, over `(n,)` answers; one that adds nothing to either is not counted in n."""
    above, below = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    counted = (above > 0) | (below > 0)
    above, below = above[counted], below[counted]

    def ratio(index: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.divide(above[index].sum(axis=-1), below[index].sum(axis=-1))

    return bootstrap(len(above), ratio)


def pooled_share(hits: Sequence[float], counts: Sequence[float]) -> Estimate:
    """`pooled_ratio` for tokens that were counted, of which some are hits.

    Where none or all are hits the bootstrap has no spread, so the interval is Wilson's.
    """
    estimate = pooled_ratio(hits, counts)
    if estimate.value in (0, 1):
        bound = wilson(round(estimate.value * estimate.n), estimate.n)
        return Estimate(estimate.value, bound.low, bound.high, estimate.n)
    return estimate


def mean(values: Sequence[float]) -> Estimate:
    """Mean over answers, with an interval over answers."""
    array = np.asarray(values, dtype=float)
    return bootstrap(len(array), lambda index: array[index].mean(axis=-1))


def median(values: Sequence[float]) -> Estimate:
    """Median over answers, with an interval over answers; values may be infinite."""
    array = np.asarray(values, dtype=float)
    return bootstrap(len(array), lambda index: np.median(array[index], axis=-1))


def bootstrap(n: int, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of n answers, given their indices `(..., n)`, and its percentile interval.

    The statistic takes the last axis away: `(n,)` gives one number, `(2000, n)` gives 2,000.
    """
    if n == 0:
        return NOTHING
    value = float(statistic(np.arange(n)))
    drawn = statistic(np.random.default_rng(0).integers(n, size=(RESAMPLES, n)))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    # A quantile that was drawn, not one between two draws: one of them may be infinite.
    low, high = np.quantile(drawn, tails, method="inverted_cdf")
    return Estimate(value, min(float(low), value), max(float(high), value), n)
