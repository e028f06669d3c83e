"""A folder in the hub's layout becomes a frozen causal LM and its tokenizer.

LLaMA, Qwen2 and Mistral are one architecture for our purposes: decoder layers under
`model.layers`, linear layers of the same seven names, and masks that are taken as they are given.
Weights are read from safetensors only: nothing in a folder is ever executed.

Quantised weights (4 bit: NF4 with nested constants; 8 bit: LLM.int8) are made while loading, from
the same files, by bitsandbytes; embeddings, norms and the head stay as they are.

References:
    LLM.int8, https://arxiv.org/abs/2208.07339; NF4, https://arxiv.org/abs/2305.14314
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lad.models.gguf import quiet_transformers
from lad.utils import DamagedFile, InvalidInput, one_line, sha256_file

if TYPE_CHECKING:  # seconds to import: only those who load a model pay
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "ARCHITECTURES",
    "MASKS",
    "SPREAD",
    "check_device",
    "check_folder",
    "choose_mask",
    "digest_of",
    "quantization",
    "read_model",
    "read_tokenizer",
    "single_token",
    "weights_digest",
]

ARCHITECTURES = ("llama", "qwen2", "mistral")

# The device that stands for all GPUs of this machine together, layers shared out among them.
SPREAD = "spread"

# What may serve as MASK, in the order of preference: the paper's word, tokens made for it, and
# tokens that a vocabulary holds in reserve.
MASKS = (
    "MASK",
    "<mask>",
    "[MASK]",
    "<|mask|>",
    "<empty_output>",
    "<|reserved_special_token_0|>",
    "<|fim_pad|>",
    "[control_8]",
    "<unk>",
)


def check_folder(folder: Path, remedy: str) -> dict:
    """`config.json` of a folder that holds a model we can run.

    Raises:
        InvalidInput: files are missing, or the architecture is none of `ARCHITECTURES`.
        DamagedFile: `config.json` is unreadable; the message ends in `remedy`.
    """
    for wanted in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(folder.glob(wanted)):
            raise InvalidInput(
                f"{folder} has no {wanted}: expected a model folder as the hub has them, with "
                "config.json, tokenizer.json and safetensors"
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{folder / 'config.json'} is unreadable ({one_line(error)}): delete it and {remedy}"
        ) from error
    if kind not in ARCHITECTURES:
        raise InvalidInput(
            f"{folder} holds a {kind!r} model: expected one of {', '.join(ARCHITECTURES)}"
        )
    return config


def weights_digest(folder: Path) -> str:
    """Hex digest of all weights in a folder (3 s for 16 GB on eight cores and a fast disk)."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(sha256_file, files))
    return digest_of({file.name: part for file, part in zip(files, parts, strict=True)})


def digest_of(files: dict[str, str]) -> str:
    """`weights_digest` of files whose hex sha256 is known, by name."""
    whole = "".join(f"{name} {files[name]}\n" for name in sorted(files))
    return hashlib.sha256(whole.encode()).hexdigest()


def read_tokenizer(folder: Path, remedy: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder; its chat template says the same every day.

    Some templates write today's date into the system turn, unless they are told another: a run
    could then not be repeated tomorrow. They are told the one that LLaMA 3.1's falls back on.

    Raises:
        DamagedFile: it cannot be read; the message ends in `remedy`.
        InvalidInput: it has no chat template.
    """
    from transformers import PreTrainedTokenizerFast

    with quiet_transformers(), unreadable(folder, remedy):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InvalidInput(
            f"{folder} has no chat template, as base models have none: expected an instruct "
            "model; use one, or put a chat_template.jinja into the folder"
        )
    if "date_string" in template and "strftime_now" in template:
        template = "{%- set date_string = '26 Jul 2024' %}" + template
    tokenizer.chat_template = template
    return tokenizer


def read_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    bits: int | None,
    remedy: str,
) -> PreTrainedModel:
    """The model of a folder, its weights put straight where they belong.

    Args:
        device: one device, or `SPREAD`.
        bits: 4 or 8 to quantise, None to keep the weights in `dtype`.
        remedy: how the messages about damage end.

    Raises:
        DamagedFile: weights or configuration cannot be read, or lack something.
        InvalidInput: bitsandbytes is not installed, or the device's memory does not suffice.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"quantization_config": quantization(bits, dtype)} if bits else {}
    # transformers fills what a file lacks with random numbers and only warns: those numbers must
    # neither be used nor be drawn from the global generator.
    with quiet_transformers(), unreadable(folder, remedy), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        unwindow(config)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map="auto" if device == SPREAD else {"": device},
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        )
        if report["missing_keys"]:
            raise ValueError(f"weights missing: {', '.join(sorted(report['missing_keys'])[:3])}")
        return model


def quantization(bits: int, dtype: torch.dtype):
    """transformers' settings for weights of 4 or 8 bits that multiply in `dtype`.

    Raises:
        InvalidInput: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInput(
            f"{bits}-bit weights need bitsandbytes, which is not installed: run "
            "`pip install 'lad[quantized]'`, or leave the suffix of the model's name away"
        )
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def unwindow(config) -> None:
    """Make a model with sliding windows one without, no longer than its window.

    Up to that length the two are the same model, and every mask here says itself who sees whom.
    """
    window = getattr(config, "sliding_window", None)
    if window is None:
        return
    config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.max_position_embeddings = min(config.max_position_embeddings, window)


@contextmanager
def unreadable(folder: Path, remedy: str) -> Iterator[None]:
    """What a damaged folder makes the libraries say becomes one line with a remedy."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"the weights in {folder} do not fit the GPU's memory ({one_line(error)[:120]}): take "
            f"them in 4 bit (NAME:4bit), or share them out over all GPUs (--device {SPREAD})"
        ) from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "allocate memory" in str(error):  # too large for this machine, not damaged
            raise
        raise DamagedFile(
            f"{folder} cannot be loaded ({one_line(error)}): delete it and {remedy}"
        ) from error


def check_device(device: str | torch.device) -> torch.device | str:
    """A device that is there, or `SPREAD` where there is a GPU to spread over.

    Raises:
        InvalidInput: there is none such.
    """
    import torch

    gpus = torch.cuda.is_available()
    if device == SPREAD and gpus:
        return device
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInput(
            f"device {str(device)!r} is not usable here: expected 'cpu'"
            + (f", 'cuda' or {SPREAD!r}" if gpus else ", this machine has no CUDA GPU")
        ) from error
    return found


def single_token(tokenizer: PreTrainedTokenizerFast, text: str, name: str) -> int:
    """Id of a text that must be one token.

    Raises:
        InvalidInput: it is none or several; `name` is the model's.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InvalidInput(
            f"{text!r} is {len(ids)} tokens for the tokenizer of {name}, expected one: "
            "use the tokenizer that belongs to this model"
        )
    return ids[0]


def choose_mask(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """The first of `MASKS` that is one token of a vocabulary, and not one with another task.

    Raises:
        InvalidInput: there is none.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for text in MASKS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] not in taken and tokenizer.decode(ids).strip() == text:
            return text
    raise InvalidInput(
        f"the vocabulary of {name} has no token to serve as MASK: expected one of "
        f"{', '.join(MASKS)}; use another model of the family"
    )
