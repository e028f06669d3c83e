"""Model folders in the hub's layout, of every architecture, small and random."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from transformers import PreTrainedTokenizerFast as FastTokenizer

from lad.models.random_weights import SHAPES
from lad.models.tiny import CHATML

# What LLaMA 3's templates do: a beginning of text, headers, a date in the system turn that is
# today's unless it is told, contents without their outer white space.
LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set has_system = messages[0]['role'] == 'system' %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nDate: " + date_string + "\\n\\n" }}
{{- (messages[0]['content'] | trim if has_system else "") + "<|eot_id|>" }}
{%- for message in messages[1 if has_system else 0:] %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA_3_NAMES = ("begin_of_text", "start_header_id", "end_header_id", "eot_id", "end_of_text")
# What Mistral's do: no system turn, user and assistant take turns, or there is an exception.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def tokenizer(kind: str) -> FastTokenizer:
    """One token a byte, and a family's special ones; for LLaMA 3 the word "MASK" is one more.

    Mistral's is a SentencePiece vocabulary: bytes by name, and "▁" with some words and letters.
    """
    names = {
        "llama": [f"<|{name}|>" for name in LLAMA_3_NAMES],
        "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"],
        "mistral": ["<s>", "</s>", "[INST]", "[/INST]", "<unk>"],
    }[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("M", "A"), ("S", "K"), ("MA", "SK")] if kind == "llama" else []
    if kind == "mistral":
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)] + [*"▁Bacehopst:é漢"]
        merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a")]
    pieces = [*alphabet, *(a + b for a, b in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    if kind == "mistral":
        plain.pre_tokenizer = None
        space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        plain.normalizer = normalizers.Sequence(space)
        read = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        plain.decoder = decoders.Sequence([*read, decoders.Strip(" ", 1, 0)])
    plain.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in names])
    ends = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "mistral": "</s>"}
    return FastTokenizer(
        tokenizer_object=plain,
        bos_token=None if kind == "qwen2" else names[0],
        eos_token=ends[kind],
        clean_up_tokenization_spaces=False,
        chat_template={"llama": LLAMA_3, "qwen2": CHATML, "mistral": MISTRAL}[kind],
    )


def config(kind: str):
    """LLaMA 3 with stretched positions, Qwen2 with biases, Mistral with sliding windows."""
    llama = SHAPES["tiny"]
    if kind == "llama":
        return LlamaConfig(**llama)
    common = {key: value for key, value in llama.items() if key != "rope_parameters"}
    if kind == "qwen2":
        return Qwen2Config(**common)
    common["tie_word_embeddings"] = False
    return MistralConfig(**common, head_dim=24, sliding_window=384)


def save_checkpoint(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a random model of "llama", "qwen2" or "mistral"; predictions move with what is read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config(kind))
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.data.normal_(0.0, 0.3 if "embed" in name else 1.5 * weight.shape[1] ** -0.5)
            elif "bias" in name:
                weight.data.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
