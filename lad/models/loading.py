"""A model folder, in the hub's layout, as a frozen causal LM and its tokenizer.

LLaMA, Qwen2 and Mistral have one structure: decoder layers under `model.layers` and linear layers
of the same seven names. Weights are read from safetensors only: nothing in a folder is executed.

bitsandbytes quantises weights while they load (4 bit: NF4 with nested constants; 8 bit: LLM.int8);
embeddings, norms and the head keep their precision.

References:
    LLM.int8, https://arxiv.org/abs/2208.07339; NF4, https://arxiv.org/abs/2305.14314
    https://huggingface.co/docs/transformers/quantization/bitsandbytes
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lad.utils import DamagedFile, InvalidInput, one_line, sha256_file

if TYPE_CHECKING:  # these take seconds to import
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "mistral")

# The device that stands for all GPUs of this machine, layers spread over them.
SPREAD = "spread"

# Vocabulary entries that may serve as MASK, in the order of preference: the paper's word, tokens
# made for it, and tokens that a vocabulary holds in reserve.
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


def check_folder(folder: Path) -> None:
    """Raise InvalidInput or DamagedFile for a folder without a model of `ARCHITECTURES`."""
    for pattern in ("tokenizer.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise InvalidInput(f"{folder} has no {pattern}: expected a model folder as on the hub")
    with damage_errors(folder):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    if kind not in ARCHITECTURES:
        raise InvalidInput(
            f"{folder} holds a {kind!r} model: expected one of {', '.join(ARCHITECTURES)}"
        )


def weights_digest(folder: Path) -> str:
    """Hex digest of all weights in a folder (3 s for 16 GB on eight cores and a fast disk)."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(sha256_file, files)
        lines = [f"{file.name} {sha}\n" for file, sha in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, with a chat template that gives the same text every day.

    Templates that write today's date into the system turn get LLaMA 3.1's default date instead:
    otherwise a run could not be repeated tomorrow.

    Raises:
        DamagedFile: it cannot be read.
        InvalidInput: it has no chat template.
    """
    from transformers import PreTrainedTokenizerFast

    with quiet_transformers(), damage_errors(folder):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InvalidInput(
            f"{folder} has no chat template: expected an instruct model, or a chat_template.jinja "
            "in the folder"
        )
    if "date_string" in template and "strftime_now" in template:
        template = "{%- set date_string = '26 Jul 2024' %}" + template
    tokenizer.chat_template = template
    return tokenizer


def read_model(
    folder: Path, dtype: torch.dtype, device: torch.device | str, bits: int | None
) -> PreTrainedModel:
    """The model of a folder, its weights loaded straight to their device.

    Args:
        device: one device, or `SPREAD`.
        bits: 4 or 8 to quantise, None to keep the weights in `dtype`.

    Raises:
        DamagedFile: weights or configuration cannot be read, or lack something.
        InvalidInput: bitsandbytes is not installed, or the GPU's memory does not suffice.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"quantization_config": quantization(bits, dtype)} if bits else {}
    # transformers fills what a file lacks with random numbers and only warns: those numbers must
    # neither be used nor be drawn from the global generator.
    with quiet_transformers(), damage_errors(folder), torch.random.fork_rng(devices=[]):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        remove_sliding_window(config)
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
            f"{bits}-bit weights need bitsandbytes: run `pip install 'lad[quantized]'`, or leave "
            "out the suffix of the model's name"
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


def remove_sliding_window(config) -> None:
    """Full attention in place of sliding windows, and a context no longer than the window.

    Up to that length the two are the same model, and every mask is passed explicitly.
    """
    window = getattr(config, "sliding_window", None)
    if window is None:
        return
    config.sliding_window = None
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * config.num_hidden_layers
    config.max_position_embeddings = min(config.max_position_embeddings, window)


@contextmanager
def damage_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged folder into DamagedFile."""
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"the weights in {folder} do not fit the GPU's memory ({one_line(error)[:120]}): load "
            f"them in 4 bit (NAME:4bit), or on all GPUs (--device {SPREAD})"
        ) from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "allocate memory" in str(error):  # too large for this machine, not damaged
            raise
        raise DamagedFile(
            f"{folder} cannot be loaded ({one_line(error)}): delete that folder, then run `lad "
            "fetch` with the model's name, or copy the folder again"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and progress bars, which a reader cannot act on."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def check_device(device: str | torch.device) -> torch.device | str:
    """The device, or `SPREAD` where there is a GPU; raises InvalidInput for any other."""
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
    """Id of a text that must be one token of the model `name`; raises InvalidInput otherwise."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InvalidInput(
            f"{text!r} is {len(ids)} tokens for the tokenizer of {name}: expected one; use the "
            "tokenizer that belongs to this model"
        )
    return ids[0]


def choose_mask(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """The first of `MASKS` that is one token and neither BOS nor EOS; raises InvalidInput."""
    used = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for text in MASKS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] not in used and tokenizer.decode(ids).strip() == text:
            return text
    raise InvalidInput(
        f"the vocabulary of {name} has no token to serve as MASK: expected one of "
        f"{', '.join(MASKS)}; use another model of the family"
    )
