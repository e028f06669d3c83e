"""Verified refinement says what the backbone says alone, whatever the denoiser drafts."""

import json

import numpy as np
import pytest
import torch
from conftest import run, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import denoisers, prompts, starts

from lad.accel import capture
from lad.diffusion import reference
from lad.diffusion.config import RefineConfig, preset
from lad.diffusion.sampler import record, refine_batch
from lad.models.generate import generate
from lad.models.registry import load_backbone
from lad.utils import NumericalError
from lad.viz.html import caption_html, summary

configs = st.builds(
    RefineConfig,
    iterations=st.integers(1, 40),
    remasking=st.just("verified"),
    window=st.sampled_from([None, 1, 2, 5]),
    lookahead=st.sampled_from([None, 3]),
    variants=st.sampled_from([1, 4]),
    temperature=st.sampled_from([0.0, 0.0, 1.5]),
    top_k=st.sampled_from([4, 1000]),
    eos_bias=st.sampled_from([0.0, 3.0]),
    answer_length=st.integers(1, 16),
    seed=st.integers(0, 2**31),
)


def left_to_right(denoiser, prompt, config, draft, fixed) -> list[int]:
    """The bare backbone's answer, token by token; a fixed token is taken as it is."""
    a, eos = config.answer_length, denoiser.eos_token_id
    given = torch.zeros(a) if draft is None else draft
    kept = torch.zeros(a, dtype=torch.bool) if fixed is None else fixed
    words = [n for n in range(a) if kept[n] and given[n] != eos]
    generator = torch.Generator().manual_seed(config.seed)
    uniforms = torch.rand(a, generator=generator).tolist()
    answer: list[int] = []
    with torch.no_grad(), denoiser.adapter_off():
        while len(answer) < a and eos not in answer:
            n = len(answer)
            ids = torch.cat([prompt, prompt.new_tensor(answer)])
            logits = denoiser.causal_lm(ids[None]).logits[0, -1]
            logits[eos] += config.eos_bias
            logits[denoiser.mask_token_id] = -torch.inf
            if words and n < words[-1]:
                logits[eos] = -torch.inf
            token = reference.draw(logits.tolist(), config, uniforms[n])
            answer.append(int(given[n]) if kept[n] else token)
    return answer + [eos] * (a - len(answer))


@settings(max_examples=100, deadline=None)
@given(denoisers, prompts, configs, st.integers(0, 2**31))
def test_the_answer_is_the_backbones_token_for_token(denoiser, prompt, config, seed):
    draft, fixed = starts(denoiser, config, seed)
    trace = record(denoiser, prompt, config, draft=draft, fixed=fixed)
    expected = left_to_right(denoiser, denoiser.encode(prompt), config, draft, fixed)
    if config.iterations >= 2 * config.answer_length:  # a cycle gives at least a token
        assert trace.drafts[-1].tolist() == expected
    text, end = trace.drafts[-1][: trace.tokens].tolist(), fixed is not None and fixed.any()
    assert end or text == expected[: len(text)]  # cut off, it is the beginning
    assert (trace.drafts != denoiser.mask_token_id).all() and not trace.remask[-1].any()
    is_known = ~trace.is_masked[::2] if fixed is None and draft is None else [[]]
    for known, drawn in zip(is_known, trace.drafts[::2], strict=False):
        n = int(np.sum(known))
        assert drawn[:n].tolist() == expected[:n]
    assert trace.backbone_passes == trace.nfe // 2
    again = record(denoiser, prompt, config, draft=draft, fixed=fixed)
    [batched, _] = refine_batch(
        denoiser, [prompt, "b"], config, drafts=[draft, None], fixed=[fixed, None]
    )
    assert again == trace == batched


def test_a_view_says_whose_pass_it_shows(denoiser):
    trace = record(denoiser, "hello", RefineConfig(remasking="verified", answer_length=4))
    heads = [caption_html(trace, step, "denoised") for step in (0, 1)]
    assert "After denoising" in heads[0] and "After the backbone" in heads[1]
    assert f"{trace.nfe // 2} of them by the backbone" in summary(trace)


def test_captured_passes_draft_the_same(adapter):
    from lad.diffusion.adapter import load_denoiser

    config = RefineConfig(remasking="verified", iterations=24, window=3, answer_length=12)
    denoiser = load_denoiser("tiny", adapter)
    plain = record(denoiser, "hello", config)
    assert np.array_equal(record(capture(denoiser), "hello", config).drafts, plain.drafts)


def test_the_backbones_logits_are_checked(monkeypatch):
    broken = load_backbone("tiny").model
    broken.lm_head.weight[0] = torch.nan
    monkeypatch.setattr("lad.diffusion.verified.bare_backbone", lambda _denoiser: broken)
    with pytest.raises(NumericalError, match="iteration 1: the logits of the backbone"):
        record(tiny_denoiser(), "hello", RefineConfig(remasking="verified"))


def test_the_command_says_how_many_passes_were_whose(capsys, adapter):
    options = ("--preset", "verified", "--answer-length", "6", "--model", "tiny", "--json")
    status, out, _ = run(capsys, "refine", "hello", *options, "--adapter", adapter)
    values = json.loads(out)
    assert status == 0
    assert 0 < values["backbone_passes"] == values["nfe"] // 2


@pytest.mark.real
def test_the_real_backbones_greedy_text(real):
    texts = ["What is the capital of France?", "Name a color.", "Write one sentence about rain."]
    config = RefineConfig(**preset("verified").to_dict() | {"answer_length": 24})
    backbone = load_backbone("smollm2-135m").model
    for trace in refine_batch(real, texts, config):
        ids = trace.prompt_ids.tolist()
        [expected] = generate(backbone, real.eos_token_id, [ids], config.answer_length)
        assert trace.drafts[-1][: len(expected)].tolist() == expected
        assert trace.nfe < 2 * len(expected)
