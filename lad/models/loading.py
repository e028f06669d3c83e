"""A model folder, in the hub's layout, as a frozen causal LM and its tokenizer.

LLaMA, Qwen2 and Mistral have one structure and the same names for their parts. Weights are read
from safetensors only: nothing in a folder is executed.

References: LLM.int8, https://arxiv.org/abs/2208.07339; NF4, https://arxiv.org/abs/2305.14314;
https://huggingface.co/docs/transformers/quantization/bitsandbytes
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import TypedDict

from lad import utils
from lad.utils import Count, DamagedFile, InvalidInput, one_line

if TYPE_CHECKING:  # these take seconds to import
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "qwen2", "mistral")

# The device that stands for all GPUs of this machine, layers spread over them.
SPREAD = "spread"

# Vocabulary entries that may serve as MASK, in the order of preference: the paper's word, tokens
# made for it, and tokens that a vocabulary holds in reserve.
MASKS = ("MASK", "<mask>", "[MASK]", "<|mask|>", "<empty_output>")
MASKS += ("<|reserved_special_token_0|>", "<|fim_pad|>", "[control_8]", "<unk>")

# What a model is built from in its configuration; each may be absent or None.
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")
SIZES += ("num_key_value_heads", "head_dim", "max_position_embeddings")
TYPES = dict.fromkeys(SIZES, Annotated[int, Field(ge=1, le=2**24)])
TYPES |= {"num_hidden_layers": Annotated[int, Field(ge=1, le=1000)], "hidden_act": str}
TYPES |= {"rms_norm_eps": float, "rope_theta": float, "attention_bias": bool, "mlp_bias": bool}
TYPES |= dict.fromkeys(
    ("rope_scaling", "rope_parameters"), dict[str, str | bool | Count | float | None]
)
TYPES |= {"bos_token_id": Count, "eos_token_id": Count | list[Count]}
TYPES = {name: kind | None for name, kind in TYPES.items()}
ModelConfig = utils.record(TypedDict("ModelConfig", TYPES, total=False))


def check_config(config: Mapping) -> tuple[dict, list[str]]:
    """Values of a configuration that a model is built from; names of others that would load code.

    transformers fetches and runs code for `auto_map` and for an attention that names a repository.
    Raises ValueError for a value of another type or out of range.
    """
    values = utils.checked({name: config[name] for name in TYPES if name in config}, ModelConfig)
    code = [name for name in map(str, config) if name == "auto_map" or "_implementation" in name]
    return values, [name for name in code if config[name] not in (None, "eager", "sdpa")]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer into `folder` as transformers saves them.

    transformers reads GGUF too, but takes half a minute. Weights are stored in bfloat16, which a
    CPU widens to float32: an adapter meets the weights that it was trained on. Raises InvalidInput
    for a file whose way of splitting text into words is not known.
    """
    if sys.stderr.isatty():
        print(f"converting {gguf.name}, once: half a minute", file=sys.stderr)
    # transformers draws a bar for the weights, whatever its settings are.
    with redirect_stderr(io.StringIO()), quiet_transformers():
        import torch
        from gguf import GGUFReader
        from transformers import AutoModelForCausalLM, AutoTokenizer

        field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
        pre_tokenizer = gguf_pre_tokenizer(field and field.contents())
        source = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype=torch.bfloat16)
        # The numbers are plain by now, but transformers refuses to save what it calls quantised.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def gguf_pre_tokenizer(name: str | None):
    """The pre-tokenizer that a GGUF file names, which transformers does not read from it.

    `smollm` splits off every digit before byte-level BPE (llama.cpp, src/llama-vocab.cpp). Raises
    InvalidInput for any other name.
    """
    from tokenizers import pre_tokenizers

    if name != "smollm":
        raise InvalidInput(f"the GGUF file's tokenizer.ggml.pre is {name!r}: expected 'smollm'")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def weights_digest(folder: Path) -> str:
    """Hex digest of all weights in a folder (3 s for 16 GB on eight cores and a fast disk)."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(utils.sha256_file, files)
        lines = [f"{file.name} {sha}\n" for file, sha in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, with a chat template that gives the same text every day.

    Templates that write today's date into the system turn get LLaMA 3.1's default date instead.
    """
    from transformers import PreTrainedTokenizerFast

    with quiet_transformers(), damage_errors(folder):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InvalidInput(f"{folder} has no chat template: expected an instruct model's")
    if "date_string" in template and "strftime_now" in template:
        template = "{%- set date_string = '26 Jul 2024' %}" + template
    tokenizer.chat_template = template
    return tokenizer


