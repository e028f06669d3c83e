"""What each layer of a denoiser would predict: the logit lens (nostalgebraist, 2020).

The backbone's final norm and head, made for the last layer's states, are applied to those of every
layer. https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens

Shapes: p = prompt, a = answer positions, i = iterations, l = layers, d = hidden size. Layers count
from 1; the last one's prediction is the denoiser's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Trace
from lad.evaluation.generation import bar
from lad.evaluation.statistics import pooled_ratio, pooled_share
from lad.utils import InvalidInput

GROUPS = ("visible", "shown now", "still masked")  # in the input, after it, not even then


class Lens(NamedTuple):
    """The likeliest token after every layer at one position of an answer."""

    position: int
    iterations: list[int]
    tokens: np.ndarray  # (l, i) int64
    probability: np.ndarray  # (l, i) float32, of that token
    is_masked: np.ndarray  # (i,) bool, whether the denoiser saw MASK there
    final: int  # the token that the position ends with
    texts: dict[int, str]  # of all these tokens

    @property
    def is_final(self) -> np.ndarray:
        """`(l, i)` bool: whether the likeliest token is the final one."""
        return self.tokens == self.final


def spread(trace: Trace, most: int) -> list[int]:
    """At most so many iterations of a run, evenly spaced from the first to the last."""
    return sorted(
        {*np.linspace(0, trace.nfe - 1, min(most, trace.nfe)).round().astype(int).tolist()}
    )


@torch.inference_mode()
def layer_states(denoiser: Denoiser, trace: Trace, iterations: Sequence[int]) -> Tensor:
    """`(l, i, a, d)`: the states that predict the final answer and its EOS, after every layer.

    `iterations` are indices of `trace.steps`.
    """
    a = min(trace.tokens + 1, trace.drafts.shape[1])
    first = len(trace.prompt_ids) - denoiser.config.shift
    parts: list[list[Tensor]] = [[] for _ in denoiser.causal_lm.model.layers]

    def keep(states: list[Tensor], output: Tensor | tuple) -> None:
        output = output[0] if isinstance(output, tuple) else output
        states.append(output[:, first : first + a].clone())

    hooks = [
        layer.register_forward_hook(lambda _layer, _given, output, part=part: keep(part, output))
        for layer, part in zip(denoiser.causal_lm.model.layers, parts, strict=True)
    ]
    prompt = torch.from_numpy(trace.prompt_ids).to(denoiser.device)[None]
    try:
        for i in iterations:
            inputs = torch.from_numpy(trace.inputs[i]).to(denoiser.device)
            denoiser.logits(prompt, inputs[None])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.cat(part) for part in parts])


@torch.inference_mode()
def likeliest(denoiser: Denoiser, states: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their probabilities, `(...,)` each, that `(..., d)` states would predict."""
    logits = denoiser.causal_lm.lm_head(denoiser.causal_lm.model.norm(states)).float()
    top, tokens = logits.max(dim=-1)
    return tokens.cpu().numpy(), (top - logits.logsumexp(dim=-1)).exp().cpu().numpy()


def lens(
    denoiser: Denoiser,
    trace: Trace,
    iterations: int = 8,
    positions: Sequence[int] | None = None,
    on_done: Callable[[str, int, int], object] = lambda stage, done, total: None,
) -> list[Lens]:
    """The lens at positions of the final answer and its EOS, by default at all of them.

    `iterations` are the most of the run; the denoiser is the one that made the trace.
    """
    steps, found = spread(trace, iterations), []
    states = layer_states(denoiser, trace, steps)
    positions = range(states.shape[2]) if positions is None else positions
    for position in positions:
        if not 0 <= position < states.shape[2]:
            expected = f"expected 0 to {states.shape[2] - 1}, the answer and its EOS"
            raise InvalidInput(f"position {position}: {expected}")
        on_done("layers", len(found), len(positions))
        tokens, probability = likeliest(denoiser, states[:, :, position])  # (l, i)
        final = int(trace.drafts[-1, position])
        texts = {t: denoiser.tokenizer.decode([t]) for t in {final, *tokens.ravel().tolist()}}
        masked = trace.is_masked[steps, position]
        found.append(Lens(position, steps, tokens, probability, masked, final, texts))
    return found


def first_layers(denoiser: Denoiser, traces: Sequence[Trace], iterations: int = 8) -> dict:
    """After which layer the final token of a position is the likeliest, over many answers.

    Positions of the final answer and its EOS are grouped by what happens to them in an iteration,
    of which at most `iterations` a run are taken. For each of `GROUPS`: `likeliest`, the share of
    positions after every layer; `first`, the mean of the first such layer where there is one;
    `never`, the share where there is none. The intervals are over answers.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in GROUPS}  # of each answer, (n, l)
    for trace in bar(traces, "layers"):
        steps = spread(trace, iterations)
        states = layer_states(denoiser, trace, steps)
        a = states.shape[2]
        hits = [likeliest(denoiser, layer)[0] == trace.drafts[-1, :a] for layer in states]
        hits = np.stack(hits, axis=-1)  # (i, a, l)
        was, again = trace.is_masked[steps, :a], trace.remask[steps, :a]
        for name, where in zip(GROUPS, (~was, was & ~again, was & again), strict=True):
            found[name].append(hits[where])
    groups = {name: _summary(answers) for name, answers in found.items()}
    return {"iterations": iterations, "answers": len(traces), "groups": groups}


def _summary(answers: Sequence[np.ndarray]) -> dict:
    """Estimates over `(n, l)` hits of each answer."""
    counts = [len(hits) for hits in answers]
    reached = [hits[hits.any(axis=1)] for hits in answers]
    first = [float((hits.argmax(axis=1) + 1).sum()) for hits in reached]
    never = [n - len(hits) for n, hits in zip(counts, reached, strict=True)]
    columns = zip(*(hits.sum(axis=0) for hits in answers), strict=True)
    return {
        "positions": sum(counts),
        "likeliest": [pooled_share(column, counts).to_dict() for column in columns],
        "first": pooled_ratio(first, [len(hits) for hits in reached]).to_dict(),
        "never": pooled_share(never, counts).to_dict(),
    }
