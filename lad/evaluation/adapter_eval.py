"""The quality of a denoiser in four parts, every number with its interval.

Cross-entropy and accuracy of masked tokens, accuracy behind a clean beginning, structural repair
(Kuiper et al., EMNLP 2025 System Demonstrations), and perplexity, repeats, whole sentences and
cost of answers to held-out prompts. Everything is greedy or seeded.

Shapes: n = answers, b = batch, t = width, m = positions that are predicted, v = vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lad.diffusion.config import CorruptionConfig, RefineConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser
from lad.evaluation import generation
from lad.evaluation.generation import Answers, Progress, provenance, silent
from lad.evaluation.statistics import pooled_ratio, pooled_share, wilson
from lad.models.registry import LoadedBackbone
from lad.training.data import PackedPairs, Pair, pack
from lad.training.loss import MASKED_FRACTIONS, answer_logits, masked_sums, take
from lad.utils import check_least

REPAIR_SEVERITY, REPAIR_ITERATIONS = 0.3, 4
LOOKAHEAD = (1, 2, 4, 8)  # tokens behind a clean beginning
STRUCTURAL = CorruptionConfig(all_masked=0.0, mask_probability=0.0, structural_probability=1.0)


def evaluate(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    prompts: Sequence[str],
    settings: Mapping[str, RefineConfig],
    seed: int = 0,
    batch_size: int | None = None,
    backbone: LoadedBackbone | None = None,
    keep_answers: bool = False,
    on_progress: Progress = silent,
) -> dict:
    """All four parts, as plain values for JSON.

    Args:
        pairs, prompts: not trained on; pairs longer than the denoiser's context are dropped.
        settings: name -> settings to answer the prompts with.
        seed: of masks and corruption.
        batch_size: answers at once; by default 8 on a CPU and 64 elsewhere.
        backbone: the baseline; by default the denoiser's with its adapter off, see `score_outputs`.
        keep_answers: put the text of every answer into the result.
    """
    check_least(1, pairs=len(pairs), prompts=len(prompts), settings=len(settings))
    batch_size = batch_size or generation.default_batch_size(denoiser)
    started = time.perf_counter()
    packed = pack(denoiser.backbone, pairs, denoiser.config.context).to(denoiser.device)
    measured_on = denoiser, packed, batch_size, seed, on_progress
    masked, ahead = masked_scores(*measured_on), lookahead_accuracy(*measured_on)
    repair, outputs = repair_scores(*measured_on), {}
    for name, config in settings.items():
        start = time.perf_counter()
        on_batch = partial(on_progress, name)
        traces = generation.refine_traces(denoiser, prompts, config, batch_size, on_batch)
        outputs[name] = Answers.from_traces(traces, seconds=time.perf_counter() - start)
    # The adapter goes off once, after everything that needs it.
    longest = max(config.answer_length for config in settings.values())
    options = longest, batch_size, backbone, partial(on_progress, "backbone")
    baseline, outputs = generation.score_outputs(denoiser, prompts, outputs, *options)

    def measured(answers: Answers, length: int) -> dict:
        tokenizer, cut = denoiser.tokenizer, baseline.truncate(length)
        scores = generation.measure_answers(tokenizer, answers, cut)
        scores["seconds_per_answer"] = answers.seconds / len(prompts)
        if keep_answers:
            texts = tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
            both = zip(prompts, texts, strict=True)
            scores["answers"] = [{"prompt": prompt, "answer": text} for prompt, text in both]
        return scores

    seconds = time.perf_counter() - started
    return {
        "provenance": provenance(denoiser.backbone, denoiser.adapter_sha256)
        | {"seed": seed, "batch_size": batch_size, "seconds": seconds},
        "pairs": {"used": len(packed), "too_long": packed.dropped},
        "prompts": {"used": len(prompts)},
        "masked": masked,
        "ahead": ahead,
        "repair": repair,
        "settings": {
            name: {"config": config.to_dict()} | measured(outputs[name], config.answer_length)
            for name, config in settings.items()
        },
        "backbone": {"answer_length": longest} | measured(baseline, longest),
    }


@torch.inference_mode()
def masked_scores(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0, on_progress=silent
) -> dict[str, dict]:
    """Cross-entropy and accuracy where a given share of the answer is masked and the rest is clean.

    The protocol of `lad.training.validate`, with intervals: {"0.25": {"ce", ...}, ...}.
    """
    scores = {}
    for fraction in MASKED_FRACTIONS:
        on_done = partial(on_progress, f"{100 * fraction:.0f} % masked")
        sums = masked_sums(denoiser, pairs, fraction, batch_size, seed, on_done)
        losses, hits, tokens = sums.tolist()
        scores[f"{fraction:g}"] = {
            "ce": pooled_ratio(losses, tokens).to_dict(),
            "accuracy": pooled_share(hits, tokens).to_dict(),
            "tokens": int(sum(tokens)),
        }
    return scores


@torch.inference_mode()
def lookahead_accuracy(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0, on_progress=silent
) -> dict[str, dict]:
    """Accuracy of the tokens behind a clean beginning, everything after it masked.

    Each answer is cut at a random point. Returns {"1": accuracy of the first token behind the cut,
    ...} for `LOOKAHEAD`; that of the later ones limits parallel decoding.
    """
    n, context = pairs.tokens.shape
    batch = take(pairs, list(range(n)), context)
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n, generator=generator).to(pairs.ends.device)
    cut = batch.prompt_lengths + (place * (pairs.ends - batch.prompt_lengths)).long()  # (n,)
    position = torch.arange(context, device=cut.device)
    inputs = batch.tokens.masked_fill(position >= cut[:, None], denoiser.mask_token_id)
    chosen = (position >= cut[:, None]) & (position < cut[:, None] + LOOKAHEAD[-1])
    predicted = torch.zeros_like(batch.tokens)
    for first in range(0, n, batch_size):
        part = slice(first, first + batch_size)
        wanted = chosen[part]
        logits = answer_logits(denoiser, inputs[part], batch.prompt_lengths[part], wanted)
        predicted[part] = predicted[part].masked_scatter(wanted, logits.argmax(dim=-1))
        on_progress("lookahead", min(part.stop, n), n)
    right = (chosen & (predicted == batch.tokens)).cpu()
    scores = {}
    for distance in LOOKAHEAD:
        index = (cut + distance - 1).cpu()
        counted = index <= pairs.ends.cpu()  # a token of the answer, or its first EOS
        hits = right[torch.arange(n), index.clamp(max=context - 1)] & counted
        scores[str(distance)] = wilson(int(hits.sum()), int(counted.sum())).to_dict()
    return scores


@torch.inference_mode()
def repair_scores(
    denoiser: Denoiser, pairs: PackedPairs, batch_size: int = 8, seed: int = 0, on_progress=silent
) -> dict:
    """Structural repair: corrupted answers, nothing masked, refined noiselessly and greedily.

    Of the tokens of an answer and its first EOS: `restored`, the share of corrupted ones that are
    right in the last draft; `kept`, the same of the others; `damaged`, the share corrupted.
    """
    n, context = pairs.tokens.shape
    batch = take(pairs, list(range(n)), context)
    generator = torch.Generator(batch.tokens.device).manual_seed(seed)
    ids = denoiser.vocabulary_size, denoiser.mask_token_id
    # All answers at once, so that the batch size does not change what is corrupted.
    noisy = corrupt(batch.tokens, batch.answer, *ids, generator, STRUCTURAL, REPAIR_SEVERITY)
    repaired = torch.empty_like(noisy)
    for first in range(0, n, batch_size):
        part = slice(first, first + batch_size)
        draft, answer = noisy[part], batch.answer[part]  # (b, t)
        for _ in range(REPAIR_ITERATIONS):
            logits = answer_logits(denoiser, draft, batch.prompt_lengths[part], answer)  # (m, v)
            logits[:, denoiser.mask_token_id] = -torch.inf  # MASK is an input, never an answer
            draft = draft.masked_scatter(answer, logits.argmax(dim=-1))
        repaired[part] = draft
        on_progress("repair", min(first + batch_size, n), n)
    counted = batch.answer & ~batch.tail
    corrupted = counted & (noisy != batch.tokens)
    right = repaired == batch.tokens

    def share(hits: Tensor, of: Tensor) -> dict:
        return pooled_share((hits & of).sum(dim=1).tolist(), of.sum(dim=1).tolist()).to_dict()

    return {
        "restored": share(right, corrupted),
        "kept": share(right, counted & ~corrupted),
        "damaged": share(corrupted, counted),
        "tokens": int(counted.sum()),
        "severity": REPAIR_SEVERITY,
        "iterations": REPAIR_ITERATIONS,
    }
