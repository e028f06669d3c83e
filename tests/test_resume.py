"""Going on where a trace ends: as if it had not ended, or with an edited draft."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import new_denoiser, tiny_denoiser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_sampler import changed, configs, denoisers, prompts, starts

from lad.diffusion.config import RefineConfig
from lad.diffusion.remasking import STRATEGIES
from lad.diffusion.resume import branch, next_input
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput


def cut(trace: Trace, steps: int) -> Trace:
    return replace(trace, steps=trace.steps[:steps], stopped_early=False)


@pytest.mark.parametrize("temperature", [0.0, 1.5], ids=["greedy", "sampled"])
@pytest.mark.parametrize("remasking", STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(denoisers, prompts, configs, st.integers(0, 2**31), st.sampled_from([0.01, 1.0]))
@example(tiny_denoiser(), "a", RefineConfig(answer_length=1, patience=4), 0, 0.01)
def test_a_run_cut_off_anywhere_goes_on_as_if_it_never_was(
    remasking, temperature, denoiser, prompt, config, seed, top_p
):
    # Sampled at a top-p of 0.01 a draft settles, and is counted up to the patience.
    config = changed(config, remasking=remasking, temperature=temperature, top_k=4, top_p=top_p)
    config = changed(config, iterations=config.iterations % 8 + 6)
    draft, fixed = starts(denoiser, config, seed)
    whole = record(denoiser, prompt, config, draft=draft, fixed=fixed)
    for steps in range(1, len(whole.steps)):
        assert branch(denoiser, cut(whole, steps)) == whole


edits = st.lists(st.sampled_from(["keep", "keep", "mask", "change", "pin"]), min_size=16)


@settings(max_examples=50, deadline=None)
@given(denoisers, prompts, configs, edits, st.integers(0, 2**31))
def test_an_edit_is_the_next_input_and_what_is_pinned_stays(denoiser, prompt, config, kinds, seed):
    kinds = np.array(kinds[: config.answer_length])
    whole = record(denoiser, prompt, config)
    paused = cut(whole, 1 + seed % len(whole.steps))
    if len(paused.steps) == config.iterations:
        return
    draft = next_input(paused)
    draft[kinds == "mask"] = denoiser.mask_token_id
    draft[kinds == "change"] = 97
    fixed = (kinds == "pin") & (draft != denoiser.mask_token_id)
    fixed &= (draft != denoiser.eos_token_id) | ~fixed[::-1].cumsum()[::-1].astype(bool)
    given = {"draft": torch.from_numpy(draft), "fixed": torch.from_numpy(fixed)}
    other = branch(denoiser, paused, **given)
    n = len(paused.steps)
    assert other.steps[:n] == paused.steps and len(other.steps) > n
    assert (other.inputs[n] == draft).all()
    assert (other.inputs[n:, fixed] == draft[fixed]).all()
    assert (other.drafts[n:, fixed] == draft[fixed]).all()
    # A branch is a run like any other: it too goes on as it would have.
    for steps in range(n + 1, len(other.steps)):
        assert branch(denoiser, cut(other, steps)) == other


def test_a_token_masked_by_an_edit_is_shown_again_in_permanent_unmasking(denoiser):
    config = RefineConfig(iterations=20, answer_length=8, remasking="threshold", permanent=True)
    config = changed(config, confidence_threshold=0.0, eos_bias=-5.0, patience=0)
    paused = cut(record(denoiser, "hello", changed(config, window=1)), 4)
    draft = next_input(paused)
    assert (draft[:2] != denoiser.mask_token_id).all()
    draft[:2] = denoiser.mask_token_id
    other = branch(denoiser, paused, draft=torch.from_numpy(draft))
    assert other.stopped_early  # no MASK was left


def test_a_trace_that_cannot_go_on_is_refused(denoiser):
    config = RefineConfig(iterations=4, answer_length=6, remasking="random", patience=0)
    whole = record(denoiser, "hello", config)
    with pytest.raises(InvalidInput, match="4 of 4 iterations: expected some that are left"):
        branch(denoiser, whole)
    paused = cut(whole, 2)
    other = new_denoiser()
    other.adapter_sha256 = "1234567890"
    with pytest.raises(InvalidInput, match="of tiny with none: expected one of tiny with adapter"):
        branch(other, paused)
    short = torch.from_numpy(next_input(paused))[:3]
    with pytest.raises(InvalidInput, match="a draft of shape"):
        branch(tiny_denoiser(), paused, draft=short)
