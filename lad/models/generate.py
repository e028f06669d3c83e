"""Left-to-right answers of a causal language model: the one place where they are generated.

The loop, the cache and the padding are those of `transformers`. Added: batches of similar length,
and sampling whose random numbers belong to a prompt, so that neither the batch size nor the other
prompts change what is drawn, and the global generator is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lad.utils import InvalidInput


@torch.inference_mode()
def generate(
    causal_lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    eos_token_id: int | None = None,
    static_cache: bool = False,
) -> list[list[int]]:
    """Token ids of one answer to each prompt, in the order of the prompts.

    An answer ends with its EOS; one without was cut off at `max_new_tokens` or `max_length`.

    Args:
        causal_lm: a backbone without an adapter, or with the adapter switched off.
        tokenizer: names EOS, unless `eos_token_id` does.
        prompts: token ids with their chat template; InvalidInput for none, or no room behind them.
        temperature, top_k: 0 takes the likeliest token; 0 samples among all.
        max_length: tokens of a prompt and its answer together; at most what the model allows.
        static_cache: keys and values in one tensor of fixed size, which transformers compiles into
            CUDA graphs on a GPU. Batches are padded to few shapes: pays in long runs.
    """
    max_length = max_length or causal_lm.config.max_position_embeddings
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    for length in map(len, prompts):
        if not 0 < length < max_length:
            raise InvalidInput(
                f"a prompt of {length} tokens: expected at least 1 and fewer than {max_length}"
            )
    sampling = None
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand((len(prompts), max_new_tokens), generator=generator)
    answers: list[list[int]] = [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width, shortest = len(prompts[batch[0]]), len(prompts[batch[-1]])
        new_tokens, options = min(max_new_tokens, max_length - shortest), {}
        if static_cache:  # each new shape is compiled
            width, new_tokens = -(-width // 64) * 64, -(-new_tokens // 64) * 64
            options = {"cache_implementation": "static"}
            batch += batch[-1:] * (batch_size - len(batch))
        ids = torch.full((len(batch), width), eos)
        attention_mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            attention_mask[row, width - len(prompts[i]) :] = 1
        if temperature > 0:
            drawn = uniforms[batch].to(causal_lm.device)
            sampling = [partial(sample, drawn, width, temperature, top_k)]
        new = causal_lm.generate(
            input_ids=ids.to(causal_lm.device),
            attention_mask=attention_mask.to(causal_lm.device),
            max_new_tokens=new_tokens,
            logits_processor=sampling,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=eos,
            **options,
        )[:, width:].tolist()
        for i, tokens in zip(batch, new, strict=True):
            end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
            answers[i] = tokens[: min(end, max_new_tokens, max_length - len(prompts[i]))]
    return answers


def sample(
    uniforms: Tensor, width: int, temperature: float, top_k: int, input_ids: Tensor, scores: Tensor
) -> Tensor:
    """`(b, v)` scores with all but the sampled token at -inf.

    It is where the cumulative probability passes one of the `(b, n)` uniforms drawn beforehand.
    """
    best, tokens = scores, None
    if 0 < top_k < scores.shape[-1]:
        best, tokens = scores.topk(top_k)
    cumulative = (best.float() / temperature).softmax(-1).cumsum(-1)  # (b, k)
    column = min(
        input_ids.shape[1] - width, uniforms.shape[1] - 1
    )  # a last one repeats, and is cut
    uniform = uniforms[:, column, None]
    # The last sum is 1 up to rounding: scaled by it, no draw lies beyond.
    rank = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True)
    rank = rank.clamp(max=best.shape[-1] - 1)
    chosen = rank if tokens is None else tokens.gather(-1, rank)
    return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)
