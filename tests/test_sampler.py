"""The promises of a refinement, by property on the tiny model and once on the real one."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import KINDS, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from lad import reference
from lad.errors import InvalidInput, NumericalError
from lad.sampler import RENOISING, RefineConfig, draw, record, refine

configs = st.builds(
    RefineConfig,
    iterations=st.integers(1, 7),
    renoising=st.sampled_from(RENOISING),
    noise_start=st.sampled_from([0.0, 0.5, 1.0]),
    sharpness=st.sampled_from([0.5, 5.0]),
    noise_clipping=st.sampled_from([0.01, 1.0]),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([1, 4, 1000]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    eos_bias=st.sampled_from([-5.0, 0.0, 2.0]),
    answer_length=st.integers(1, 16),
    patience=st.integers(0, 4),
    seed=st.integers(0, 2**31),
)
denoisers = st.sampled_from(KINDS).map(lambda kind: tiny_denoiser(*kind))
prompts = st.sampled_from(["a", "hello there", "é 🎉 <s>"])


def same_step(got, expected) -> bool:
    return (
        np.array_equal(got.inputs, expected.inputs)
        and np.array_equal(got.draft, expected.draft)
        and np.array_equal(got.renoised, expected.renoised)
        and np.allclose(got.confidence, expected.confidence, atol=1e-5)
    )


@settings(max_examples=60, deadline=None)
@given(denoisers, prompts, configs)
def test_refine_equals_the_reference_token_for_token(denoiser, prompt, config):
    ids = denoiser.encode(prompt)
    got = list(refine(denoiser, ids, config))
    expected = reference.refine(denoiser, ids, config)
    assert len(got) == len(expected)
    assert all(map(same_step, got, expected))


@settings(max_examples=25, deadline=None)
@given(denoisers, configs)
def test_same_seed_same_trace_and_the_global_generator_is_left_alone(denoiser, config):
    before = torch.random.get_rng_state()
    first, second = (record(denoiser, "hello", config) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_seed_gives_another_draft(denoiser):
    config = {"temperature": 1.5, "top_k": 50, "iterations": 3}
    traces = [record(denoiser, "hello", RefineConfig(seed=seed, **config)) for seed in (0, 1)]
    assert not np.array_equal(traces[0].drafts, traces[1].drafts)


@settings(max_examples=30, deadline=None)
@given(denoisers, configs)
def test_a_draft_never_holds_mask_and_the_next_input_follows_from_it(denoiser, config):
    trace = record(denoiser, "hello", config)
    mask = denoiser.mask_token_id
    assert trace.masked[0].all()
    assert not (trace.drafts == mask).any()
    for before, after in itertools.pairwise(trace.steps):
        expected = np.where(before.renoised, mask, before.draft)
        assert np.array_equal(after.inputs, expected)
    assert not trace.renoised[-1].any()
    assert ((trace.confidence >= 0) & (trace.confidence <= 1)).all()


@settings(max_examples=20, deadline=None)
@given(denoisers, configs)
def test_noiseless_means_no_mask_after_the_first_iteration(denoiser, config):
    noiseless = RefineConfig(**config.to_dict() | {"renoising": "none"})
    trace = record(denoiser, "hello", noiseless)
    assert not trace.masked[1:].any()
    assert not trace.renoised.any()


@settings(max_examples=20, deadline=None)
@given(denoisers, configs)
def test_a_run_that_stops_early_is_a_prefix_of_the_longer_one(denoiser, config):
    patient = RefineConfig(**config.to_dict() | {"patience": 0})
    short, long = record(denoiser, "hello", config), record(denoiser, "hello", patient)
    assert len(long.steps) == config.iterations and not long.stopped_early
    n = len(short.steps)
    assert np.array_equal(short.drafts, long.drafts[:n])
    assert np.array_equal(short.inputs, long.inputs[:n])
    if short.stopped_early:
        last = short.drafts[-config.patience :]
        assert len(last) == config.patience and (last == last[0]).all()


@settings(max_examples=20, deadline=None)
@given(denoisers, st.lists(st.sampled_from("ab é"), min_size=1, max_size=20).map("".join))
def test_a_prompt_token_never_changes(denoiser, prompt):
    if not prompt.strip():
        return
    seen = []
    logits = type(denoiser).logits

    def watch(self, prompt, answer, cache=None):
        seen.append(prompt.clone())
        return logits(self, prompt, answer, cache)

    ids = denoiser.encode(prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(denoiser), "logits", watch)
        trace = record(denoiser, prompt, RefineConfig(iterations=3, answer_length=6))
    assert all(torch.equal(passed[0], ids) for passed in seen)
    assert np.array_equal(trace.prompt_ids, ids.numpy())


def test_the_generator_yields_as_it_goes(denoiser):
    steps = refine(denoiser, "hello", RefineConfig(iterations=500, answer_length=8, patience=0))
    assert [next(steps).iteration for _ in range(3)] == [0, 1, 2]
    steps.close()


def test_renoising_counts_follow_the_schedule(denoiser):
    config = RefineConfig(iterations=10, answer_length=40, noise_start=0.8, sharpness=2, patience=0)
    for renoising in ("uniform", "confidence"):
        trace = record(denoiser, "hi", RefineConfig(**config.to_dict() | {"renoising": renoising}))
        expected = [reference.mask_count(i, 10, 40, 2, 0.8) for i in range(10)]
        assert trace.renoised.sum(axis=1).tolist() == expected


def test_eos_bias_is_added_to_the_logit_of_eos(denoiser, monkeypatch):
    """Position n likes a word better than EOS by 3 - n: a bias of b puts EOS from 3 - b on."""

    def staged(self, prompt, answer, cache=None):
        logits = torch.zeros(1, answer.shape[1], self.vocabulary_size)
        logits[..., 7] = 13 - torch.arange(answer.shape[1]) - 0.5
        logits[..., self.eos_token_id] = 10
        return logits

    monkeypatch.setattr(type(denoiser), "logits", staged)
    for bias in (-3, 0, 2):
        config = RefineConfig(eos_bias=bias, iterations=1, answer_length=8)
        assert record(denoiser, "hi", config).tokens == 3 - bias


# -- drawing ---------------------------------------------------------------------------------------


def test_draws_follow_the_probabilities_within_top_k_and_top_p():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = probabilities.log().repeat(20_000, 1)

    def shares(**settings):
        config = RefineConfig(temperature=1.0, **settings)
        tokens, confidence = draw(logits, config, torch.Generator().manual_seed(0))
        assert torch.allclose(confidence, probabilities[tokens])
        return [(tokens == t).float().mean().item() for t in range(4)]

    assert shares(top_k=1000) == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.02)
    assert shares(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.02)
    assert shares(top_k=1000, top_p=0.5) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.02)
    assert shares(top_k=1000, top_p=0.01) == pytest.approx([1, 0, 0, 0])


def test_temperature_sharpens_but_confidence_is_the_denoisers_own():
    probabilities = torch.tensor([0.6, 0.4])
    config = RefineConfig(temperature=0.1, top_k=2)
    logits = probabilities.log().repeat(2000, 1)
    tokens, confidence = draw(logits, config, torch.Generator().manual_seed(0))
    assert (tokens == 0).float().mean() > 0.95
    assert torch.allclose(confidence, probabilities[tokens])


# -- bad input -------------------------------------------------------------------------------------

BAD = {
    "iterations": [0, 513, 2.5, "4", True],
    "renoising": ["some", ""],
    "noise_start": [-0.1, 1.1, math.nan],
    "sharpness": [0, 21],
    "noise_clipping": [0, 2],
    "temperature": [-1, 6, math.inf],
    "top_k": [0, 1001],
    "top_p": [0, 1.5],
    "eos_bias": [-6, 6],
    "answer_length": [0, 2049],
    "context": [15, 2049],
    "patience": [-1],
    "seed": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_each_control_names_itself_its_value_and_its_range(name, value):
    with pytest.raises(InvalidInput) as caught:
        RefineConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: expected ")


def test_every_control_has_a_range():
    assert set(BAD) == set(RefineConfig().to_dict())


def test_a_prompt_that_leaves_no_room_is_refused_before_any_work(denoiser):
    with pytest.raises(InvalidInput, match="context window"):
        refine(denoiser, "word " * 100, RefineConfig(answer_length=64))
    with pytest.raises(InvalidInput, match="expected at most 32"):
        refine(denoiser, "hello", RefineConfig(context=32, answer_length=32))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_bad_logits_stop_the_run_and_name_the_iteration(denoiser, monkeypatch, poison):
    logits = type(denoiser).logits
    calls = itertools.count()

    def poisoned(self, *arguments):
        result = logits(self, *arguments)
        if next(calls) == 2:
            result[..., 0] = poison
        return result

    monkeypatch.setattr(type(denoiser), "logits", poisoned)
    with pytest.raises(NumericalError, match="iteration 2"):
        record(denoiser, "hello", RefineConfig(iterations=5, answer_length=8, patience=0))


def test_settings_survive_json():
    import json

    config = RefineConfig(iterations=7, top_p=0.5, context=128)
    assert RefineConfig(**json.loads(json.dumps(config.to_dict()))) == config


# -- the real model --------------------------------------------------------------------------------


@pytest.mark.real
def test_the_capital_of_france_noiseless(real):
    config = RefineConfig(iterations=8, renoising="none", answer_length=32)
    trace = record(real, "What is the capital of France?", config)
    assert "Paris" in trace.answer
    assert trace.nfe <= 8
    assert not trace.masked[1:].any()


@pytest.mark.real
@pytest.mark.parametrize("renoising", RENOISING)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_model_refines_as_the_reference_does(real, renoising, temperature):
    config = RefineConfig(
        iterations=3, renoising=renoising, temperature=temperature, answer_length=12, patience=0
    )
    ids = real.encode("Name a color.")
    got = list(refine(real, ids, config))
    for mine, plain in zip(got, reference.refine(real, ids, config), strict=True):
        assert np.array_equal(mine.draft, plain.draft)
        assert np.array_equal(mine.renoised, plain.renoised)
        assert np.allclose(mine.confidence, plain.confidence, atol=1e-3)


@pytest.mark.real
def test_the_real_denoiser_reads_to_the_right(real):
    ids = real.encode("Say hello.")
    answers = torch.full((2, 6), real.mask_token_id)
    answers[1, -1] = 260
    with torch.no_grad():
        logits = real.logits(ids.expand(2, -1), answers)
    assert (logits[0, 0] - logits[1, 0]).abs().max() > 1e-3
