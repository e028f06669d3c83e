"""Captured passes: the same logits from padded tensors of fixed shapes; no graph on a CPU."""

import functools
import gc
import itertools
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import KINDS, stir, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import configs, denoisers, lists, starts
from torch.utils._python_dispatch import TorchDispatchMode

from lad.accel import cuda_graphs as room
from lad.accel.cuda_graphs import CapturedPass, Passes, padded_shape
from lad.accel.llama_layers import compiled
from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser, DenoiserConfig, load_denoiser, pad_prompts
from lad.diffusion.sampler import record, refine, refine_batch
from lad.models.registry import load_backbone


@pytest.fixture
def switched():
    """Switches a denoiser's captured passes on; off again at the end."""
    changed = []

    def switch(denoiser):
        changed.append(denoiser)
        return denoiser.capture()

    yield switch
    for denoiser in changed:
        denoiser.graphs = None


@functools.cache
def folded(attention: str, target: str) -> Denoiser:
    """As `tiny_denoiser`, the adapter folded into the weights."""
    config = DenoiserConfig(attention=attention, target=target, rank=4, alpha=8)
    denoiser = Denoiser.create(load_backbone("tiny"), config)
    stir(denoiser)
    return denoiser.merge()


def test_shapes_grow_to_few_sizes():
    assert [padded_shape(b, p) for b, p in [(1, 1), (3, 32), (4, 33), (33, 64)]] == [
        (1, 32), (4, 32), (4, 64), (64, 64),
    ]  # fmt: skip


def test_padding_changes_no_logit(any_denoiser, switched):
    ids = [any_denoiser.encode(text) for text in ("a", "a longer prompt", "b c")]
    prompts, padding = pad_prompts(ids)
    answer = torch.randint(97, 120, (3, 9), generator=torch.Generator().manual_seed(0))
    answer[:, 4:] = any_denoiser.mask_token_id
    with torch.inference_mode():
        expected = Passes(any_denoiser, prompts, padding).logits(answer)
        own = Passes(switched(any_denoiser), prompts, padding)
        assert torch.allclose(own.logits(answer), expected, atol=1e-4)
        # Filled again with other answers, and with fewer rows in another order.
        assert torch.allclose(own.logits(answer.flip(0)).flip(0)[1], expected[1], atol=1e-4)
        own.keep(torch.tensor([2, 0]))
        assert torch.allclose(own.logits(answer[[2, 0]]), expected[[2, 0]], atol=1e-4)
    assert set(any_denoiser.graphs.passes) == {(4, 64, 9), (2, 64, 9)}


@settings(max_examples=40, deadline=None)
@given(denoisers, lists, configs, st.integers(0, 2**31))
def test_captured_passes_give_the_same_drafts(denoiser, texts, config, seed):
    given = [starts(denoiser, config, seed + row) for row in range(len(texts))]
    drafts, fixed = ([pair[n] for pair in given] for n in (0, 1))
    expected = refine_batch(denoiser, texts, config, drafts=drafts, fixed=fixed)
    denoiser.capture()
    try:
        got = refine_batch(denoiser, texts, config, drafts=drafts, fixed=fixed)
    finally:
        denoiser.graphs = None
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one.drafts, other.drafts)
        assert np.array_equal(one.inputs, other.inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_give_what_transformers_gives(kind, switched):
    own = folded(*kind)
    ids = [own.encode(text) for text in ("a", "a longer prompt", "b c")]
    prompts, padding = pad_prompts(ids)
    answer = torch.randint(97, 120, (3, 9), generator=torch.Generator().manual_seed(0))
    answer[:, 4:] = own.mask_token_id
    with torch.inference_mode():
        expected = Passes(own, prompts, padding).logits(answer)
        passes = Passes(switched(own), prompts, padding)
        assert torch.allclose(passes.logits(answer), expected, atol=1e-4)
    assert own.graphs.layers is not None
    assert not torch.equal(expected[0], expected[1])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(KINDS), lists, configs)
def test_layers_give_the_same_drafts(kind, texts, config):
    denoiser = folded(*kind)
    expected = refine_batch(denoiser, texts, config)
    denoiser.capture()
    try:
        got = refine_batch(denoiser, texts, config)
    finally:
        denoiser.graphs = None
    assert all(np.array_equal(a.drafts, b.drafts) for a, b in zip(got, expected, strict=True))


