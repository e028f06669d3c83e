"""The fast path: the same logits and drafts from captured passes and compiled layers.

And LoRA computed with the adapter merged in: the same values, the same gradients.
"""

import contextlib
import functools

import numpy as np
import pytest
import torch
from conftest import KINDS, new_denoiser, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import configs, denoisers, lists, new_state, same_alternatives, starts
from torch.utils._python_dispatch import TorchDispatchMode

from lad.accel import capture, cuda_graphs
from lad.accel.cuda_graphs import CapturedPass, CapturedStep
from lad.accel.llama_layers import compiled
from lad.accel.merged_lora import merged_lora
from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser, PromptForward, pad_prompts
from lad.diffusion.remasking import STRATEGIES
from lad.diffusion.sampler import record, refine, refine_batch


@functools.cache
def merged(attention: str, target: str) -> Denoiser:
    return new_denoiser(attention=attention, target=target).merge()


@contextlib.contextmanager
def accelerated(denoiser):
    """Captures a denoiser for a while; gives its cache of graphs."""
    try:
        yield capture(denoiser).prepare.args[0]
    finally:
        denoiser.prepare, denoiser.step = functools.partial(PromptForward, denoiser), None


def check_same_drafts(denoiser, *args, **more) -> None:
    """The fast path's inputs and drafts are the plain ones."""
    expected = refine_batch(denoiser, *args, **more)
    with accelerated(denoiser):
        got = refine_batch(denoiser, *args, **more)
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one.drafts, other.drafts)
        assert np.array_equal(one.inputs, other.inputs)
        assert same_alternatives(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [tiny_denoiser, merged], ids=["plain", "merged"])
def test_captured_passes_give_the_same_logits(made, kind):
    """The layers of transformers are captured where the adapter is not merged, else our own."""
    denoiser = made(*kind)
    texts = ("a", "a longer one", "b c", "d")
    prompts, padding = pad_prompts([denoiser.encode(text) for text in texts])
    answer = torch.randint(97, 120, (4, 9), generator=torch.Generator().manual_seed(0))
    answer[:, 4:] = denoiser.mask_token_id
    expected = PromptForward(denoiser, prompts, padding)(answer)
    with torch.inference_mode(), accelerated(denoiser) as graphs:
        forward = denoiser.prepare(prompts, padding)
        assert torch.allclose(forward(answer), expected, atol=1e-4)
        # Filled again with other answers, and with fewer sequences in another order, first in the
        # same pass, where those that leave must not stay.
        assert torch.allclose(forward(answer[[2, 1, 0, 3]])[1], expected[1], atol=1e-4)
        for keep in (torch.tensor([3, 0, 2]), torch.tensor([2, 1])):
            forward.select(keep)
            answer, expected = answer[keep], expected[keep]
            assert torch.allclose(forward(answer), expected, atol=1e-4)
    assert set(graphs.passes) == {(4, 32, 9), (2, 32, 9)}
    assert (graphs.layers is not None) == (made is merged)
    assert not torch.equal(expected[0], expected[1])


@settings(max_examples=40, deadline=None)
@given(denoisers, lists, configs, st.integers(0, 2**31))
def test_captured_passes_give_the_same_drafts(denoiser, texts, config, seed):
    given = [starts(denoiser, config, seed + n) for n in range(len(texts))]
    drafts, fixed = ([pair[n] for pair in given] for n in (0, 1))
    check_same_drafts(denoiser, texts, config, drafts=drafts, fixed=fixed)


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


