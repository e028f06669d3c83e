"""Adapters on disk: LoRA weights, and the small card that says what they are for.

    adapter_config.json, adapter_model.safetensors   as peft writes them
    denoiser.json                                    attention, target, MASK, backbone, digest

The card is what makes loading a mismatched adapter an error instead of noise.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lad.utils import (
    AdapterMismatch,
    AssetUnavailable,
    CacheError,
    DamagedFile,
    InvalidInput,
    sha256_file,
)

__all__ = [
    "ATTENTIONS",
    "LINEAR_LAYERS",
    "TARGETS",
    "DenoiserConfig",
    "check_equal",
    "read_card",
    "read_weights",
    "shipped_adapter",
    "write_adapter",
]

ATTENTIONS = ("bidirectional", "prompt-causal", "mask-blind")
TARGETS = ("same", "next")  # in this order: by how far right of its state a token stands
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SCHEMA = 1  # of denoiser.json


@dataclass(frozen=True)
class DenoiserConfig:
    """What an adapter was trained to be.

    Attributes:
        attention: one of `ATTENTIONS`.
        target: one of `TARGETS`.
        rank, alpha: LoRA's rank and scale (the update is multiplied by alpha / rank).
        layers: names of the linear layers that carry LoRA.
        context: longest prompt plus answer seen in training, in tokens.
    """

    attention: str = "prompt-causal"
    target: str = "next"
    rank: int = 64
    alpha: int = 128
    layers: tuple[str, ...] = LINEAR_LAYERS
    context: int = 256

    def __post_init__(self) -> None:
        for name, known in (("attention", ATTENTIONS), ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise InvalidInput(
                    f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}"
                )
        for name in ("rank", "alpha", "context"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} = {getattr(self, name)}: expected at least 1")
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def shift(self) -> int:
        """How many positions left of a token the state stands that predicts it: 0 or 1."""
        return TARGETS.index(self.target)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self) | {"layers": list(self.layers)}


def shipped_adapter(name: str) -> Path:
    """Folder of the adapter that comes with this package for a backbone.

    Raises:
        AssetUnavailable: none is shipped.
    """
    folder = Path(__file__).parents[1] / "assets" / "adapters" / name
    if not (folder / "denoiser.json").is_file():
        raise AssetUnavailable(
            f"no adapter is shipped for {name!r}: expected a trained one; "
            f"pass --adapter FOLDER, or make it with `lad train --model {name}`"
        )
    return folder


def write_adapter(folder: Path, model: PeftModel, config: DenoiserConfig, card: dict) -> str:
    """Write weights in bfloat16 and the card; the folder appears, or is replaced, whole.

    Args:
        card: what the weights belong to: backbone, its digest, MASK and EOS.

    Returns:
        The sha256 of the weights' file, which the card names too.
    """
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        weights = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in model.state_dict().items()
            if "lora_" in name
        }
        described = model.peft_config["default"]
        described.base_model_name_or_path = card["backbone"]  # not a path of this machine
        described.target_modules = sorted(described.target_modules)
        # Asked about embeddings, peft would look for the backbone on the hub.
        model.save_pretrained(partial, state_dict=weights, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # peft's template says nothing
        (partial / "adapter_model.safetensors").chmod(0o644)  # made for the owner alone
        digest = sha256_file(partial / "adapter_model.safetensors")
        values = {"schema": SCHEMA, **card, "adapter_sha256": digest, **config.to_dict()}
        (partial / "denoiser.json").write_text(json.dumps(values, indent=2) + "\n")
        partial.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    except OSError as error:
        raise CacheError(
            f"cannot write the adapter to {folder} ({error}): expected a writable folder with "
            "room; choose another path or free some space"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return digest


def read_card(folder: Path) -> tuple[DenoiserConfig, dict]:
    """`denoiser.json` as settings and as it stands."""
    path = folder / "denoiser.json"
    if not path.is_file():
        raise InvalidInput(
            f"{folder} is no adapter: expected a folder with denoiser.json and "
            "adapter_model.safetensors, as `lad train` writes it"
        )
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["schema"] != SCHEMA:
            raise ValueError(f"schema {card['schema']}, this code reads {SCHEMA}")
        config = DenoiserConfig(**{key: card[key] for key in DenoiserConfig().to_dict()})
        needed = ("backbone", "backbone_digest", "mask_token_id", "eos_token_id", "adapter_sha256")
        return config, card | {key: card[key] for key in needed}
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(
            f"{path} is unreadable ({error!r}): expected what `lad train` wrote; restore the file"
        ) from error


def read_weights(folder: Path, card: dict) -> dict[str, Tensor]:
    """The adapter's tensors, checked against the digest in its card and for NaN."""
    path = folder / "adapter_model.safetensors"
    try:
        if sha256_file(path) != card["adapter_sha256"]:
            raise DamagedFile(
                f"{path} is not the file its denoiser.json names (sha256 differs): expected an "
                "unaltered adapter; copy or check it out again"
            )
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedFile(
            f"{path} cannot be read ({error}): expected a safetensors file; copy it again"
        ) from error
    bad = [key for key, value in weights.items() if not math.isfinite(value.float().abs().sum())]
    if bad:
        raise DamagedFile(
            f"{path} holds NaN or infinity in {len(bad)} of {len(weights)} tensors, first "
            f"{bad[0]}: expected finite weights; train or copy the adapter again"
        )
    return weights


def check_equal(folder: Path, what: str, got: object, expected: object) -> None:
    """Refuse an adapter whose card disagrees with the backbone at hand."""
    if got != expected:
        raise AdapterMismatch(
            f"the adapter in {folder} says {what} = {got!r}, the backbone has {expected!r}: "
            "expected the same; use the backbone it was trained on"
        )
