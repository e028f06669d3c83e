"""A LLaMA small enough to test everything with: random weights, one token a byte, no files.

It has every part of the real ones, and its predictions depend visibly on what it reads, so that a
wrong mask or position shows as another token.
"""

from __future__ import annotations

import hashlib

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# ChatML, the chat template of SmolLM2 and many others.
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(mask_token: str, eos_token: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 260 tokens: 256 bytes, padding, start of a turn, EOS, MASK."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", eos_token, mask_token]
    plain.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<|im_start|>",
        eos_token=eos_token,
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=CHATML,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, context: int, dtype: torch.dtype
) -> tuple[LlamaForCausalLM, str]:
    """A random LLaMA, the same on every machine, and the hex sha256 of its float32 weights."""
    values = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    values |= {"vocab_size": len(tokenizer), "max_position_embeddings": context}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[name] = getattr(tokenizer, name)
    config = LlamaConfig(**values)
    with torch.random.fork_rng(devices=[]):  # the constructor draws numbers, replaced below
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() == 2:
            # Large enough that what is read moves what is predicted. Drawn as integers and scaled,
            # which, unlike normal_(), gives the same bits on every kind of CPU.
            scale = 0.5 if "embed" in name else 2.5 * weight.shape[1] ** -0.5
            draws = torch.randint(-(2**15), 2**15 + 1, weight.shape, generator=generator)
            weight.data.copy_(draws.float() * (scale / 2**15))
        digest.update(name.encode() + weight.detach().numpy().tobytes())
        weight.data = weight.data.to(dtype)
    return model, digest.hexdigest()
