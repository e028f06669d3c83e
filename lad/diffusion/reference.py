"""LAD as a plain reader would write it: loops, no cache, no batch, every logit computed.

This is the oracle. The fast rooms (`corruption`, `schedule`, `sampler`) must agree with it token
for token, given the same random numbers; benchmarks name it as their baseline. It favours being
obviously right over everything else, so it imports nothing of what it checks but the dataclasses.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lad.diffusion.config import RefineConfig
from lad.diffusion.corruption import Plan
from lad.diffusion.trace import Step

__all__ = [
    "apply_plan",
    "attention_mask",
    "choose_positions",
    "draw",
    "mask_count",
    "refine",
    "repeated",
]


def apply_plan(tokens: list[int], plan: Plan, row: int, mask_token_id: int) -> list[int]:
    """One row of `lad.diffusion.corruption.apply_plan`, position by position."""
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


def repeated(draft: list[int], confidence: list[float], eos_id: int, may: list[bool]) -> list[bool]:
    """Of two equal neighbours, the less sure one that may be masked is to be drawn again."""
    again = [False] * len(draft)
    for left in range(len(draft) - 1):
        right = left + 1
        if draft[left] != draft[right] or draft[left] == eos_id:
            continue
        if may[left] and may[right]:
            again[left if confidence[left] < confidence[right] else right] = True
        elif may[left] or may[right]:
            again[left if may[left] else right] = True
    return again


def replace_repeated(
    draft: list[int], confidence: list[float], logits: torch.Tensor, stays: list[bool], eos_id: int
) -> tuple[list[int], list[float]]:
    """Draft and confidence, where of two equal neighbours the less sure one became another token:
    the likeliest that neither of its neighbours held."""
    tokens, sure = list(draft), list(confidence)
    for n, again in enumerate(repeated(draft, confidence, eos_id, [not s for s in stays])):
        if again:
            held = {draft[m] for m in (n - 1, n + 1) if 0 <= m < len(draft)} - {eos_id}
            row = logits[n].tolist()
            tokens[n] = max((t for t in range(len(row)) if t not in held), key=lambda t: row[t])
            sure[n] = probability(row, tokens[n])
    return tokens, sure


def probability(logits: list[float], token: int) -> float:
    """What the denoiser's own distribution gives a token."""
    biggest = max(logits)
    return math.exp(logits[token] - biggest) / sum(math.exp(x - biggest) for x in logits)


def draw(logits: list[float], config: RefineConfig, uniform: float | None) -> int:
    """Draw one token from one position's logits."""
    biggest = max(logits)
    order = sorted(range(len(logits)), key=lambda t: -logits[t])
    if config.temperature == 0 or config.top_k == 1:
        return order[0]
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
    return drawn


