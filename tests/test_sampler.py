"""The promises of a refinement, by property on the tiny model and once on the real one."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import KINDS, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion import reference
from lad.diffusion.config import (
    REMASKING,
    REPEATS,
    SCHEDULED,
    SETTINGS,
    RefineConfig,
    preset,
)
from lad.diffusion.remasking import STRATEGIES
from lad.diffusion.sampler import (
    SamplerState,
    process_logits,
    record,
    refine,
    refine_batch,
    sample_tokens,
    step,
)
from lad.utils import InvalidInput, NumericalError

configs = st.builds(
    RefineConfig,
    iterations=st.integers(1, 8),
    remasking=st.sampled_from(sorted(STRATEGIES)),  # the others: test_verified.py
    noise_start=st.sampled_from([0.0, 0.5, 1.0]),
    sharpness=st.sampled_from([0.5, 5.0]),
    noise_clipping=st.sampled_from([0.01, 1.0]),
    clustering=st.sampled_from([0.0, 0.5, 1.0]),
    confidence_threshold=st.sampled_from([0.0, 0.01, 0.05, 0.9]),  # the tiny model is never sure
    isolated_threshold=st.sampled_from([0.0, 0.0, 0.01, 0.05]),
    window=st.sampled_from([None, 1, 4]),
    entropy_bound=st.sampled_from([0.0, 6.0, 10.0]),  # an entropy of it is about 5 nats
    editing_threshold=st.sampled_from([0.0, 0.01, 0.02, 1.0]),
    lookahead=st.sampled_from([None, None, 2, 6]),
    permanent=st.booleans(),
    added_tokens=st.sampled_from([None, None, 1, 5]),
    repeats=st.sampled_from(REPEATS),
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


def changed(config: RefineConfig, **values) -> RefineConfig:
    return RefineConfig(**config.to_dict() | values)


def same_alternatives(got, expected) -> bool:
    """Of steps, or of traces; a half differs by its last bit, and what ties may change places."""
    p = np.asarray(expected.probabilities, dtype=float)
    gaps = np.diff(p, axis=-1, append=p[..., -1:])  # the last may tie with a sixth
    ties = np.abs(gaps) <= 2e-3 * p + 1e-5
    ties[..., 1:] |= ties[..., :-1]
    return (
        ((got.alternatives == expected.alternatives) | ties).all()
        and np.allclose(got.probabilities, expected.probabilities, rtol=2e-3, atol=1e-5)
        and np.allclose(got.entropy, expected.entropy, rtol=2e-3)
    )


def same_step(got, expected) -> bool:
    return (
        np.array_equal(got.inputs, expected.inputs)
        and np.array_equal(got.draft, expected.draft)
        and np.array_equal(got.remask, expected.remask)
        and np.allclose(got.confidence, expected.confidence, atol=1e-5)
        and same_alternatives(got, expected)
    )


def starts(denoiser, config, seed):
    """Nothing; a draft with some MASK; or the same with some of its tokens fixed."""
    generator = torch.Generator().manual_seed(seed)
    a, kind = config.answer_length, seed % 3
    if kind == 0:
        return None, None
    draft = torch.randint(97, 101, (a,), generator=generator)  # few tokens: some repeat
    draft[torch.rand(a, generator=generator) < 0.2] = denoiser.eos_token_id
    draft[torch.rand(a, generator=generator) < 0.3] = denoiser.mask_token_id
    fixed = (draft != denoiser.mask_token_id) & (torch.rand(a, generator=generator) < 0.5)
    over = (fixed & (draft == denoiser.eos_token_id)).cumsum(0) > 0
    fixed &= ~over | (draft == denoiser.eos_token_id)  # no fixed word behind a fixed end
    return draft, fixed if kind == 2 else None


def listed(values):
    return None if values is None else values.tolist()


@settings(max_examples=200, deadline=None)
@given(denoisers, prompts, configs, st.integers(0, 2**31))
def test_refine_equals_the_reference_and_keeps_its_promises(denoiser, prompt, config, seed):
    ids, generator = denoiser.encode(prompt), torch.random.get_rng_state()
    draft, fixed = starts(denoiser, config, seed)
    trace = record(denoiser, prompt, config, draft=draft, fixed=fixed)
    expected = reference.refine(denoiser, ids, config, listed(draft), listed(fixed))
    assert len(trace.steps) == len(expected)
    assert all(map(same_step, trace.steps, expected))
    assert record(denoiser, prompt, config, draft=draft, fixed=fixed) == trace
    assert torch.equal(torch.random.get_rng_state(), generator)
    mask, eos, masked = denoiser.mask_token_id, denoiser.eos_token_id, trace.is_masked
    assert trace.inputs[0].tolist() == (listed(draft) or [mask] * config.answer_length)
    assert not (trace.drafts == mask).any() and not trace.remask[-1].any()
    for before, after in itertools.pairwise(trace.steps):
        assert np.array_equal(after.inputs, np.where(before.remask, mask, before.draft))
    assert ((trace.confidence >= 0) & (trace.confidence <= 1 + 1e-6)).all()
    added = config.added_tokens
    if config.remasking == "none" and added is None:  # noiseless
        assert not masked[1:].any() and not trace.remask.any()
    if config.permanent:
        assert not (np.logical_or.accumulate(~masked, axis=0)[:-1] & masked[1:]).any()
    if added and draft is None:  # no position is shown before its turn
        for iteration, row in enumerate(masked[1:], start=1):
            assert row[added * iteration :].all()
            assert config.remasking != "none" or not row[: added * iteration].any()
    if fixed is not None:
        kept = fixed.numpy()
        for array in (trace.inputs, trace.drafts):
            assert (array[:, kept] == draft.numpy()[kept]).all()
        words = np.flatnonzero(kept & (draft.numpy() != eos))
        reach = np.arange(len(kept)) < (words[-1] if len(words) else 0)
        assert not (trace.drafts[:, reach & ~kept] == eos).any()  # the answer reaches them
    may_mask = config.remasking in SCHEDULED and not config.permanent and fixed is None
    for taken in trace.steps[:-1] if may_mask and config.repeats == "remask" else ():
        equal = (taken.draft[1:] == taken.draft[:-1]) & (taken.draft[1:] != eos)
        assert (taken.remask[1:] | taken.remask[:-1])[equal].all()


# -- batches ---------------------------------------------------------------------------------------

lists = st.lists(st.text("ab é", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(denoisers, lists, configs, st.integers(1, 5), st.integers(0, 2**31))
def test_a_batch_of_answers_equals_as_many_single_runs(denoiser, texts, config, size, seed):
    given = [starts(denoiser, config, seed + row) for row in range(len(texts))]
    drafts, fixed = ([pair[n] for pair in given] for n in (0, 1))
    together = refine_batch(denoiser, texts, config, drafts=drafts, fixed=fixed, batch_size=size)
    for text, start, stays, trace in zip(texts, drafts, fixed, together, strict=True):
        alone = record(denoiser, text, config, draft=start, fixed=stays)
        assert len(trace.steps) == len(alone.steps)
        assert all(map(same_step, trace.steps, alone.steps))
        assert (trace.prompt, trace.config) == (alone.prompt, alone.config)
        assert np.array_equal(trace.prompt_ids, alone.prompt_ids)
        assert trace.vocabulary == alone.vocabulary


@pytest.fixture
def passes(denoiser, monkeypatch) -> list[tuple]:
    """Prompt and answer of every forward pass."""
    seen, logits = [], type(denoiser).logits

    def watch(self, prompt, answer, *arguments):
        seen.append((prompt.clone(), answer.clone()))
        return logits(self, prompt, answer, *arguments)

    monkeypatch.setattr(type(denoiser), "logits", watch)
    return seen


def test_finished_rows_leave_the_batch_and_the_others_go_on(denoiser, passes):
    a, seen = 6, []
    whole = torch.full((a,), 97)  # every token fixed: nothing can move
    traces = refine_batch(
        denoiser,
        ["short", "a longer prompt", "b"],
        RefineConfig(iterations=3, answer_length=a, remasking="random"),
        on_iteration=lambda steps: seen.append(sorted(steps)),
        drafts=[whole, None, whole],
        fixed=[torch.ones(a, dtype=torch.bool), None, torch.ones(a, dtype=torch.bool)],
        batch_size=2,
    )
    assert [len(prompt) for prompt, _ in passes] == [2, 1, 1, 1]
    assert seen == [[0, 1], [1], [1], [2]]
    assert [trace.nfe for trace in traces] == [1, 3, 1]


def test_token_ids_will_do_as_a_prompt(denoiser):
    config = RefineConfig(iterations=2, answer_length=6)
    ids = denoiser.encode("hello")
    (trace,) = refine_batch(denoiser, [ids], config)
    assert np.array_equal(trace.drafts, record(denoiser, "hello", config).drafts)
    assert "hello" in trace.prompt


def test_another_seed_gives_another_draft(denoiser):
    config = {"temperature": 1.5, "top_k": 50, "iterations": 3}
    traces = [record(denoiser, "hello", RefineConfig(seed=seed, **config)) for seed in (0, 1)]
    assert not np.array_equal(traces[0].drafts, traces[1].drafts)


@settings(max_examples=40, deadline=None)
@given(
    denoisers,
    configs,
    st.sampled_from([None, 1, 4]),
    st.sampled_from([n for n, strategy in STRATEGIES.items() if strategy.stops_when_complete]),
)
def test_a_run_that_masks_only_what_was_never_shown_ends_with_a_whole_answer(
    denoiser, config, window, remasking
):
    config = changed(config, remasking=remasking, permanent=True, iterations=40, window=window)
    trace = record(denoiser, "hello", config)
    if remasking == "editing":  # which may go on without MASK
        is_visible = ~trace.is_masked[1:] & (trace.inputs[1:] != trace.drafts[1:])
        edits = is_visible & (np.arange(config.answer_length) < trace.tokens)
        confident = trace.confidence[1:] >= config.editing_threshold
        assert (confident | (config.repeats == "replace"))[edits].all()
        assert not trace.is_masked[-1, : trace.tokens].any() or config.patience
        return
    # One token an iteration at least, and growth may keep it waiting.
    waiting = 0 if config.added_tokens is None else -(-config.answer_length // config.added_tokens)
    assert len(trace.steps) <= config.answer_length + waiting
    assert not trace.remask[-1].any()
    assert (trace.drafts[-1][trace.tokens :] == denoiser.eos_token_id).all()
    masks = trace.is_masked.sum(axis=1)
    if config.added_tokens is None:
        assert (masks[1:] < masks[:-1]).all()


def new_state(tokens: torch.Tensor, config: RefineConfig, **values) -> SamplerState:
    """A state at the first iteration, with 3 for MASK and 4 for EOS."""
    levels = [0.6] * config.iterations
    state = SamplerState(
        tokens=tokens,
        previous=torch.full_like(tokens, -1),
        unchanged=torch.ones(len(tokens), dtype=torch.int64),
        ever_unmasked=tokens != 3,
        fixed=torch.zeros_like(tokens, dtype=torch.bool),
        no_eos=torch.zeros_like(tokens, dtype=torch.bool),
        noise_levels=torch.tensor(levels, dtype=torch.float64),
        mask_token_id=3,
        eos_token_id=4,
    )
    return state._replace(**values)


@pytest.mark.parametrize(
    "settings",
    [
        {"remasking": "none", "repeats": "replace"},
        {"remasking": "random", "clustering": 0.5},
        {"remasking": "guided", "repeats": "remask", "added_tokens": 3},
        {"remasking": "threshold", "window": 4, "permanent": True, "eos_bias": 1.0},
        {"remasking": "entropy", "window": 4, "repeats": "remask"},
        {"remasking": "editing", "editing_threshold": 0.3},
    ],
)
def test_a_step_can_be_compiled_as_one_graph(settings):
    """With the iteration as a tensor, so that one compilation serves all of them."""
    config = RefineConfig(**settings)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 6, (3, 9), generator=generator)
    tokens[:, 5:] = 3
    place = torch.arange(9)[None].expand(3, 9)
    state = new_state(tokens, config, fixed=place == 1, no_eos=place < 1)
    uniforms = torch.rand(3, 2, 9, generator=generator)
    logits = process_logits(torch.randn(3, 9, 12, generator=generator), state, config)
    expected = step(logits, state, config, 1, uniforms)
    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    got = compiled(logits, state, config, torch.tensor(1), uniforms)
    for one, other in zip(got[:5] + got.state[:4], expected[:5] + expected.state[:4], strict=True):
        assert torch.allclose(one.float(), other.float())
    assert not torch.equal(expected.state.tokens, tokens)


@settings(max_examples=30, deadline=None)
@given(denoisers, configs)
def test_a_run_that_stops_early_is_a_prefix_of_the_longer_one(denoiser, config):
    patient = changed(config, patience=0)
    short, long = record(denoiser, "hello", config), record(denoiser, "hello", patient)
    finishes = STRATEGIES[config.remasking].stops_when_complete
    assert finishes or (len(long.steps) == config.iterations and not long.stopped_early)
    n = len(short.steps)
    assert np.array_equal(short.drafts, long.drafts[:n])
    assert np.array_equal(short.inputs, long.inputs[:n])
    if short.stopped_early and not finishes:
        last = short.drafts[-config.patience :]
        still = len(last) == config.patience and (last == last[0]).all()
        settled = config.greedy and np.array_equal(short.inputs[-1], short.drafts[-1])
        assert still or settled
        # A fixed point is no guess: every later draft of the longer run is the same.
        if settled and not long.is_masked[n - 1 :].any():
            assert (long.drafts[n - 1 :] == long.drafts[n - 1]).all()


@pytest.mark.parametrize("prompt", ["a", "hello there", " é\n b"])
def test_a_prompt_token_never_changes(denoiser, passes, prompt):
    trace = record(denoiser, prompt, RefineConfig(iterations=3, answer_length=6))
    ids = denoiser.encode(prompt)
    assert passes and all(torch.equal(passed[0], ids) for passed, _ in passes)
    assert np.array_equal(trace.prompt_ids, ids.numpy())


# -- drawing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 1000}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1000, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 1000, "top_p": 0.01}, [1, 0, 0, 0]),
        ({"top_k": 2, "temperature": 0.1}, [0.947, 0.053, 0, 0]),  # (4 / 3)^10 to 1
    ],
)
def test_draws_follow_the_probabilities_within_top_k_and_top_p(settings, expected):
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    config = RefineConfig(**{"temperature": 1.0} | settings)
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    logits = probabilities.log().repeat(20_000, 1)
    tokens, confidence, total, *_ = sample_tokens(logits, config, uniforms)
    assert torch.allclose(confidence, probabilities[tokens])  # the denoiser's own
    assert torch.allclose(total, torch.zeros(()), atol=1e-6)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_large_logits_are_sampled_in_parts_and_alike(monkeypatch, temperature):
    config = RefineConfig(temperature=temperature, top_k=5)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 11, generator=generator)
    uniforms = torch.rand(5, 3, generator=generator)
    whole = sample_tokens(logits, config, uniforms)
    monkeypatch.setattr("lad.diffusion.sampler.FLOATS_AT_ONCE", (40, 40))
    for part, expected in zip(sample_tokens(logits, config, uniforms), whole, strict=True):
        assert torch.equal(part, expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 6, 37, 128, 640]), st.booleans())
def test_the_likeliest_tokens_and_the_entropy_are_those_of_all_logits(seed, vocabulary, ties):
    logits = 2 * torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if ties else logits
    if vocabulary > 1:
        logits[..., seed % vocabulary] = -torch.inf
    tokens, confidence, log_sum, ids, top, entropy = sample_tokens(logits, RefineConfig())
    expected = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(tokens, expected.indices[..., 0])  # of equal ones the first
    assert torch.equal(top, expected.values[..., :5])
    assert torch.equal(logits.gather(-1, ids), top)
    assert all(len({*row}) == min(5, vocabulary) for row in ids.flatten(0, 1).tolist())
    assert torch.allclose(log_sum, logits.logsumexp(dim=-1))
    assert torch.allclose(confidence, (top[..., 0] - log_sum).exp())
    expected = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
    assert torch.allclose(entropy, expected, atol=1e-4)
    for bad in (torch.nan, torch.inf):  # which the run finds by what is not finite here
        logits[0, 1, seed % vocabulary] = bad
        tokens, _, log_sum, *_ = sample_tokens(logits, RefineConfig())
        assert (~log_sum.isfinite()).nonzero().tolist() == [[0, 1]]
        assert ((tokens >= 0) & (tokens < vocabulary)).all()


def test_the_table_of_settings_names_every_strategy():
    assert (*STRATEGIES, "verified") == REMASKING


def test_with_lookahead_the_answer_region_ends_behind_the_window(denoiser, passes):
    config = RefineConfig(remasking="threshold", permanent=True, answer_length=12, lookahead=4)
    trace = record(denoiser, "hello", config)
    widths = [answer.shape[1] for _, answer in passes]
    masked_from = [int(row.argmax()) if row.any() else 12 for row in trace.is_masked]
    assert widths == [min(12, first + 4) for first in masked_from]
    assert 4 == widths[0] < widths[-1]
    short = record(denoiser, "hello", changed(config, answer_length=4, lookahead=None))
    assert trace.drafts[0].tolist() == short.drafts[0].tolist() + [denoiser.eos_token_id] * 8
    assert not trace.confidence[0, 4:].any() and trace.remask[0, 4:].all()


# -- bad input -------------------------------------------------------------------------------------


def outside(field: dict) -> list:
    """Values that a setting refuses: out of its range, or of another type."""
    if field["choices"]:
        return ["some", "", True, [field["choices"][0]]]
    if field["type"] is bool:
        return [1, "yes", None]
    beyond = [field["low"] - 1] + ([field["high"] + 1] if field["high"] is not None else [])
    odd = [math.nan, math.inf] if field["type"] is float else [2.5, True]
    return [*beyond, *odd, "4"]


BAD = [(name, value) for name, field in SETTINGS.items() for value in outside(field)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_each_control_names_itself_its_value_and_its_range(name, value):
    with pytest.raises(InvalidInput) as caught:
        RefineConfig(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: expected ")


def test_a_prompt_that_leaves_no_room_is_refused_before_any_work(denoiser):
    with pytest.raises(InvalidInput, match="context window"):
        refine(denoiser, "word " * 100, RefineConfig(answer_length=64))
    with pytest.raises(InvalidInput, match="expected at most 32"):
        refine(denoiser, "hello", RefineConfig(context=32, answer_length=32))


@pytest.mark.parametrize(("poison", "which"), [(math.nan, 2), (math.inf, 2), (math.nan, 0)])
def test_bad_logits_stop_the_run_and_name_iteration_and_prompt(
    denoiser, monkeypatch, poison, which
):
    logits, calls = type(denoiser).logits, itertools.count()

    def poisoned(self, *arguments):
        result = logits(self, *arguments)
        if next(calls) == which:
            result[-1, 0, 5] = poison
        return result

    monkeypatch.setattr(type(denoiser), "logits", poisoned)
    config = RefineConfig(iterations=5, answer_length=8, patience=0)
    with pytest.raises(NumericalError, match=f"iteration {which}, prompt 1"):
        refine_batch(denoiser, ["a", "b"], config)


def test_a_draft_that_does_not_fit_is_named(denoiser):
    config = RefineConfig(answer_length=4)
    ids = torch.tensor([1, 2, 3, 4])
    mask, end = denoiser.mask_token_id, denoiser.eos_token_id
    for draft, fixed, named in (
        (ids[:3], None, r"shape \(3,\)"),
        (ids.float(), None, "float32"),
        (ids - 5, None, "from -4 to -1"),
        (ids + 10**6, None, "expected ids from 0 to"),
        (None, ids > 2, "without a draft"),
        (ids, ids, "expected \\(4,\\) bool"),
        (torch.tensor([1, mask, 3, 4]), ids > 1, "holds MASK"),
        (torch.tensor([1, end, 3, 4]), ids > 1, "behind a fixed EOS"),
    ):
        with pytest.raises(InvalidInput, match=named):
            refine(denoiser, "hello", config, draft=draft, fixed=fixed)


def test_batches_that_make_no_sense_are_refused_before_any_work(denoiser, monkeypatch):
    assert refine_batch(denoiser, []) == []
    monkeypatch.setattr(type(denoiser), "logits", None)
    for arguments, named in (
        ({"prompts": "hello"}, "one text"),
        ({"prompts": ["hello"], "batch_size": 0}, "batch_size = 0"),
        ({"prompts": ["hello"], "drafts": []}, "1 prompts, 0 drafts"),
        ({"prompts": ["hello", "word " * 100], "batch_size": 1}, "context window"),
        ({"prompts": ["hello", " "]}, "empty"),
        ({"prompts": [torch.tensor([], dtype=torch.long)]}, "at least one token"),
    ):
        with pytest.raises(InvalidInput, match=named):
            refine_batch(denoiser, **arguments)


@given(configs)
def test_settings_survive_json(config):
    assert RefineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# -- the real model --------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("remasking", STRATEGIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_real_model_refines_as_the_reference_does(real, remasking, temperature):
    config = RefineConfig(
        iterations=3, remasking=remasking, temperature=temperature, answer_length=12, patience=0
    )
    ids = real.encode("Name a color.")
    got = list(refine(real, ids, config))
    for mine, plain in zip(got, reference.refine(real, ids, config), strict=True):
        assert np.array_equal(mine.draft, plain.draft)
        assert np.array_equal(mine.remask, plain.remask)
        assert np.allclose(mine.confidence, plain.confidence, atol=1e-3)


@pytest.mark.real
@pytest.mark.parametrize("name", ["default", "quality"])
def test_a_batch_of_the_real_model_equals_single_runs(real, name):
    config = changed(preset(name), iterations=4, answer_length=16)
    texts = ["Name a color.", "What is the capital of France?"]
    for text, trace in zip(texts, refine_batch(real, texts, config), strict=True):
        assert np.array_equal(trace.drafts, record(real, text, config).drafts)
