"""LAD in plain loops: no cache, no batch, every logit computed.

The tests compare `corruption`, `schedule`, `remasking` and `sampler` with it token for token, given
the same random numbers; benchmarks name it as their baseline. It is written to be obviously right
and imports nothing of what it checks but the dataclasses.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lad.diffusion.config import RefineConfig
from lad.diffusion.corruption import Plan
from lad.diffusion.trace import Step

FROM_LEFT_TO_RIGHT = ("threshold", "entropy", "editing")  # which end with a whole answer


def apply_plan(tokens: list[int], plan: Plan, row: int, mask_token_id: int) -> list[int]:
    """One row of `lad.diffusion.corruption.apply_plan`, position by position."""
    positions = range(len(tokens))
    noisy = [mask_token_id if plan.mask[row, i] else tokens[i] for i in positions]
    for i in positions:
        if plan.swap[row, i]:
            noisy[i], noisy[i + 1] = noisy[i + 1], noisy[i]
    for offset, copied in ((-1, plan.copy_left), (1, plan.copy_right)):
        noisy = [noisy[i + offset] if copied[row, i] else noisy[i] for i in positions]
    for i in positions:
        if plan.replace[row, i]:
            noisy[i] = int(plan.replacement[row, i])
    start, target = int(plan.shift_from[row]), int(plan.shift_to[row])
    length = int(plan.shift_length[row])
    noisy[target : target + length] = noisy[start : start + length]
    return noisy


def mask_count(
    iteration: int, iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> int:
    """n of LAD's schedule, by its formula."""
    if iteration == iterations - 1:
        return 0
    x = iteration / iterations
    s = sharpness
    level = (math.exp(-s * x) - math.exp(-s)) / (1 - math.exp(-s))
    return math.floor(level * answer_length * noise_start)


def choose_positions(
    weights: list[float], count: int, uniforms: list[float], clustering: float = 0.0
) -> list[bool]:
    """The `count` positions with the largest log-weight plus Gumbel noise; or runs around those."""
    keys = {}
    for position, (weight, uniform) in enumerate(zip(weights, uniforms, strict=True)):
        if weight > 0:
            gumbel = -math.log(-math.log(max(uniform, 1e-12)))
            keys[position] = math.log(weight) + gumbel
    order = sorted(keys, key=lambda position: -keys[position])
    if clustering > 0 and count > 0:
        singly = min(count, max(1, math.floor((1 - clustering) * count + 0.5)))
        seeds = order[:singly]

        def distance(position: int) -> int:
            return min((abs(position - seed) for seed in seeds), default=0)

        order = sorted(order, key=distance)  # stable: equally near ones as they were
    chosen = set(order[:count])
    return [position in chosen for position in range(len(weights))]


def repeated(
    tokens: list[int], confidence: list[float], eos_id: int, maskable: list[bool]
) -> list[bool]:
    """Of two equal neighbours, the less confident one that may be masked."""
    again = [False] * len(tokens)
    for left in range(len(tokens) - 1):
        right = left + 1
        if tokens[left] != tokens[right] or tokens[left] == eos_id:
            continue
        if maskable[left] and maskable[right]:
            again[left if confidence[left] < confidence[right] else right] = True
        elif maskable[left] or maskable[right]:
            again[left if maskable[left] else right] = True
    return again


def replace_repeated(
    tokens: list[int], confidence: list[float], logits: torch.Tensor, fixed: list[bool], eos_id: int
) -> tuple[list[int], list[float]]:
    """Of two equal neighbours the less confident becomes the likeliest token that neither
    neighbour has; tokens and their confidence."""
    new_tokens, new_confidence = list(tokens), list(confidence)
    for n, again in enumerate(repeated(tokens, confidence, eos_id, [not f for f in fixed])):
        if again:
            taken = {tokens[m] for m in (n - 1, n + 1) if 0 <= m < len(tokens)} - {eos_id}
            at_position = logits[n].tolist()
            free = [t for t in range(len(at_position)) if t not in taken]
            new_tokens[n] = max(free, key=lambda t: at_position[t])
            new_confidence[n] = softmax(at_position)[new_tokens[n]]
    return new_tokens, new_confidence


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Probabilities of logits."""
    biggest = max(logits)
    weights = [math.exp((x - biggest) / temperature) for x in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def draw(logits: list[float], config: RefineConfig, uniform: float | None) -> int:
    """Draw one token from one position's logits."""
    order = sorted(range(len(logits)), key=lambda t: -logits[t])
    if config.greedy:
        return order[0]
    kept = order[: config.top_k]
    weights = softmax([logits[t] for t in kept], config.temperature)
    before = [0.0, *itertools.accumulate(weights)]  # the sum of those that are likelier
    nucleus = [t for t, likelier in zip(kept, before, strict=False) if likelier < config.top_p]
    target = uniform * before[len(nucleus)]
    reached = zip(nucleus, before[1:], strict=False)
    return next((token for token, total in reached if total > target), nucleus[-1])


