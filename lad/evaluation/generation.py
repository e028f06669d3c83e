"""Answers to n prompts, by refinement or left to right, and every number about them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

import lad
from lad import utils
from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.diffusion.verified import bare_backbone
from lad.evaluation import statistics, text_metrics
from lad.models.chat import encode_prompts
from lad.models.generate import generate
from lad.models.registry import LoadedBackbone


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to n prompts."""

    tokens: list[list[int]]  # ids of each answer, up to its EOS
    ended: list[bool]  # whether each had one
    forwards: list[int]  # forward passes each took
    seconds: float  # wall time of all of them
    eos_token_id: int
    losses: list[np.ndarray] | None = None  # the backbone's, of each token of `with_eos`

    @classmethod
    def from_traces(
        cls, traces: Sequence[Trace], iterations: int | None = None, seconds: float = 0.0
    ) -> Answers:
        """The drafts after at most `iterations` iterations; by default the last ones."""
        tokens, ended, forwards = [], [], []
        for trace in traces:
            n = min(iterations or trace.nfe, trace.nfe)
            draft, length = trace.drafts[n - 1], trace.answer_length(n - 1)
            tokens.append(draft[:length].tolist())
            ended.append(length < len(draft))
            forwards.append(n)
        return cls(tokens, ended, forwards, seconds, traces[0].eos_token_id)

    @property
    def with_eos(self) -> list[list[int]]:
        """The answers with their EOS, where they have one."""
        end = [self.eos_token_id]
        return [ids + end * ended for ids, ended in zip(self.tokens, self.ended, strict=True)]

    def select(self, index: Sequence[int]) -> Answers:
        """The answers of these indices, with their losses."""
        names = ("tokens", "ended", "forwards", "losses")
        return replace(self, **{name: [getattr(self, name)[i] for i in index] for name in names})

    def truncate(self, length: int) -> Answers:
        """The same answers cut off after `length` tokens, EOS included."""
        fits = [len(ids) < length for ids in self.tokens]
        return replace(
            self,
            tokens=[ids[:length] for ids in self.tokens],
            ended=[ended and fit for ended, fit in zip(self.ended, fits, strict=True)],
            forwards=[min(passes, length) for passes in self.forwards],
            losses=[x[:length] for x in self.losses],
        )


def bar(steps: Iterable, stage: str, total: int | None = None) -> Iterable:
    """The steps, one after the other, with a bar on stderr where that is one process's terminal."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return tqdm(steps, stage, total, leave=False, disable=None if is_alone else True)


def default_batch_size(denoiser: Denoiser) -> int:
    return 8 if denoiser.device.type == "cpu" else 64


def provenance(backbone: LoadedBackbone, adapter_sha256: str | None = None) -> dict:
    """`lad.utils.provenance` of a loaded model, and the machine that it is on."""
    device, name = backbone.model.device, backbone.spec.name
    dtype = str(backbone.model.dtype)
    threads = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return utils.provenance(name, device.type, dtype, adapter_sha256, backbone.digest) | {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
        "lad": lad.__version__,
        "python": platform.python_version(),
    }


def refine_traces(
    denoiser: Denoiser, prompts: Sequence[str], config: RefineConfig, batch_size: int, stage: str
) -> list[Trace]:
    """A trace for each prompt, refined `batch_size` prompts at a time."""
    traces: list[Trace] = []
    for first in bar(range(0, len(prompts), batch_size), stage):
        chunk = prompts[first : first + batch_size]
        traces += refine_batch(denoiser, chunk, config, batch_size=batch_size)
    return traces


def greedy_answers(
    backbone: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_id: int,
    batch_size: int = 8,
    **options,
) -> Answers:
    """The backbone's answers from left to right, always the likeliest token.

    The backbone is bare, or inside `Denoiser.adapter_off`; prompts are token ids with their chat
    template; `max_new_tokens` counts EOS; options are of `transformers`, as in `generate`.
    """
    started = time.perf_counter()
    options |= {"batch_size": batch_size}
    outputs = generate(backbone, eos_token_id, prompts, max_new_tokens, **options)
    seconds = time.perf_counter() - started
    ended = [eos_token_id in ids for ids in outputs]
    tokens = [ids[:-1] if end else ids for ids, end in zip(outputs, ended, strict=True)]
    return Answers(tokens, ended, [len(ids) for ids in outputs], seconds, eos_token_id)


def score_outputs(
    denoiser: Denoiser,
    prompts: Sequence[str],
    outputs: Mapping[object, Answers],
    max_new_tokens: int,
    batch_size: int,
) -> tuple[Answers, dict]:
    """The bare backbone's greedy answers, and all answers with their losses under it.

    `max_new_tokens` are the backbone's, EOS included.
    """
    model, ids = bare_backbone(denoiser), encode_prompts(denoiser.tokenizer, prompts)
    baseline = greedy_answers(model, ids, max_new_tokens, denoiser.eos_token_id, batch_size)
    baseline = score_answers(denoiser, prompts, baseline, batch_size)
    return baseline, {
        key: score_answers(denoiser, prompts, outputs[key], batch_size)
        for key in bar(outputs, "perplexity")
    }


def score_answers(
    denoiser: Denoiser, prompts: Sequence[str], answers: Answers, batch_size: int
) -> Answers:
    """The answers with their losses under the bare backbone."""
    ids = encode_prompts(denoiser.tokenizer, prompts)
    given = ids, answers.with_eos, batch_size
    return replace(answers, losses=text_metrics.answer_losses(bare_backbone(denoiser), *given))


def measure_answers(tokenizer, answers: Answers, baseline: Answers) -> dict:
    """Every number about answers, beside the backbone's greedy answers to the same prompts.

    `relative_perplexity_with_end` comes first: the perplexity under the backbone, EOS counted, so
    that ending too soon costs, divided by that of the baseline's answer, as a median over answers.
    `relative_perplexity` and `perplexity` leave EOS out. `forwards_per_token` and `tpf` are pooled.
    """
    tokens = [len(ids) for ids in answers.tokens]
    losses, baseline_losses = (
        [x[: len(ids)] for x, ids in zip(one.losses, one.tokens, strict=True)]  # without EOS
        for one in (answers, baseline)
    )
    with_end = text_metrics.relative_perplexity(answers.losses, baseline.losses)
    texts = tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
    estimates = {
        "relative_perplexity_with_end": with_end,
        "relative_perplexity": text_metrics.relative_perplexity(losses, baseline_losses),
        "perplexity": statistics.median(text_metrics.perplexities(losses)),
        "repeats": text_metrics.adjacent_repeats(answers.tokens),
        "repeated_4grams": text_metrics.repeated_ngrams(answers.tokens),
        "whole_sentences": text_metrics.whole_sentences(texts),
        "nfe": statistics.mean(answers.forwards),
        "forwards_per_token": statistics.pooled_ratio(answers.forwards, tokens),
        "tpf": statistics.pooled_ratio(tokens, answers.forwards),
        "ended": statistics.wilson(sum(answers.ended), len(tokens)),
        "tokens": statistics.mean(tokens),
    }
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
