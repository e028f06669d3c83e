"""The forward process: fast against plain, and what each kind of noise may and may not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion import reference
from lad.diffusion.config import KINDS, CorruptionConfig
from lad.diffusion.corruption import apply_plan, corrupt, draw_plan
from lad.utils import InvalidInput

MASK, VOCABULARY = 99, 100

rows = st.integers(1, 4)
shapes = st.tuples(rows, st.integers(0, 6), st.integers(0, 24)).filter(lambda s: s[1] + s[2])
seeds = st.integers(0, 2**31)
configs = st.builds(
    CorruptionConfig,
    all_masked=st.sampled_from([0.0, 0.1, 1.0]),
    mask_probability=st.floats(0, 1),
    mask_fraction=st.sampled_from([(0.0, 0.5), (0.0, 1.0), (0.3, 0.3)]),
    block_share=st.sampled_from([0.0, 0.5]),
    suffix_share=st.sampled_from([0.0, 0.5]),
    structural_probability=st.sampled_from([0.0, 0.5, 1.0]),
    rate=st.sampled_from([0.25, 1.0]),
    kinds=st.sets(st.sampled_from(KINDS)).map(tuple),
)


def example(batch: int, prompt: int, answer: int, spare: int = 0):
    """Tokens that name their own position, and where the answer is."""
    tokens = torch.arange(prompt + answer + spare).expand(batch, -1).clone()
    where = (tokens >= prompt) & (tokens < prompt + answer)
    return tokens, where


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(0, 4), seeds, configs)
def test_fast_equals_plain_and_the_prompt_is_untouched(shape, spare, seed, config):
    tokens, answer = example(*shape, spare)
    before = torch.random.get_rng_state()
    given = VOCABULARY, MASK, torch.Generator().manual_seed(seed), config
    plan = draw_plan(answer, *given)
    noisy = apply_plan(tokens, plan, MASK)
    for row in range(len(tokens)):
        expected = reference.apply_plan(tokens[row].tolist(), plan, row, MASK)
        assert noisy[row].tolist() == expected
    assert torch.equal(noisy[~answer], tokens[~answer])
    given[2].manual_seed(seed)
    assert torch.equal(corrupt(tokens, answer, *given), noisy)
    assert torch.equal(torch.random.get_rng_state(), before)


FIELDS = {"swap": "swap", "copy_left": "duplicate", "copy_right": "duplicate"}
FIELDS |= {"replace": "replace", "shift_length": "shift"}


@settings(max_examples=60, deadline=None)
@given(shapes, seeds, st.sampled_from(KINDS))
def test_switching_a_kind_off_leaves_the_other_decisions_as_they_were(shape, seed, kind):
    _, answer = example(*shape)
    fewer = CorruptionConfig(kinds=tuple(k for k in KINDS if k != kind))
    with_it, without = (
        draw_plan(answer, VOCABULARY, MASK, torch.Generator().manual_seed(seed), config)
        for config in (CorruptionConfig(), fewer)
    )
    for name, other in FIELDS.items():
        expected = getattr(with_it, name) * (other != kind)
        assert torch.equal(getattr(without, name), expected)


@settings(max_examples=60, deadline=None)
@given(shapes, seeds)
def test_swaps_permute_and_replacements_are_never_mask(shape, seed):
    tokens, answer = example(*shape)
    swaps = CorruptionConfig(all_masked=0, mask_probability=0, rate=1.0, kinds=("swap",))
    noisy = corrupt(
        tokens, answer, VOCABULARY, MASK, torch.Generator().manual_seed(seed), swaps, severity=0.8
    )
    assert torch.equal(noisy.sort(dim=1).values, tokens)
    replaced = CorruptionConfig(all_masked=0, mask_probability=0, rate=1.0, kinds=("replace",))
    noisy = corrupt(tokens, answer, VOCABULARY, MASK, torch.Generator().manual_seed(seed), replaced)
    assert not (noisy == MASK).any()
    assert ((noisy >= 0) & (noisy < VOCABULARY)).all()


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_a_fixed_fraction_masks_exactly_that_many(fraction):
    tokens, answer = example(5, 3, 20)
    config = masks_alone(mask_fraction=(fraction, fraction))
    noisy = corrupt(tokens, answer, VOCABULARY, MASK, torch.Generator().manual_seed(0), config)
    assert ((noisy == MASK).sum(dim=1) == int(fraction * 20)).all()


def masks_alone(**shares):
    alone = {"all_masked": 0, "mask_probability": 1, "structural_probability": 0}
    return CorruptionConfig(**alone | {"mask_fraction": (0.0, 1.0)} | shares)


@settings(max_examples=60, deadline=None)
@given(shapes, seeds)
def test_a_block_is_one_run_of_as_many_masks_as_scattered_ones_would_be(shape, seed):
    _, answer = example(*shape)
    scattered, blocks = (
        draw_plan(answer, VOCABULARY, MASK, torch.Generator().manual_seed(seed), config).mask
        for config in (masks_alone(), masks_alone(block_share=1.0))
    )
    assert torch.equal(scattered.sum(dim=1), blocks.sum(dim=1))
    begins = blocks & ~blocks.roll(1, dims=1)
    begins[:, 0] = blocks[:, 0]
    assert (begins.sum(dim=1) <= 1).all()


def test_a_suffix_is_clean_text_then_a_frontier_then_masks():
    _, answer = example(2000, 5, 200)
    plan = draw_plan(
        answer, VOCABULARY, MASK, torch.Generator().manual_seed(0), masks_alone(suffix_share=1.0)
    )
    masked = plan.mask[:, 5:]
    assert masked.any(dim=1).float().mean() > 0.9
    masked = masked[masked.any(dim=1)]
    first = masked.int().argmax(dim=1)
    last_kept = 199 - (~masked).int().flip(1).argmax(dim=1)
    assert (last_kept - first < 64).all()  # beyond the frontier nothing is shown
    assert 90 < first.float().mean() < 130 and first.min() < 5 and first.max() > 190
    assert ((last_kept > first).float().mean()) > 0.8  # and within it some of it is


@pytest.mark.parametrize(
    ("kinds", "share"), [(KINDS, 0.51), (("swap", "duplicate", "shift"), 0.39)]
)
def test_replace_makes_more_wrong_tokens_visible_as_the_docs_say(kinds, share):
    clean = torch.arange(1, 64_001).reshape(1000, 64)
    config = CorruptionConfig(all_masked=0.0, kinds=kinds)
    generator = torch.Generator().manual_seed(0)
    noisy = corrupt(clean, clean > 0, 64_001, 0, generator, config, severity=0.8)
    assert ((noisy != clean) & (noisy != 0)).float().mean().item() == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_damage_comes_at_the_rate_expected(kind):
    severity, batch, length = 0.6, 400, 200
    _, answer = example(batch, 0, length)
    config = CorruptionConfig(all_masked=0, mask_probability=0, kinds=(kind,))
    plan = draw_plan(answer, 1000, 999, torch.Generator().manual_seed(0), config, severity)
    after = plan.swap.roll(1, dims=1)
    touched = {
        "swap": plan.swap | after,
        "duplicate": plan.copy_left | plan.copy_right,
        "replace": plan.replace,
        "shift": plan.shift_length > 0,
    }[kind].float()
    expected = config.expected_rates(severity)[kind]
    error = (expected * (1 - expected) / touched.numel()) ** 0.5
    # Ends of an answer have one neighbour only, hence the small allowance of 1/length.
    assert abs(touched.mean().item() - expected) < 4 * error + 1 / length


@pytest.mark.parametrize(
    "wrong",
    [
        {"all_masked": 1.5},
        {"rate": -0.1},
        {"mask_fraction": (0.6, 0.5)},
        {"mask_fraction": (0.0, 1.1)},
        {"kinds": ("swap", "scramble")},
        {"block_share": -0.1},
        {"block_share": 0.6, "suffix_share": 0.6},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        CorruptionConfig(**wrong)


def test_severity_out_of_range_is_refused():
    _, answer = example(1, 0, 4)
    with pytest.raises(InvalidInput, match=r"severity = 1\.5"):
        draw_plan(answer, VOCABULARY, MASK, torch.Generator(), severity=1.5)
