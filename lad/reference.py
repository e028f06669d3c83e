"""LAD as a plain reader would write it: loops, no cache, no batch, every logit computed.

This is the oracle. The fast rooms (`corruption`, `schedule`, `sampler`) must agree with it token
for token, given the same random numbers; benchmarks name it as their baseline. It favours being
obviously right over everything else, so it imports nothing of what it checks but the dataclasses.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo).
"""

from __future__ import annotations

import math

import torch

from lad.corruption import Plan
from lad.sampler import RefineConfig
from lad.trace import Step

__all__ = ["apply_plan", "attention_mask", "choose_positions", "draw", "mask_count", "refine"]


def apply_plan(tokens: list[int], plan: Plan, row: int, mask_token_id: int) -> list[int]:
    """One row of `lad.corruption.apply_plan`, position by position."""
    noisy = list(tokens)
    positions = range(len(noisy))
    for i in positions:
        if plan.mask[row, i]:
            noisy[i] = mask_token_id
    for i in positions:
        if plan.swap[row, i]:
            noisy[i], noisy[i + 1] = noisy[i + 1], noisy[i]
    before = list(noisy)
    for i in positions:
        if plan.copy_left[row, i]:
            noisy[i] = before[i - 1]
    before = list(noisy)
    for i in positions:
        if plan.copy_right[row, i]:
            noisy[i] = before[i + 1]
    for i in positions:
        if plan.replace[row, i]:
            noisy[i] = int(plan.replacement[row, i])
    start, target = int(plan.shift_from[row]), int(plan.shift_to[row])
    length = int(plan.shift_length[row])
    span = noisy[start : start + length]
    noisy[target : target + length] = span
    return noisy


def mask_count(
    iteration: int, iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> int:
    """n of LAD's schedule, by its formula."""
    if iteration == iterations - 1:
        return 0
    x = iteration / iterations
    s = sharpness
    threshold = (math.exp(-s * x) - math.exp(-s)) / (1 - math.exp(-s))
    return math.floor(threshold * answer_length * noise_start)


def choose_positions(weights: list[float], count: int, uniforms: list[float]) -> list[bool]:
    """The `count` positions with the largest log-weight plus Gumbel noise."""
    keys = []
    for position, (weight, uniform) in enumerate(zip(weights, uniforms, strict=True)):
        if weight > 0:
            gumbel = -math.log(-math.log(max(uniform, 1e-12)))
            keys.append((math.log(weight) + gumbel, position))
    chosen = {position for _, position in sorted(keys, reverse=True)[:count]}
    return [position in chosen for position in range(len(weights))]


def draw(logits: list[float], config: RefineConfig, uniform: float | None) -> tuple[int, float]:
    """Draw one token from one position's logits; returns it with its probability."""
    biggest = max(logits)
    total = sum(math.exp(x - biggest) for x in logits)
    order = sorted(range(len(logits)), key=lambda t: -logits[t])
    if config.temperature == 0 or config.top_k == 1:
        return order[0], math.exp(logits[order[0]] - biggest) / total
    kept = order[: config.top_k]
    weights = [math.exp((logits[t] - biggest) / config.temperature) for t in kept]
    whole = sum(weights)
    ladder, held = [], 0.0
    for t, weight in zip(kept, weights, strict=True):
        if held / whole < config.top_p:
            ladder.append((t, weight))
        held += weight
    target = uniform * sum(weight for _, weight in ladder)
    reached = 0.0
    for token, weight in ladder:
        drawn = token
        reached += weight
        if reached > target:
            break
    return drawn, math.exp(logits[drawn] - biggest) / total


def attention_mask(prompt_length: int, total: int, attention: str, target: str) -> torch.Tensor:
    """`(1, 1, t, t)` bool, entry by entry."""
    visible = torch.zeros(1, 1, total, total, dtype=torch.bool)
    for query in range(total):
        predicts_answer = query >= prompt_length - (1 if target == "next" else 0)
        for key in range(total):
            visible[0, 0, query, key] = (
                attention == "bidirectional" or predicts_answer or key <= query
            )
    return visible


def refine(denoiser, prompt: torch.Tensor, config: RefineConfig) -> list[Step]:
    """All steps of one refinement of the answer to `(p,)` prompt ids.

    Random numbers are taken from the generator in the order the sampler takes them: first one per
    position for the draw, unless greedy; then one per position for each choice of what to mask.
    """
    generator = torch.Generator().manual_seed(config.seed)
    mask_id, eos_id = denoiser.mask_token_id, denoiser.eos_token_id
    a = config.answer_length
    answer = [mask_id] * a
    drafts: list[list[int]] = []
    steps: list[Step] = []
    for i in range(config.iterations):
        tokens = torch.tensor([prompt.tolist() + answer], device=denoiser.device)
        visible = attention_mask(
            len(prompt), tokens.shape[1], denoiser.config.attention, denoiser.config.target
        )
        with torch.no_grad():
            everything = denoiser.causal_lm(
                input_ids=tokens,
                attention_mask=visible.to(denoiser.device),
                position_ids=torch.arange(tokens.shape[1], device=denoiser.device)[None],
                use_cache=False,
            ).logits[0]
        shift = 1 if denoiser.config.target == "next" else 0
        logits = everything[len(prompt) - shift : len(prompt) - shift + a].float()
        logits[:, eos_id] += config.eos_bias
        logits[:, mask_id] = -math.inf

        greedy = config.temperature == 0 or config.top_k == 1
        uniforms = [None] * a if greedy else torch.rand(a, generator=generator).tolist()
        draft, confidence = [], []
        for row, uniform in zip(logits.tolist(), uniforms, strict=True):
            token, probability = draw(row, config, uniform)
            draft.append(token)
            confidence.append(probability)
        drafts.append(draft)

        recent = drafts[-config.patience :] if config.patience else []
        still = len(recent) == config.patience > 0 and all(d == recent[0] for d in recent)
        renoised = [False] * a
        if config.renoising != "none" and not still and i < config.iterations - 1:
            count = mask_count(i, config.iterations, a, config.sharpness, config.noise_start)
            if config.renoising == "uniform":
                uniforms = torch.rand(a, generator=generator).tolist()
                renoised = choose_positions([1.0] * a, count, uniforms)
            else:
                weights = [max(1 - c, config.noise_clipping) for c in confidence]
                is_eos = [t == eos_id for t in draft]
                for_eos = math.floor(count * sum(is_eos) / a + 0.5)
                for wanted, number in ((True, for_eos), (False, count - for_eos)):
                    uniforms = torch.rand(a, generator=generator).tolist()
                    own = [w if e == wanted else 0.0 for w, e in zip(weights, is_eos, strict=True)]
                    chosen = choose_positions(own, number, uniforms)
                    renoised = [r or c for r, c in zip(renoised, chosen, strict=True)]
        steps.append(
            Step(
                iteration=i,
                inputs=torch.tensor(answer).numpy(),
                draft=torch.tensor(draft).numpy(),
                confidence=torch.tensor(confidence).numpy(),
                renoised=torch.tensor(renoised).numpy(),
            )
        )
        if still:
            break
        answer = [mask_id if r else t for t, r in zip(draft, renoised, strict=True)]
    return steps
