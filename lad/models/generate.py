"""Left-to-right answers of a causal language model: the one place where they are generated.

The loop, the cache and the padding are those of `transformers`. Added: batches of similar length,
and sampling whose random numbers belong to a prompt, so that neither the batch size nor the other
prompts change what is drawn, and the global generator is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from lad.utils import InvalidInput

STAGE = 64  # tokens


@torch.inference_mode()
def generate(
    causal_lm: PreTrainedModel,
    eos_token_id: int,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    max_length: int | None = None,
    static_cache: bool = False,
    on_logits: Callable[[Tensor], None] | None = None,
    **more,
) -> list[list[int]]:
    """Token ids of one answer to each prompt, in the order of the prompts.

    An answer ends with its EOS; one without was cut off at `max_new_tokens` or `max_length`.

    Args:
        causal_lm: a backbone without an adapter, or with the adapter switched off.
        prompts: token ids with their chat template; InvalidInput for none, or no room behind them.
        temperature, top_k: 0 takes the likeliest token; 0 samples among all.
        max_length: tokens of a prompt and its answer together; at most what the model allows.
        static_cache: keys and values in tensors of fixed size, and batches made anew after every 64
            tokens from the answers that go on: pays on a GPU with thousands of prompts.
        on_logits: called after every forward pass with the `(b, v)` logits of the next tokens.
        more: further arguments of `generate` of `transformers`.
    """
    max_length = max_length or causal_lm.config.max_position_embeddings
    eos = eos_token_id
    for length in map(len, prompts):
        if not 0 < length < max_length:
            raise InvalidInput(
                f"a prompt of {length} tokens: expected at least 1 and fewer than {max_length}"
            )
    if temperature > 0:
        generator = torch.Generator().manual_seed(seed)
        uniforms = torch.rand((len(prompts), max_new_tokens), generator=generator)
    answers: list[list[int]] = [[] for _ in prompts]
    room = [min(max_new_tokens, max_length - len(prompt)) for prompt in prompts]
    going, done, stage = list(range(len(prompts))), 0, STAGE if static_cache else max_new_tokens
    while going:
        going.sort(key=lambda i: -len(prompts[i]))
        for first in range(0, len(going), batch_size):
            batch, options = going[first : first + batch_size], dict(more)
            width = len(prompts[batch[0]]) + done
            new_tokens = min(stage, max(room[i] for i in batch) - done)
            if static_cache:
                width = -(-width // STAGE) * STAGE
                batch = batch + batch[-1:] * (batch_size - len(batch))
                # Compiled, a step takes twice as long as eager (2,048 prompts on one H100).
                options["disable_compile"] = True
                options["past_key_values"] = StaticCache(causal_lm.config, width + stage)
            ids = torch.full((len(batch), width), eos)
            attention_mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                begun = [*prompts[i], *answers[i]]
                ids[row, width - len(begun) :] = torch.tensor(begun)
                attention_mask[row, width - len(begun) :] = 1
            processors = []
            if on_logits is not None:
                processors.append(lambda ids, logits: on_logits(logits) or logits)
            if temperature > 0:
                drawn = uniforms[batch, done:].to(causal_lm.device)
                processors.append(partial(sample, drawn, width, temperature, top_k))
            new = causal_lm.generate(
                input_ids=ids.to(causal_lm.device),
                attention_mask=attention_mask.to(causal_lm.device),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=eos,
                logits_processor=processors,
                **options,
            )[:, width:].tolist()
            for i, tokens in dict(zip(batch, new, strict=True)).items():
                end = tokens.index(eos) + 1 if eos in tokens else len(tokens)
                answers[i] = (answers[i] + tokens[:end])[: room[i]]
        done += stage
        going = [i for i in going if answers[i][-1] != eos and len(answers[i]) < room[i]]
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
    column = input_ids.shape[1] - width
    uniform = uniforms[:, min(column, uniforms.shape[1] - 1), None]  # a last one repeats, is cut
    # The last sum is 1 up to rounding: scaled by it, no draw lies beyond.
    rank = (cumulative <= uniform * cumulative[:, -1:]).sum(-1, keepdim=True)
    rank = rank.clamp(max=best.shape[-1] - 1)
    chosen = rank if tokens is None else tokens.gather(-1, rank)
    return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)