@pytest.mark.parametrize("remasking", ["none", "threshold"])
def test_runs_take_turns_on_one_captured_pass(denoiser, remasking):
    config = RefineConfig(remasking=remasking, iterations=5, answer_length=9, patience=0)
    texts = ["a", "bcd"]
    expected = [record(denoiser, text, config).drafts for text in texts]
    assert not np.array_equal(*expected)
    with accelerated(denoiser) as graphs:
        both = zip(*(refine(denoiser, text, config) for text in texts), strict=True)
        got = list(zip(*((one.draft, other.draft) for one, other in both), strict=True))
    assert all(np.array_equal(np.stack(a), b) for a, b in zip(got, expected, strict=True))
    assert len(graphs.passes) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        RefineConfig(remasking="none", answer_length=3),
        RefineConfig(remasking="guided", temperature=0.7, top_k=2, answer_length=3),
        RefineConfig(remasking="threshold", confidence_threshold=0.15, answer_length=4),
        RefineConfig(
            remasking="threshold", confidence_threshold=0.15, answer_length=12, lookahead=3
        ),
    ],
    ids=lambda config: f"{config.remasking}, {config.lookahead}",
)
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_on_a_gpu_give_the_same_drafts(kind, config):
    config = RefineConfig(**config.to_dict() | {"iterations": 24, "patience": 2})
    denoiser = new_denoiser("cuda", attention=kind[0], target=kind[1]).merge()
    texts = ["a", "bcd", "what is this?", "a b", "e"]
    check_same_drafts(denoiser, texts, config)


def test_the_least_recently_used_pass_goes_first(denoiser, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_LOGITS", 11 * denoiser.vocabulary_size)
    with accelerated(denoiser) as graphs:
        for length in (4, 5, 4, 6):
            record(denoiser, "a", RefineConfig(iterations=1, answer_length=length))
        assert [shape[2] for shape in graphs.passes] == [4, 6]
        record(denoiser, "a", RefineConfig(iterations=1, answer_length=20))
        assert [shape[2] for shape in graphs.passes] == [20]  # one is always kept


def test_a_bare_backbone_does_not_use_what_was_captured(denoiser):
    config = RefineConfig(iterations=2, answer_length=6)
    with denoiser.adapter_off():
        bare = record(denoiser, "hello", config).drafts
    with accelerated(denoiser):
        adapted = record(denoiser, "hello", config).drafts
        with denoiser.adapter_off():
            assert np.array_equal(record(denoiser, "hello", config).drafts, bare)
        assert not np.array_equal(adapted, bare)
        assert np.array_equal(record(denoiser, "hello", config).drafts, adapted)


@pytest.mark.parametrize("remasking", STRATEGIES)
def test_a_pass_and_its_step_read_nothing_back_to_the_host(any_denoiser, remasking):
    """Reading a number back, or a shape that depends on one, cannot be captured."""
    config = RefineConfig(remasking=remasking, added_tokens=2, repeats="remask", window=3)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"):
                seen.append(name)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode():
        one = CapturedPass(any_denoiser, None, 2, 32, 5)
        state = new_state(torch.full((2, 5), 3), config)
        uniforms = torch.rand(2, 2, 5)
        one_step = CapturedStep(one, state, config, 2)
        with Watch():
            one(torch.zeros(2, 5, dtype=torch.int64))
            one_step(state, 1, uniforms)
            assert seen == []
            torch.ones(3).nonzero()  # it would have been seen
    assert seen == ["nonzero"]


@pytest.fixture
def trained() -> Denoiser:
    denoiser = new_denoiser(alpha=12)
    for name, parameter in denoiser.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return denoiser


def states_and_gradients(denoiser):
    """States, and the gradients of their squares' mean by the adapter's weights."""
    tokens = torch.randint(0, 100, (3, 11), generator=torch.Generator().manual_seed(1))
    states = denoiser.hidden_states(tokens, torch.ones((3, 1, 11, 11), dtype=torch.bool))
    parameters = [p for p in denoiser.model.parameters() if p.requires_grad]
    return states, torch.autograd.grad(states.square().mean(), parameters)


def test_values_and_gradients_are_those_of_two_thin_products(trained):
    states, gradients = states_and_gradients(trained)
    with merged_lora(trained.model):
        again, merged_gradients = states_and_gradients(trained)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-4)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    torch.testing.assert_close(merged_gradients, gradients, atol=1e-6, rtol=1e-3)


def test_the_layers_are_as_before_afterwards(trained):
    layers = [m for m in trained.model.modules() if hasattr(m, "lora_A")]
    with pytest.raises(KeyboardInterrupt), merged_lora(trained.model):
        assert all("forward" in vars(layer) for layer in layers)
        raise KeyboardInterrupt
    assert layers and not any("forward" in vars(layer) for layer in layers)