def attention_mask(
    prompt_length: int, total: int, attention: str, target: str, masked: Sequence[bool] = ()
) -> torch.Tensor:
    """`(1, 1, t, t)` bool, entry by entry; `masked` says where the input is MASK."""
    masked = list(masked) or [False] * total
    visible = torch.zeros(1, 1, total, total, dtype=torch.bool)
    for query in range(total):
        predicts_answer = query >= prompt_length - (1 if target == "next" else 0)
        for key in range(total):
            seen = attention == "bidirectional" or predicts_answer or key <= query
            if attention == "mask-blind" and masked[key] and not masked[query]:
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

    Random numbers are taken from the generator in the order the sampler takes them: first one per
    position for the draw, unless greedy; then one per position for each choice of what to mask.
    """
    generator = torch.Generator().manual_seed(config.seed)
    mask_id, eos_id = denoiser.mask_token_id, denoiser.eos_token_id
    a = config.answer_length
    answer = [mask_id] * a if draft is None else list(draft)
    fixed = [False] * a if fixed is None else list(fixed)
    words = [n for n in range(a) if fixed[n] and answer[n] != eos_id]
    first_end = words[-1] + 1 if words else 0  # the answer cannot end before a fixed word
    shown = [t != mask_id for t in answer]
    before, unchanged = None, 0
    width, sure = a, [1.0] * a
    steps: list[Step] = []
    for i in range(config.iterations):
        last = i == config.iterations - 1
        logits = answer_logits(denoiser, prompt, answer[:width])
        logits[:, eos_id] += config.eos_bias
        logits[:, mask_id] = -math.inf
        for n in range(first_end):
            if not fixed[n]:
                logits[n, eos_id] = -math.inf
        held = [fixed[n] or n >= width for n in range(a)]

        uniforms = [None] * a if config.greedy else torch.rand(a, generator=generator).tolist()
        drafted, confidence, end = [], [], []
        for n, row in enumerate(logits.tolist()):
            too_early = n < first_end and answer[n] == eos_id
            left = False and answer[n] != mask_id and not too_early
            stays = fixed[n] or left
            token = answer[n] if stays else draw(row, config, uniforms[n])
            drafted.append(token)
            confidence.append(probability(row, token))
            end.append(probability(row, eos_id))
        if config.repeats == "replace":
            stay = [
                fixed[n]
                or (False and answer[n] != mask_id and not (n < first_end and answer[n] == eos_id))
                for n in range(width)
            ]
            drafted, confidence = replace_repeated(drafted, confidence, logits, stay, eos_id)
        drafted += [eos_id] * (a - width)
        confidence += sure[width:]
        end += sure[width:]

        remask = [False] * a
        if not last:
            remask = hide(config, i, answer, drafted, confidence, held, shown, eos_id, mask_id,
                            generator)  # fmt: skip

        finished = False
        if config.remasking == "threshold":
            ends = [n for n in range(a) if drafted[n] == eos_id and not remask[n]]
            whole = ends[0] if ends else a
            finished = not any(remask[:whole])
            if finished:
                remask = [False] * a
                for n in range(whole, a):
                    if not fixed[n]:
                        drafted[n], confidence[n] = eos_id, end[n]

        grows = config.remasking == "threshold" or config.added_tokens is not None
        still = drafted == before
        if grows:
            still = still and not any(not r and not s for r, s in zip(remask, shown, strict=True))
        unchanged = unchanged + 1 if still else 1
        settled = config.greedy and drafted == answer and not any(remask)
        stopping = finished or (config.patience > 0 and (unchanged >= config.patience or settled))
        if stopping:
            remask = [False] * a
        steps.append(
            Step(
                iteration=i,
                inputs=torch.tensor(answer).numpy(),
                draft=torch.tensor(drafted).numpy(),
                confidence=torch.tensor(confidence).numpy(),
                remask=torch.tensor(remask).numpy(),
            )
        )
        if stopping:
            break
        before, sure = drafted, confidence
        answer = [mask_id if r else t for t, r in zip(drafted, remask, strict=True)]
        shown = [s or not r for s, r in zip(shown, remask, strict=True)]
    return steps


def answer_logits(denoiser, prompt: torch.Tensor, answer: list[int]) -> torch.Tensor:
    """`(a, v)` float32 logits of the answer, from every logit of the whole sequence."""
    tokens = torch.tensor([prompt.tolist() + answer], device=denoiser.device)
    visible = attention_mask(
        len(prompt),
        tokens.shape[1],
        denoiser.config.attention,
        denoiser.config.target,
        [False] * len(prompt) + [token == denoiser.mask_token_id for token in answer],
    )
    with torch.no_grad():
        everything = denoiser.causal_lm(
            input_ids=tokens,
            attention_mask=visible.to(denoiser.device),
            position_ids=torch.arange(tokens.shape[1], device=denoiser.device)[None],
            use_cache=False,
        ).logits[0]
    first = len(prompt) - (1 if denoiser.config.target == "next" else 0)
    return everything[first : first + len(answer)].float()


def hide(
    config: RefineConfig,
    i: int,
    answer: list[int],
    draft: list[int],
    confidence: list[float],
    fixed: list[bool],
    shown: list[bool],
    eos_id: int,
    mask_id: int,
    generator: torch.Generator,
) -> list[bool]:
    """Which positions are MASK in the next input, after a draft that is not the last."""
    a = len(draft)
    reached = a if config.added_tokens is None else min(a, config.added_tokens * (i + 1))
    may = [not fixed[n] and not (config.permanent and shown[n]) for n in range(a)]
    open_ = [may[n] and n < reached for n in range(a)]
    beyond = [may[n] and n >= reached for n in range(a)]
    again = [False] * a
    if config.repeats == "remask":
        again = repeated(draft, confidence, eos_id, may)
        again = [again[n] and open_[n] for n in range(a)]
    masked = [t == mask_id for t in answer]

    if config.remasking == "none":
        chosen = [False] * a
    elif config.remasking == "threshold":
        chosen = below_threshold(config, draft, confidence, masked, open_, again, eos_id)
    else:
        # The schedule's fraction is taken of all positions that growth has reached.
        size = sum(not fixed[n] for n in range(reached))
        count = mask_count(i, config.iterations, size, config.sharpness, config.noise_start)
        if config.remasking == "random":
            groups = [([1.0 * o for o in open_], count)]
        else:
            weights = [max(1 - c, config.noise_clipping) for c in confidence]
            is_eos = [t == eos_id for t in draft]
            count = min(count, sum(open_))
            eos_open = sum(e and o for e, o in zip(is_eos, open_, strict=True))
            for_eos = math.floor(count * eos_open / max(1, sum(open_)) + 0.5)
            groups = [
                ([weights[n] * (open_[n] and is_eos[n] == wanted) for n in range(a)], number)
                for wanted, number in ((True, for_eos), (False, count - for_eos))
            ]
        chosen = again
        for weights, number in groups:
            uniforms = torch.rand(a, generator=generator).tolist()
            more = choose_positions(weights, number, uniforms, config.clustering)
            chosen = [c or m for c, m in zip(chosen, more, strict=True)]
    return [c or b for c, b in zip(chosen, beyond, strict=True)]


def below_threshold(
    config: RefineConfig,
    draft: list[int],
    confidence: list[float],
    masked: list[bool],
    open_: list[bool],
    again: list[bool],
    eos_id: int,
) -> list[bool]:
    """What the threshold strategy masks: unsure tokens, and everything right of its window."""
    a = len(draft)
    start = masked.index(True) if any(masked) else 0
    stop = a if config.window is None else start + config.window
    candidates = [n for n in range(min(a, stop)) if masked[n] and open_[n]]
    sure = [confidence[n] >= config.confidence_threshold and not again[n] for n in range(a)]
    known = [
        not masked[n] or (confidence[n] >= config.isolated_threshold and not again[n])
        for n in range(a)
    ]
    show = [n for n in candidates if sure[n] and (n == 0 or known[n - 1] or known[n])]
    if start in candidates and not again[start]:
        show.append(start)
    first_end = draft.index(eos_id) if eos_id in draft else a
    useful = [n for n in candidates if n <= first_end] or candidates
    if useful and not any(n in show for n in useful):
        show.append(max(useful, key=lambda n: (not again[n], confidence[n])))
    return [n not in show if masked[n] else open_[n] and not sure[n] for n in range(a)]
