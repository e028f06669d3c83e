"""Repetition, completeness and perplexity of answers.

Text that repeats or copies the prompt is easy to predict, and so is one that is cut off: read a
perplexity beside the repeats and the whole sentences, and with EOS counted.

Source: Welleck et al., 2020 (https://arxiv.org/abs/1908.04319) for repeated n-grams, seq-rep-n.

Shapes: n = answers, b = batch, t = positions, m = answer positions, d = hidden, v = vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from lad.evaluation.statistics import Estimate, median, pooled_share, wilson
from lad.utils import NumericalError

# The end of a sentence, perhaps in quotes or brackets; the number of an empty list item is none.
WHOLE = re.compile(r"""(?<!\n\d)[.!?…。]["'”’»)\]*`]*\s*$""")


def adjacent_repeats(answers: Sequence[Sequence[int]]) -> Estimate:
    """Share of answer tokens equal to the one before, pooled over answers; EOS not among them."""
    arrays = [np.asarray(answer, dtype=np.int64) for answer in answers]
    return pooled_share(
        [int((a[1:] == a[:-1]).sum()) for a in arrays], [max(len(a) - 1, 0) for a in arrays]
    )


def repeated_ngrams(answers: Sequence[Sequence[int]], n: int = 4) -> Estimate:
    """Share of an answer's n-grams that it already has before, pooled over answers: loops.

    Counted within answers, because answers to similar questions rightly share words.
    """
    ngrams = [[tuple(a[i : i + n]) for i in range(len(a) - n + 1)] for a in answers]
    return pooled_share([len(x) - len(set(x)) for x in ngrams], [len(x) for x in ngrams])


def whole_sentences(texts: Sequence[str]) -> Estimate:
    """Share of answers whose last sentence is whole: it ends in a full stop, "!" or "?"."""
    return wilson(sum(bool(WHOLE.search(text)) for text in texts), len(texts))


@torch.inference_mode()
def answer_losses(
    backbone: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int = 8,
) -> list[np.ndarray]:
    """The backbone's cross-entropy of each token of each answer, left to right, in nats.

    The backbone is bare, or inside `Denoiser.adapter_off`; prompts have their chat template.
    """
    device = backbone.lm_head.weight.device
    losses = [np.zeros(0)] * len(answers)
    # Sequences of like length share a batch, so little is spent on padding.
    order = sorted(range(len(answers)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        ids = [torch.tensor([*prompts[i], *answers[i]]) for i in part]
        # (b, t), padded on the right, which a causal mask never sees
        tokens = pad_sequence(ids, batch_first=True).to(device)
        predicted = torch.zeros_like(tokens, dtype=torch.bool)
        for row, i in enumerate(part):
            predicted[row, len(prompts[i]) : len(ids[row])] = True
        states = backbone.model(input_ids=tokens, use_cache=False).last_hidden_state  # (b, t, d)
        logits = backbone.lm_head(states[:, :-1][predicted[:, 1:]]).float()  # (m, v)
        flat = F.cross_entropy(logits, tokens[predicted], reduction="none").double().cpu().numpy()
        if not np.isfinite(flat).all():
            raise NumericalError(
                "the backbone's loss is NaN or infinite, expected finite numbers; "
                "check it with `lad fetch`, or use float32"
            )
        ends = np.cumsum([len(answers[i]) for i in part])
        for i, values in zip(part, np.split(flat, ends[:-1]), strict=True):
            losses[i] = values
    return losses


def perplexities(losses: Sequence[np.ndarray]) -> np.ndarray:
    """`(n,)` perplexity of each answer: exp of its mean loss; infinite for an empty answer.

    Leaving empty answers out would reward them, so they count as the worst.
    """
    return np.array([math.exp(x.mean()) if len(x) else math.inf for x in losses])


def relative_perplexity(
    losses: Sequence[np.ndarray], baseline_losses: Sequence[np.ndarray]
) -> Estimate:
    """Median over answers of their perplexity divided by that of another answer to the same prompt.

    Prompts to which the baseline has no answer are left out.
    """
    found, baseline = perplexities(losses), perplexities(baseline_losses)
    return median((found / baseline)[np.isfinite(baseline)])
