"""Statistics and text metrics: against plain counts, and intervals as wide as they should be."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lad.evaluation import statistics, text_metrics
from lad.evaluation.statistics import Estimate

ANSWERS = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 100, 0.0, 0.0370), (50, 100, 0.4038, 0.5962), (177, 200, 0.8334, 0.9222)],
)
def test_wilson_of_published_counts(hits, n, low, high):
    estimate = statistics.wilson(hits, n)
    assert estimate.value == hits / n and estimate.n == n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_share_is_the_pooled_one_and_lies_in_its_interval(rows):
    hits, counts = zip(*((min(h, c), c) for h, c in rows), strict=True)
    estimate = statistics.pooled_share(hits, counts)
    assert estimate.n == sum(count > 0 for count in counts)
    if estimate.n == 0:
        assert math.isnan(estimate.value)
    else:
        assert estimate.value == pytest.approx(sum(hits) / sum(counts))
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_tokens_of_one_answer_are_not_independent_and_no_hit_at_all_is_not_certainty():
    """Half the answers all right, half all wrong: an interval as of 100 tosses, not of 5,000."""
    clustered = statistics.pooled_share([50, 0] * 50, [50] * 100)
    spread = statistics.pooled_share([25] * 100, [50] * 100)
    assert clustered.value == spread.value == 0.5 and clustered.n == spread.n == 100
    tosses = statistics.wilson(50, 100)
    assert clustered.high - clustered.low == pytest.approx(tosses.high - tosses.low, rel=0.1)
    assert spread.high == spread.low == 0.5
    for hits, value in ([0] * 30, 0), ([8] * 30, 1):
        estimate = statistics.pooled_share(hits, [8] * 30)
        bound = statistics.wilson(30 * value, 30)
        assert estimate == Estimate(value, bound.low, bound.high, 30)
        assert estimate.high - estimate.low > 0.1


def test_median_and_mean_of_plain_numbers_are_the_same_every_time():
    values = [3.0, 1.0, 10.0, 2.0]
    state = np.random.get_state()[1].copy()
    assert (statistics.median(values).value, statistics.mean(values).value) == (2.5, 4.0)
    assert statistics.mean(values) == statistics.mean(values)
    assert (np.random.get_state()[1] == state).all()
    assert statistics.median([7.0]) == Estimate(7.0, 7.0, 7.0, 1)
    estimate = statistics.median([1.0, 2.0, math.inf, math.inf, math.inf])
    assert estimate.value == math.inf and 1 <= estimate.low < math.inf


def test_estimates_go_through_json_which_has_no_nan():
    nothing, infinite = statistics.mean([]), Estimate(1.5, 1.0, math.inf, 3)
    assert nothing.to_dict() == {"value": None, "low": None, "high": None, "n": 0}
    assert infinite.to_dict() == {"value": 1.5, "low": 1.0, "high": None, "n": 3}
    assert Estimate.from_dict(infinite.to_dict()) == infinite
    assert math.isnan(Estimate.from_dict(nothing.to_dict()).value)


@pytest.mark.parametrize(
    ("estimate", "arguments", "text"),
    [
        (Estimate(0.7812, 0.75, 1.0, 9), (100,), "78.1 (75.0–100.0)"),
        (Estimate(0.7812, 0.75, 1.0, 9), (1, 3), "0.781 (0.750–1.000)"),
        (Estimate(1234.5, 2.0, math.inf, 9), (1, 2), "1234 (2.00–∞)"),
        (Estimate(2.0, 2.0, 2.0, 1), (), "2.0"),
        (statistics.wilson(1, 1), (100, 0), "100 (21–100)"),
        (statistics.mean([]), (), "–"),
    ],
)
def test_estimates_as_text(estimate, arguments, text):
    assert estimate.text(*arguments) == text


@given(ANSWERS)
def test_repeats_and_4grams_are_counted_like_this(answers):
    pairs = [(a, b) for answer in answers for a, b in itertools.pairwise(answer)]
    estimate = text_metrics.adjacent_repeats(answers)
    if pairs:
        assert estimate.value == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert estimate.n == sum(len(answer) > 1 for answer in answers)
    repeated = total = 0
    for answer in answers:
        grams = [answer[i : i + 4] for i in range(len(answer) - 3)]
        repeated += sum(one in grams[:i] for i, one in enumerate(grams))
        total += len(grams)
    estimate = text_metrics.repeated_ngrams(answers)
    assert estimate.n == sum(len(answer) > 3 for answer in answers)
    if total:
        assert estimate.value == pytest.approx(repeated / total)


@pytest.mark.parametrize("whole", ["It is.", "It is!\n", '"Why?"', "(See 2.)", "In 1990."])
@pytest.mark.parametrize("part", ["", "It is", "It is,", "Two:\n1. One.\n2.", "of the"])
def test_a_whole_sentence_ends_in_a_full_stop(whole, part):
    estimate = text_metrics.whole_sentences([whole, part, part])
    assert (estimate.value, estimate.n) == (1 / 3, 3)


def test_loops_cost_and_empty_answers():
    loop = [[1, 2, 3, 4] * 5]  # in which no token repeats the one before
    assert text_metrics.adjacent_repeats(loop).value == 0
    assert text_metrics.repeated_ngrams(loop).value == 13 / 17
    cost = statistics.pooled_ratio([5, 5, 10], [10, 0, 30])
    assert (cost.value, cost.n) == (0.5, 3) and statistics.pooled_ratio([4], [0]).value == math.inf
    # An empty answer is the worst.
    one, nothing = np.array([math.log(3.0)]), np.zeros(0)
    assert text_metrics.relative_perplexity([one + math.log(2)], [one]).value == pytest.approx(2)
    assert text_metrics.perplexities([one, nothing]).tolist() == pytest.approx([3, math.inf])
    estimate = text_metrics.relative_perplexity([one, nothing, nothing], [one, one, one])
    assert estimate.value == math.inf and estimate.n == 3
    assert text_metrics.relative_perplexity([one, one], [one, nothing]) == Estimate(1, 1, 1, 1)
