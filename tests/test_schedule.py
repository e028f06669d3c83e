"""The noising schedule and the choice of positions, against the formula and against chance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion import reference
from lad.diffusion.remasking import choose_positions
from lad.diffusion.schedule import (
    mask_count,
    mask_counts,
    noise_level,
)
from lad.utils import InvalidInput

sharpness = st.floats(0.01, 20)
iterations = st.integers(1, 512)


@given(iterations, st.integers(1, 2048), sharpness, st.floats(0, 1))
def test_counts_fall_and_stay_in_range(total, length, s, start):
    counts = mask_counts(total, length, s, start)
    assert len(counts) == total
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert all(0 <= count <= length for count in counts)
    if total > 1:
        assert counts[0] == math.floor(length * start)


@given(iterations.filter(lambda n: n > 1), st.integers(1, 512), sharpness, st.data())
def test_counts_equal_the_formula(total, length, s, data):
    i = data.draw(st.integers(0, total - 1))
    start = data.draw(st.floats(0, 1))
    got = mask_count(i, total, length, s, start)
    # Where the product is a whole number up to rounding, the two may fall on either side of it.
    assert abs(got - reference.mask_count(i, total, length, s, start)) <= 1
    exact = noise_level(i, total, s) * length * start
    if abs(exact - round(exact)) > 1e-6:
        assert got == reference.mask_count(i, total, length, s, start)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0]), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.data(),
)
def test_choice_equals_the_plain_one(weights, clustering, data):
    count = data.draw(st.integers(0, len(weights)))
    seed = data.draw(st.integers(0, 2**31))
    uniforms = torch.rand(len(weights), generator=torch.Generator().manual_seed(seed))
    got = choose_positions(torch.tensor(weights), count, uniforms, clustering)
    expected = reference.choose_positions(weights, count, uniforms.tolist(), clustering)
    assert got.tolist() == expected
    assert got.sum() == min(count, sum(weight > 0 for weight in weights))


def test_choice_follows_the_weights():
    weights = torch.tensor([0.1, 0.2, 0.7])
    uniforms = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))
    picks = choose_positions(weights.expand(3000, 3), 1, uniforms)
    share = picks.float().mean(dim=0)
    error = (weights * (1 - weights) / len(picks)).sqrt()
    assert ((share - weights).abs() < 4 * error).all()


def runs(chosen: torch.Tensor) -> float:
    """Mean number of runs of chosen positions a row."""
    padded = torch.nn.functional.pad(chosen.long(), (1, 0))
    return float((padded.diff(dim=-1) == 1).sum(dim=-1).float().mean())


def test_clustering_makes_the_same_number_of_masks_come_in_fewer_runs():
    uniforms = torch.rand(500, 60, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(500, 60)
    chosen = [choose_positions(weights, 20, uniforms, c) for c in (0.0, 0.5, 0.9, 1.0)]
    assert all((c.sum(dim=-1) == 20).all() for c in chosen)
    counts = [runs(c) for c in chosen]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 12
    assert counts[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 0, 1.0), "iteration 0 of 0"),
        ((3, 3, 1.0), "iteration 3 of 3"),
        ((0, 3, 0.0), "sharpness = 0.0"),
        ((0, 3, math.nan), "sharpness = nan"),
    ],
)
def test_bad_values_are_named(arguments, named):
    with pytest.raises(InvalidInput, match=named):
        noise_level(*arguments)


def test_noise_start_out_of_range_is_named():
    with pytest.raises(InvalidInput, match=r"noise_start = 1\.5"):
        mask_count(0, 4, 10, 1.0, 1.5)
