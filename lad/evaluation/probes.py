"""What can be measured about a denoiser without sampling from it.

Shapes: t = positions, p of them prompt; b = batch, a = answer positions, d = hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import ATTENTIONS
from lad.diffusion.denoiser import Denoiser, attention_mask
from lad.evaluation.statistics import Estimate, pooled_share
from lad.models.chat import encode_text
from lad.training.data import Pair
from lad.utils import InvalidInput

KINDS_OF_ATTENTION = ("causal", *ATTENTIONS)


class Update(NamedTuple):
    """The adapter's update of one weight matrix."""

    layer: int  # number of the decoder layer, from 0
    module: str  # which of its linear layers, such as "q_proj"
    size: float  # Frobenius norm of scale * B A divided by that of the backbone's weight


class Candidate(NamedTuple):
    """A token that could stand behind a MASK, and its probability."""

    text: str
    probability: float


def visible(
    kind: str, prompt_length: int, total: int, target: str = "next", masked: Sequence[int] = ()
) -> np.ndarray:
    """The attention mask as `(t, t)` bool: rows are queries, columns are keys.

    Args:
        kind: "causal" (the backbone's), "bidirectional", "prompt-causal" or "mask-blind".
        prompt_length, total: p, from 1 to t - 1, and t.
        target: "same" or "next"; ignored for "causal" and "bidirectional".
        masked: positions where MASK stands, for "mask-blind".
    """
    if kind not in KINDS_OF_ATTENTION:
        raise InvalidInput(f"kind = {kind!r}: expected one of {', '.join(KINDS_OF_ATTENTION)}")
    if not 1 <= prompt_length < total:
        raise InvalidInput(f"prompt_length = {prompt_length}: expected 1 to {total - 1}")
    is_masked = torch.zeros((1, total), dtype=torch.bool)
    is_masked[0, list(masked)] = True
    if kind == "causal":
        return np.tril(np.ones((total, total), dtype=bool))
    lengths = torch.tensor([prompt_length])
    return attention_mask(lengths, total, kind, target, is_masked=is_masked)[0, 0].numpy()


@torch.no_grad()
def effects(
    denoiser: Denoiser,
    tokens: Tensor,
    kind: str,
    prompt_length: int,
    target: str = "next",
    positions: Sequence[int] | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """How far every final state moves when one token is replaced by MASK.

    "causal" is the backbone without the adapter; the others run the denoiser.

    Args:
        tokens: `(t,)` int64, none of them MASK.
        kind, prompt_length, target: see `visible`.
        positions: which tokens to mask, one after the other; all by default.

    Returns:
        `(len(positions), t)` float64: length of the difference divided by the length of the state.
        What a mask cuts off moves by exactly 0.
    """
    if bool((tokens == denoiser.mask_token_id).any()):
        raise InvalidInput("a token is MASK already, so masking it changes nothing: choose others")
    bare = denoiser.adapter_off() if kind == "causal" else contextlib.nullcontext()

    def states(ids: Tensor, masked: Sequence[int]) -> Tensor:  # (t, d)
        allowed = visible(kind, prompt_length, len(ids), target, masked)
        mask = torch.from_numpy(allowed).to(ids.device)[None, None]
        return denoiser.hidden_states(ids[None], mask)[0].double()

    with bare:  # one sequence at a time: what is cut off moves by 0, not by a rounding error
        before = states(tokens, ())
        moves = []
        for position in range(len(tokens)) if positions is None else positions:
            progress(len(moves))
            changed = tokens.clone()
            changed[position] = denoiser.mask_token_id
            moves.append((states(changed, [position]) - before).norm(dim=1) / before.norm(dim=1))
    return torch.stack(moves).cpu().numpy()


@torch.no_grad()
def next_token_accuracy(
    denoiser: Denoiser, pairs: Sequence[Pair], kind: str, length: int = 64, cuts: int = 3
) -> Estimate:
    """Accuracy of the bare backbone's next token when all that follows is MASK.

    What is lost against "causal" is lost to attending to MASKs.

    Args:
        pairs: prompts with greedy answers of the backbone itself.
        kind: see `visible`.
        length: a, positions of the answer region; longer answers are cut off.
        cuts: beginnings tried of each answer, evenly spread over it.
    """
    right, counts = [], []
    for pair in pairs:
        prompt = denoiser.encode(pair.prompt)
        ids = encode_text(denoiser.tokenizer, pair.answer)[:length]
        if not ids:
            raise InvalidInput(f"no answer to {pair.prompt!r}: expected at least one token")
        answer = torch.tensor(ids, device=prompt.device)
        p, t = len(prompt), len(prompt) + length
        starts = sorted({round(i * (len(ids) - 1) / cuts) for i in range(1, cuts + 1)})  # tokens
        tokens = prompt.new_full((len(starts), t), denoiser.mask_token_id)  # (b, t)
        tokens[:, :p] = prompt
        for row, n in enumerate(starts):
            tokens[row, p : p + n] = answer[:n]
        allowed = [visible(kind, p, t, "next", range(p + n, t)) for n in starts]
        mask = torch.from_numpy(np.stack(allowed)).to(prompt.device)[:, None]
        with denoiser.adapter_off():
            states = denoiser.hidden_states(tokens, mask)  # (b, t, d)
            last = torch.stack([states[row, p + n - 1] for row, n in enumerate(starts)])  # (b, d)
            predicted = denoiser.causal_lm.lm_head(last).argmax(dim=-1)
        right.append(int((predicted == answer[starts]).sum()))
        counts.append(len(starts))
    return pooled_share(right, counts)


@torch.no_grad()
def update_sizes(denoiser: Denoiser) -> list[Update]:
    """The size of the adapter's update, for every weight matrix that has one."""
    updates = []
    for name, module in denoiser.causal_lm.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        change = module.get_delta_weight("default").double()
        weight = module.get_base_layer().weight.double()
        if module.merged:
            weight = weight - change
        parts = name.split(".")
        layer = next(int(part) for part in parts if part.isdecimal())
        updates.append(Update(layer, parts[-1], float(change.norm() / weight.norm())))
    return updates


@torch.no_grad()
def fill_mask(denoiser: Denoiser, prompt: str, text: str, top: int = 5) -> list[list[Candidate]]:
    """The `top` likeliest tokens behind each [MASK] of an answer, in order; nothing is sampled.

    `text` is the answer, with "[MASK]" for a masked token; a space before it is part of that token.
    """
    *fragments, end = text.split("[MASK]")
    if not fragments:
        raise InvalidInput(f"no [MASK] in {text!r}: expected at least one")
    fragments = [fragment.removesuffix(" ") for fragment in fragments] + [end]
    ids: list[int] = []
    for fragment in fragments:
        words = encode_text(denoiser.tokenizer, fragment, follows=bool(ids))
        ids += [*words, denoiser.mask_token_id]
    answer = torch.tensor([*ids[:-1], denoiser.eos_token_id], device=denoiser.device)
    logits = denoiser.logits(denoiser.encode(prompt)[None], answer[None])[0]  # (a, v)
    best = logits[answer == denoiser.mask_token_id].float().softmax(dim=-1).topk(top)
    return [
        [Candidate(denoiser.tokenizer.decode([i]), p) for i, p in zip(row, odds, strict=True)]
        for row, odds in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
