"""Answers to prompts, by refinement or from left to right, and every number about them.

Shapes: n = prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import LlamaForCausalLM

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.evaluation import metrics

__all__ = ["Answers", "greedy_answers", "measure_answers", "refined_answers"]


@dataclass(frozen=True, eq=False)
class Answers:
    """What was said to n prompts.

    Attributes:
        tokens: ids of each answer, up to its EOS.
        ended: whether it had one.
        forwards: forward passes each took.
        seconds: wall time of all of them.
        eos_token_id: what follows an answer that ended.
        losses: what each token of `judged` costs the backbone, once known.
    """

    tokens: list[list[int]]
    ended: list[bool]
    forwards: list[int]
    seconds: float
    eos_token_id: int
    losses: list[np.ndarray] | None = None

    @property
    def judged(self) -> list[list[int]]:
        """The answers with their EOS, where they have one."""
        end = [self.eos_token_id]
        return [ids + end * ended for ids, ended in zip(self.tokens, self.ended, strict=True)]

    def cut(self, length: int) -> Answers:
        """The same from a region of `length` positions: what does not fit, EOS too, is cut off."""
        rows = zip(self.tokens, self.ended, strict=True)
        return replace(
            self,
            tokens=[ids[:length] for ids in self.tokens],
            ended=[end and len(ids) < length for ids, end in rows],
            forwards=[min(passes, length) for passes in self.forwards],
            losses=[x[:length] for x in self.losses],
        )

    @property
    def bare_losses(self) -> list[np.ndarray]:
        """`losses` without those of EOS."""
        return [x[: len(ids)] for x, ids in zip(self.losses, self.tokens, strict=True)]


def refined_answers(
    denoiser: Denoiser,
    prompts: Sequence[str],
    config: RefineConfig,
    batch_size: int = 8,
    on_batch: Callable[[int, int], object] = lambda done, total: None,
) -> Answers:
    """Answers by refinement, `batch_size` prompts at a time."""
    traces = []
    started = time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        traces += refine_batch(denoiser, chunk, config, batch_size=batch_size)
        on_batch(len(traces), len(prompts))
    seconds = time.perf_counter() - started
    eos = denoiser.eos_token_id
    drafts = [trace.drafts[-1] for trace in traces]
    return Answers(
        [draft[: t.tokens].tolist() for draft, t in zip(drafts, traces, strict=True)],
        [bool((draft == eos).any()) for draft in drafts],
        [trace.nfe for trace in traces],
        seconds,
        eos,
    )


@torch.inference_mode()
def greedy_answers(
    backbone: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    most_tokens: int,
    eos_token_id: int,
    batch_size: int = 8,
) -> Answers:
    """The backbone's own answers from left to right, each the likeliest token after the other.

    Args:
        backbone: bare, or inside `Denoiser.adapter_off`.
        prompts: token ids with their chat template.
        most_tokens: of an answer and its EOS together.
    """
    device = backbone.lm_head.weight.device
    tokens, ended = [], []
    started = time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        width = max(map(len, chunk))
        ids = torch.full((len(chunk), width), eos_token_id)
        real = torch.zeros_like(ids)
        for row, prompt in enumerate(chunk):  # padded on the left, where nothing attends
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            real[row, width - len(prompt) :] = 1
        produced = backbone.generate(
            input_ids=ids.to(device),
            attention_mask=real.to(device),
            max_new_tokens=most_tokens,
            do_sample=False,
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id,
        )[:, width:].tolist()
        for new in produced:
            ended.append(eos_token_id in new)
            tokens.append(new[: new.index(eos_token_id)] if ended[-1] else new)
    seconds = time.perf_counter() - started
    forwards = [len(ids) + end for ids, end in zip(tokens, ended, strict=True)]
    return Answers(tokens, ended, forwards, seconds, eos_token_id)


def measure_answers(answers: Answers, own: Answers) -> dict:
    """Every number about answers, beside the backbone's own to the same prompts.

    Returns:
        repeats, distinct_3: see `lad.evaluation.metrics`.
        perplexity: under the backbone, median over answers; EOS is not counted.
        relative_perplexity: by that of the backbone's own answer, median of the ratios.
        relative_perplexity_with_end: the same with EOS counted, so that ending too soon costs.
        nfe: forward passes an answer. forwards_per_token, tpf: pooled over answers.
        ended: share of the answers that have an EOS. tokens: of an answer.
        seconds_per_answer: wall time, in the batches that were run.
    """
    tokens = [len(ids) for ids in answers.tokens]
    bare, own_bare = answers.bare_losses, own.bare_losses
    estimates = {
        "repeats": metrics.adjacent_repeats(answers.tokens),
        "distinct_3": metrics.distinct_trigrams(answers.tokens),
        "perplexity": metrics.median(metrics.perplexities(bare)),
        "relative_perplexity": metrics.relative_perplexity(bare, own_bare),
        "relative_perplexity_with_end": metrics.relative_perplexity(answers.losses, own.losses),
        "nfe": metrics.mean(answers.forwards),
        "forwards_per_token": metrics.forwards_per_token(tokens, answers.forwards),
        "tpf": metrics.tokens_per_forward(tokens, answers.forwards),
        "ended": metrics.wilson(sum(answers.ended), len(tokens)),
        "tokens": metrics.mean(tokens),
    }
    scores = {name: estimate.to_dict() for name, estimate in estimates.items()}
    return scores | {"seconds_per_answer": answers.seconds / len(tokens)}
