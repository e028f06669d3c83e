"""Left-to-right answers of a causal language model: the one place where they are generated.

The loop, the cache of keys and values and the padding are those of `transformers`. What is added:
batches of similar length, and sampling whose random numbers belong to a prompt, so that neither
the batch size nor the other prompts change what is drawn, and the global generator is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from lad.utils import InvalidInput


@torch.inference_mode()
def generate(
    causal_lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """Token ids of one answer to each prompt, in the order of the prompts.

    An answer ends with its EOS; one without was cut off at `max_new_tokens` or `max_length`.

    Args:
        causal_lm: a backbone without an adapter, or with the adapter switched off.
        tokenizer: names EOS, unless `eos_token_id` does.
        prompts: token ids with their chat template, at least one each.
        max_new_tokens: tokens of an answer at most, its EOS included.
        temperature: 0 takes the likeliest token; above it, tokens are sampled.
        top_k: sample among this many likeliest tokens; 0 among all.
        seed: of the sampling.
        batch_size: prompts continued together.
        max_length: tokens of a prompt and its answer together at most; by default, and at most,
            what the model was made for.

    Raises:
        InvalidInput: a setting out of range, or a prompt without tokens or without room behind it.
    """
    limit = causal_lm.config.max_position_embeddings
    max_length = limit if max_length is None else max_length
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    for name, value in (settings | {"temperature": temperature, "top_k": top_k}).items():
        least = 1 if name in settings else 0
        if not least <= value < float("inf"):
            raise InvalidInput(f"{name} = {value}: expected at least {least}")
    if not 1 <= max_length <= limit:
        raise InvalidInput(f"max_length = {max_length}: expected from 1 to {limit} tokens")
    lengths = [len(prompt) for prompt in prompts]
    if not all(0 < length < max_length for length in lengths):
        wrong = next(length for length in lengths if not 0 < length < max_length)
        raise InvalidInput(
            f"a prompt of {wrong} tokens: expected at least 1 and fewer than {max_length}"
        )

    uniforms = None
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand((len(prompts), max_new_tokens), generator=generator)
    answers: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = lengths[batch[0]]
        ids = torch.full((len(batch), width), eos)
        attention_mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):  # padded on the left
            ids[row, width - lengths[i] :] = torch.tensor(prompts[i])
            attention_mask[row, width - lengths[i] :] = 1
        sampling = None
        if uniforms is not None:
            sampling = [Sample(uniforms[batch].to(causal_lm.device), width, temperature, top_k)]
        new = causal_lm.generate(
            input_ids=ids.to(causal_lm.device),
            attention_mask=attention_mask.to(causal_lm.device),
            max_new_tokens=min(max_new_tokens, max_length - lengths[batch[-1]]),
            logits_processor=sampling,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
        )[:, width:].tolist()
        for i, tokens in zip(batch, new, strict=True):
            end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
            answers[i] = tokens[: min(end, max_length - lengths[i])]
    return answers


class Sample(LogitsProcessor):
    """Leaves one token each: where the cumulative probability passes a number drawn beforehand.

    Args:
        uniforms: `(b, n)` in [0, 1), one for each sequence and new token.
        width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: Tensor, width: int, temperature: float, top_k: int) -> None:
        self.uniforms, self.width = uniforms, width
        self.temperature, self.top_k = temperature, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`(b, v)` scores with all but the sampled token at -inf."""
        tokens = None
        best = scores
        if 0 < self.top_k < scores.shape[-1]:
            best, tokens = scores.topk(self.top_k)
        cumulative = (best.float() / self.temperature).softmax(-1).cumsum(-1)  # (b, k)
        uniform = self.uniforms[:, input_ids.shape[1] - self.width, None]
        # The last sum is 1 up to rounding: scaled by it, no draw lies beyond.
        rank = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True)
        rank = rank.clamp(max=best.shape[-1] - 1)
        chosen = rank if tokens is None else tokens.gather(-1, rank)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)