def read_model(
    folder: Path, dtype: torch.dtype, device: torch.device | str, bits: int | None
) -> PreTrainedModel:
    """The model of a folder, quantised to 4 or 8 `bits` or in `dtype`, on a device or `SPREAD`."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    options["trust_remote_code"] = False
    options["device_map"] = "auto" if device == SPREAD else {"": device}
    if bits:
        options["quantization_config"] = quantization(bits, dtype)
    with damage_errors(folder):
        values = utils.checked((folder / "config.json").read_bytes(), dict)
    if values.get("model_type") not in ARCHITECTURES:
        kind, expected = utils.SHORT.repr(values.get("model_type")), ", ".join(ARCHITECTURES)
        raise InvalidInput(f"{folder} is a {kind} model: expected {expected}")
    # transformers fills what a file lacks with random numbers and only warns: those numbers must
    # neither be used nor be drawn from the global generator.
    with quiet_transformers(), damage_errors(folder), torch.random.fork_rng(devices=[]):
        if ignored := check_config(values)[1]:
            print(f"{folder}: {', '.join(ignored)} ignored, no code is loaded", file=sys.stderr)
        config = CONFIG_MAPPING[values["model_type"]].from_dict(
            {name: value for name, value in values.items() if name not in ignored}
        )
        if window := getattr(config, "sliding_window", None):
            # Up to this length full attention is the same, and every mask is passed explicitly.
            config.sliding_window = None
            config.max_position_embeddings = min(config.max_position_embeddings, window)
            if getattr(config, "layer_types", None):
                config.layer_types = ["full_attention"] * config.num_hidden_layers
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, **options
        )
        if report["missing_keys"]:
            raise ValueError(f"weights missing: {', '.join(sorted(report['missing_keys'])[:3])}")
        return model


def quantization(bits: int, dtype: torch.dtype):
    """transformers' settings for 4 (NF4) or 8 bits; raises InvalidInput without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidInput(f"{bits}-bit weights need bitsandbytes: `pip install 'lad[quantized]'`")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, **nf4)


@contextmanager
def damage_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged folder into DamagedFile."""
    import torch
    from safetensors import SafetensorError

    remedy = "delete it, then run `lad fetch` with the model's name, or copy the folder again"
    try:
        with utils.damaged_file(folder, remedy, SafetensorError, RuntimeError):
            yield
    except DamagedFile as damaged:
        error = damaged.__cause__
        if isinstance(error, torch.OutOfMemoryError):
            raise InvalidInput(
                f"the weights in {folder} do not fit the GPU's memory ({one_line(error)[:120]}): "
                f"load them in 4 bit (NAME:4bit), or on all GPUs (--device {SPREAD})"
            ) from error
        if "allocate memory" in str(error):  # too large for this machine, not damaged
            raise error from None
        raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and progress bars, which a reader cannot act on."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
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
        probe = torch.zeros(1, device=device)
        probe.item()  # "meta" has no numbers
        return probe.device
    except (RuntimeError, AssertionError, TypeError) as error:
        expected = f"'cpu', 'cuda' or {SPREAD!r}" if gpus else "'cpu', this machine has no CUDA GPU"
        raise InvalidInput(f"device {str(device)!r} is not usable: expected {expected}") from error


def single_token(tokenizer: PreTrainedTokenizerFast, text: str, name: str) -> int:
    """Id of a text that must be one token of the model `name`; raises InvalidInput otherwise."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InvalidInput(f"{text!r} is {len(ids)} tokens of {name}: expected one token")
    return ids[0]


def choose_mask(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """The first of `MASKS` that is one token and neither BOS nor EOS; raises InvalidInput."""
    for text in MASKS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        is_free = ids not in ([tokenizer.eos_token_id], [tokenizer.bos_token_id])
        if len(ids) == 1 and is_free and tokenizer.decode(ids).strip() == text:
            return text
    raise InvalidInput(f"{name} has no token to serve as MASK: expected {', '.join(MASKS)}")