def attention_mask(
    prompt_length: int, total: int, attention: str, target: str, is_masked: Sequence[bool] = ()
) -> torch.Tensor:
    """`(1, 1, t, t)` bool, entry by entry; `is_masked` marks MASK in the input."""
    is_masked = list(is_masked) or [False] * total
    visible = torch.zeros(1, 1, total, total, dtype=torch.bool)
    for query in range(total):
        predicts_answer = query >= prompt_length - (1 if target == "next" else 0)
        for key in range(total):
            seen = attention == "bidirectional" or predicts_answer or key <= query
            if attention == "mask-blind" and is_masked[key] and not is_masked[query]:
                seen = False
            visible[0, 0, query, key] = seen
    return visible


def refine(
    denoiser,
    prompt: torch.Tensor,
    config: RefineConfig,
    draft: list[int] | None = None,
    fixed: list[bool] | None = None,
) -> list[Step]:
    """All steps of one refinement of the answer to `(p,)` prompt ids.

    Random numbers are taken from the generator in the sampler's order: first one per position for
    sampling, unless greedy; then one per position for each choice of what to mask.
    """
    generator = torch.Generator().manual_seed(config.seed)
    mask_id, eos_id = denoiser.mask_token_id, denoiser.eos_token_id
    a = config.answer_length
    inputs = [mask_id] * a if draft is None else list(draft)
    fixed = [False] * a if fixed is None else list(fixed)
    words = [n for n in range(a) if fixed[n] and inputs[n] != eos_id]
    first_end = words[-1] + 1 if words else 0  # the answer cannot end before a fixed word
    ever_unmasked = [t != mask_id for t in inputs]
    previous, unchanged = None, 0
    steps: list[Step] = []
    for i in range(config.iterations):
        logits = answer_logits(denoiser, prompt, inputs[: computed_length(config, inputs, mask_id)])
        logits[:, eos_id] += config.eos_bias
        logits[:, mask_id] = -math.inf
        for n in range(first_end):
            if not fixed[n]:
                logits[n, eos_id] = -math.inf

        uniforms = [None] * a if config.greedy else torch.rand(a, generator=generator).tolist()
        tokens, confidence, eos_probability = [], [], []
        alternatives, likely, entropy = [], [], []
        for n, at_position in enumerate(logits.tolist()):
            tokens.append(inputs[n] if fixed[n] else draw(at_position, config, uniforms[n]))
            probabilities = softmax(at_position)
            confidence.append(probabilities[tokens[n]])
            eos_probability.append(probabilities[eos_id])
            order = sorted(range(len(at_position)), key=lambda t: -at_position[t])
            alternatives.append(order[:5])
            likely.append([probabilities[t] for t in alternatives[-1]])
            entropy.append(-sum(p * math.log(p) for p in probabilities if p > 0))
        held = list(fixed)
        if config.remasking == "editing":
            for n, token in enumerate(inputs):
                may_stay = token != mask_id and not (token == eos_id and n < first_end)
                if may_stay and confidence[n] < config.editing_threshold:
                    held[n], tokens[n] = True, token
                    confidence[n] = softmax(logits[n].tolist())[token]
        for _ in range(len(tokens), a):  # not computed
            tokens.append(eos_id)
            alternatives.append([eos_id] * 5)
            likely.append([0.0] * 5)
            for values in (confidence, eos_probability, entropy):
                values.append(0.0)
        if config.repeats == "replace":
            tokens, confidence = replace_repeated(tokens, confidence, logits, held, eos_id)

        remask = [False] * a
        if i < config.iterations - 1:
            remask = positions_to_mask(
                config, i, inputs, tokens, confidence, entropy, fixed, ever_unmasked, eos_id,
                mask_id, generator,
            )  # fmt: skip

        finished = False
        if config.remasking in FROM_LEFT_TO_RIGHT:
            ends = [n for n in range(a) if tokens[n] == eos_id and not remask[n]]
            end = ends[0] if ends else a
            finished = not any(remask[:end])
            if config.remasking == "editing":
                finished = finished and tokens[:end] == inputs[:end]
            if finished:
                remask = [False] * a
                for n in range(end, a):
                    if not fixed[n]:
                        tokens[n], confidence[n] = eos_id, eos_probability[n]

        same = tokens == previous
        if config.remasking in FROM_LEFT_TO_RIGHT or config.added_tokens is not None:
            same = same and all(r or e for r, e in zip(remask, ever_unmasked, strict=True))
        unchanged = unchanged + 1 if same else 1
        fixed_point = config.greedy and tokens == inputs and not any(remask)
        if config.patience > 0:
            finished = finished or unchanged >= config.patience or fixed_point
        if finished:
            remask = [False] * a
        arrays = (torch.tensor(x).numpy() for x in (inputs, tokens, confidence, remask))
        recorded = (np.array(alternatives), np.float16(likely), np.float16(entropy))
        steps.append(Step(i, *arrays, *recorded))
        if finished:
            break
        previous = tokens
        inputs = [mask_id if r else t for t, r in zip(tokens, remask, strict=True)]
        ever_unmasked = [e or not r for e, r in zip(ever_unmasked, remask, strict=True)]
    return steps