def test_layers_are_not_for_an_adapter_that_is_not_folded_in(denoiser, switched):
    record(switched(denoiser), "hello", RefineConfig(iterations=1, answer_length=4))
    assert denoiser.graphs.layers is None


def test_where_compiling_fails_the_function_runs_as_it_is(monkeypatch):
    def broken(function):
        def run(*args):
            raise torch._dynamo.exc.TorchDynamoException("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    run = compiled(lambda x: x + 1)
    with pytest.warns(UserWarning, match="torch.compile failed .no compiler here."):
        assert run(1) == 2
    assert run(2) == 3


def test_one_captured_pass_serves_many_runs(denoiser, switched):
    config = RefineConfig(iterations=2, answer_length=6)
    expected = [record(denoiser, text, config).drafts for text in ("a", "bcd")]
    switched(denoiser)
    for _ in range(2):
        got = [record(denoiser, text, config).drafts for text in ("a", "bcd")]
        assert all(map(np.array_equal, got, expected))
    assert len(denoiser.graphs.passes) == 1


def test_a_pass_begun_gives_what_it_would_have_given(any_denoiser, switched):
    prompts, padding = pad_prompts([any_denoiser.encode(text) for text in ("a", "longer", "b c")])
    answers = torch.randint(97, 120, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([2, 0])
    with torch.inference_mode():
        plain = Passes(any_denoiser, prompts, padding)
        first, second = (plain.logits(answer) for answer in answers)
        plain.begin(answers[0])  # nothing is captured, so it would have to be waited for
        assert plain.begun is None
        own = Passes(switched(any_denoiser), prompts, padding)
        runs = count_runs(own, answers[0])
        own.begin(answers[1])
        assert runs() == 2
        assert torch.allclose(own.logits(answers[1]), second, atol=1e-4)
        assert runs() == 2
        # Rows that leave meanwhile leave it too.
        own.begin(answers[0])
        own.keep(rows)
        assert torch.allclose(own.logits(answers[0][rows]), first[rows], atol=1e-4)
        assert torch.allclose(own.logits(answers[1][rows]), second[rows], atol=1e-4)


@pytest.mark.parametrize("ahead", [True, False])
def test_rows_that_leave_do_not_stay_in_a_pass_of_the_same_shape(any_denoiser, switched, ahead):
    texts = ["a", "bcd", "ef", "g"]
    prompts, padding = pad_prompts([any_denoiser.encode(text) for text in texts])
    answers = torch.randint(97, 120, (4, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 1, 3])
    with torch.inference_mode():
        expected = Passes(any_denoiser, prompts, padding).logits(answers)[rows]
        own = Passes(switched(any_denoiser), prompts, padding)
        own.logits(answers)
        if ahead:
            own.begin(answers)
        own.keep(rows)
        for _ in range(2):
            assert torch.allclose(own.logits(answers[rows]), expected, atol=1e-4)
    assert len(any_denoiser.graphs.passes) == 1


def count_runs(passes: Passes, answer: torch.Tensor):
    """Runs a pass, and counts it and those that follow."""
    passes.logits(answer)
    count, logits = [1], passes.filled.logits

    def counted(answer):
        count.append(1)
        return logits(answer)

    passes.filled.logits = counted
    return lambda: len(count)


@pytest.mark.parametrize("remasking", ["none", "threshold"])
def test_runs_take_turns_on_one_captured_pass(denoiser, switched, remasking):
    config = RefineConfig(remasking=remasking, iterations=5, answer_length=9, patience=0)
    texts = ["a", "bcd"]
    expected = [record(denoiser, text, config).drafts for text in texts]
    assert not np.array_equal(*expected)
    both = zip(*(refine(switched(denoiser), text, config) for text in texts), strict=True)
    got = zip(*((one.draft, other.draft) for one, other in both), strict=True)
    assert all(np.array_equal(np.stack(a), b) for a, b in zip(got, expected, strict=True))
    assert len(denoiser.graphs.passes) == 1


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ),
    ],
)
@pytest.mark.parametrize(
    "config",
    [
        RefineConfig(remasking="none", answer_length=3),
        RefineConfig(remasking="guided", temperature=0.7, top_k=2, answer_length=3),
        RefineConfig(remasking="threshold", confidence_threshold=0.15, answer_length=4),
    ],
    ids=lambda config: config.remasking,
)
def test_where_passes_run_ahead_of_the_host_drafts_are_the_same(device, config):
    config = replace(config, iterations=24, patience=2)
    backbone = load_backbone("tiny", device, torch.float32)
    denoiser = Denoiser.create(backbone, DenoiserConfig(rank=4, alpha=8))
    stir(denoiser)
    denoiser.merge()
    texts = ["a", "bcd", "what is this?", "a b", "e"]
    expected = refine_batch(denoiser, texts, config)
    assert len({trace.nfe for trace in expected}) > 1, "rows leave at different times"
    got = refine_batch(denoiser.capture(), texts, config)
    assert all(np.array_equal(a.drafts, b.drafts) for a, b in zip(got, expected, strict=True))