def computed_length(config: RefineConfig, inputs: list[int], mask_id: int) -> int:
    """Positions of the answer region that a pass computes."""
    masked = [n for n, token in enumerate(inputs) if token == mask_id]
    if config.lookahead is None or config.remasking != "threshold" or not masked:
        return len(inputs)
    visible = [n + 1 for n, token in enumerate(inputs) if token != mask_id]
    return min(len(inputs), max([*visible, masked[0] + config.lookahead]))


def answer_logits(denoiser, prompt: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """`(a, v)` float32 logits of the answer, from every logit of the whole sequence."""
    tokens = torch.tensor([prompt.tolist() + answer], device=denoiser.device)
    is_masked = [False] * len(prompt) + [token == denoiser.mask_token_id for token in answer]
    kind = denoiser.config.attention, denoiser.config.target
    visible = attention_mask(len(prompt), len(is_masked), *kind, is_masked)
    with torch.no_grad():
        everything = denoiser.causal_lm(
            input_ids=tokens,
            attention_mask=visible.to(denoiser.device),
            position_ids=torch.arange(len(is_masked), device=denoiser.device)[None],
            use_cache=False,
        ).logits[0]
    first = len(prompt) - (1 if denoiser.config.target == "next" else 0)
    return everything[first : first + len(answer)].float()


def positions_to_mask(
    config: RefineConfig,
    i: int,
    inputs: list[int],
    tokens: list[int],
    confidence: list[float],
    entropy: list[float],
    fixed: list[bool],
    ever_unmasked: list[bool],
    eos_id: int,
    mask_id: int,
    generator: torch.Generator,
) -> list[bool]:
    """Which positions are MASK in the next input, after a draft that is not the last."""
    a = len(tokens)
    reached = a if config.added_tokens is None else min(a, config.added_tokens * (i + 1))
    free = [not fixed[n] and not (config.permanent and ever_unmasked[n]) for n in range(a)]
    maskable = [free[n] and n < reached for n in range(a)]
    not_reached = [free[n] and n >= reached for n in range(a)]
    again = [False] * a
    if config.repeats == "remask":
        again = repeated(tokens, confidence, eos_id, free)
        again = [again[n] and maskable[n] for n in range(a)]
    is_masked, is_eos = [t == mask_id for t in inputs], [t == eos_id for t in tokens]

    if config.remasking == "none":
        chosen = [False] * a
    elif config.remasking in FROM_LEFT_TO_RIGHT:
        seen = Seen(tokens, confidence, entropy, is_masked, maskable, again, is_eos)
        chooses = above_entropy_bound if config.remasking == "entropy" else below_threshold
        chosen = chooses(config, seen)
        if config.remasking == "editing":
            chosen = [c and m for c, m in zip(chosen, is_masked, strict=True)]
    else:
        # The schedule's fraction is taken of all positions that growth has reached.
        region = sum(not fixed[n] for n in range(reached))
        count = mask_count(i, config.iterations, region, config.sharpness, config.noise_start)
        if config.remasking == "random":
            groups = [([1.0 * m for m in maskable], count)]
        else:
            weights = [max(1 - c, config.noise_clipping) for c in confidence]
            count = min(count, sum(maskable))
            eos_maskable = sum(e and m for e, m in zip(is_eos, maskable, strict=True))
            for_eos = math.floor(count * eos_maskable / max(1, sum(maskable)) + 0.5)
            groups = [
                ([weights[n] * (maskable[n] and is_eos[n] == wanted) for n in range(a)], number)
                for wanted, number in ((True, for_eos), (False, count - for_eos))
            ]
        chosen = again
        for weights, number in groups:
            uniforms = torch.rand(a, generator=generator).tolist()
            more = choose_positions(weights, number, uniforms, config.clustering)
            chosen = [c or m for c, m in zip(chosen, more, strict=True)]
    return [c or n for c, n in zip(chosen, not_reached, strict=True)]


class Seen(NamedTuple):
    """What a strategy goes by: a value for each position of the answer region."""

    tokens: list[int]
    confidence: list[float]
    entropy: list[float]
    is_masked: list[bool]  # in the input
    maskable: list[bool]
    again: list[bool]  # it repeats its neighbour and is to be masked
    is_eos: list[bool]


def candidates(config: RefineConfig, seen: Seen) -> tuple[list[int], list[int]]:
    """Positions that are MASK inside the window; those of them that are useful to show."""
    is_masked, tokens = seen.is_masked, seen.tokens
    start = is_masked.index(True) if any(is_masked) else 0
    sizes = [config.window, config.lookahead if config.remasking == "threshold" else None]
    stop = min([len(tokens), *(start + size for size in sizes if size)])
    inside = [n for n in range(stop) if is_masked[n] and seen.maskable[n]]
    first_end = seen.is_eos.index(True) if any(seen.is_eos) else len(tokens)
    return inside, [n for n in inside if n <= first_end] or inside


def below_threshold(config: RefineConfig, seen: Seen) -> list[bool]:
    """What the threshold strategy masks: low confidence, and everything outside its window."""
    _, confidence, _, is_masked, maskable, again, _ = seen
    inside, useful = candidates(config, seen)
    positions = range(len(is_masked))
    confident = [confidence[n] >= config.confidence_threshold and not again[n] for n in positions]
    certain = [confidence[n] >= config.isolated_threshold and not again[n] for n in positions]
    visible = [not is_masked[n] or certain[n] for n in positions]
    show = [n for n in inside if confident[n] and (n == 0 or visible[n - 1] or certain[n])]
    start = is_masked.index(True) if any(is_masked) else 0
    if start in inside and not again[start]:
        show.append(start)
    if useful and not any(n in show for n in useful):
        show.append(max(useful, key=lambda n: (not again[n], confidence[n])))
    return [n not in show if is_masked[n] else maskable[n] and not confident[n] for n in positions]


def above_entropy_bound(config: RefineConfig, seen: Seen) -> list[bool]:
    """What the entropy strategy masks: all but the least entropies whose sum, without the largest,
    is within the bound."""
    entropy, again = seen.entropy, seen.again
    _, useful = candidates(config, seen)
    order = sorted(useful, key=lambda n: (again[n], entropy[n]))
    show = order[:1]
    for n in order[1:]:
        before = sum(entropy[m] for m in show)
        if again[n] or again[order[0]] or before > config.entropy_bound:
            break
        show.append(n)
    return [is_masked and n not in show for n, is_masked in enumerate(seen.is_masked)]