def test_a_captured_pass_keeps_nothing_of_a_run_that_is_over(denoiser, switched):
    prompts, padding = pad_prompts([denoiser.encode("a")])
    with torch.inference_mode():
        passes = Passes(switched(denoiser), prompts, padding)
        passes.begin(torch.full((1, 5), denoiser.mask_token_id))
    over = weakref.ref(passes)
    del passes
    gc.collect()
    assert denoiser.graphs.passes and over() is None


def test_the_pass_used_longest_ago_goes_first(denoiser, switched, monkeypatch):
    monkeypatch.setattr(room, "MOST_GRAPHS", 2)
    switched(denoiser)
    for length in (4, 5, 4, 6):
        record(denoiser, "a", RefineConfig(iterations=1, answer_length=length))
    assert [shape[2] for shape in denoiser.graphs.passes] == [4, 6]
    monkeypatch.setattr(room, "MOST_LOGITS", 11 * denoiser.vocabulary_size)
    record(denoiser, "a", RefineConfig(iterations=1, answer_length=7))
    assert [shape[2] for shape in denoiser.graphs.passes] == [7]
    record(denoiser, "a", RefineConfig(iterations=1, answer_length=20))
    assert [shape[2] for shape in denoiser.graphs.passes] == [20]  # one is always kept


def test_a_bare_backbone_is_not_answered_by_what_was_captured(denoiser, switched):
    config = RefineConfig(iterations=2, answer_length=6)
    with denoiser.adapter_off():
        bare = record(denoiser, "hello", config).drafts
    switched(denoiser)
    own = record(denoiser, "hello", config).drafts
    with denoiser.adapter_off():
        assert np.array_equal(record(denoiser, "hello", config).drafts, bare)
    assert not np.array_equal(own, bare)
    # Nor the adapter afterwards by what was captured while it was folded in.
    assert np.array_equal(record(denoiser, "hello", config).drafts, own)


def test_a_pass_asks_nothing_of_the_host(any_denoiser, switched):
    """Reading a number back, or a shape that hangs on one, cannot be captured."""
    asked = []
    switched(any_denoiser)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"):
                asked.append(name)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode():
        whole = CapturedPass(any_denoiser, 2, 32, 5)
        with Watch():
            whole.logits(torch.zeros(2, 5, dtype=torch.int64))
            assert asked == []
            torch.ones(3).nonzero()  # it would have been seen
    assert asked == ["nonzero"]


def test_a_pass_leaves_the_prompt_as_it_was_read():
    denoiser = tiny_denoiser()
    ids = denoiser.encode("hello")[None]
    cache = denoiser.read_prompt(ids)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    answers = torch.randint(97, 120, (2, 1, 7), generator=torch.Generator().manual_seed(0))
    first, _, again = (denoiser.logits(ids, answers[n], cache) for n in (0, 1, 0))
    assert torch.equal(first, again)
    kept = itertools.chain.from_iterable((layer.keys, layer.values) for layer in cache.layers)
    assert all(map(torch.equal, kept, itertools.chain.from_iterable(before)))


def test_graphs_are_for_gpus(tmp_path):
    folder = tiny_denoiser().save(tmp_path / "tiny")
    assert load_denoiser("tiny", folder, graphs=True).graphs is None
    assert load_denoiser("tiny", folder).graphs is None


def test_merging_forgets_what_was_captured_before():
    own = Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4, alpha=8))
    own.capture().graphs.passes["shape"] = "pass"
    assert own.merge().graphs.passes == {}
