"""Adapters on disk: LoRA weights, and the small card that names what they are for.

    adapter_config.json, adapter_model.safetensors   as peft writes them
    denoiser.json                                    attention, target, MASK, backbone, digest, data

The card makes loading a mismatched adapter an error.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from lad import utils
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import get_backbone, load_backbone
from lad.utils import AdapterMismatch, AssetUnavailable, Count, DamagedFile, InvalidInput, one_line

SCHEMA = 1  # of denoiser.json
# What denoiser.json holds beside the fields of `DenoiserConfig`.
FIELDS = {"schema": Literal[SCHEMA], "backbone": str, "backbone_digest": str}
FIELDS |= {"mask_token_id": Count, "eos_token_id": Count, "adapter_sha256": str}
Card = utils.record(TypedDict("Card", FIELDS))
# Settings of peft that would make another update of the same weights.
PLAIN_LORA = dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out"), False)
PLAIN_LORA |= {"rank_pattern": {}, "alpha_pattern": {}}
RESTORE = "expected what `lad train` wrote; restore the file"


def load_denoiser(
    name: str = "smollm2-135m",
    adapter: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    merge: bool = True,
) -> Denoiser:
    """Load a backbone, as `load_backbone` does, with a trained adapter.

    Args:
        adapter: folder with `denoiser.json`, or the name of a shipped adapter, as `find_adapter`
            takes it; the backbone's by default.
        merge: fold the adapter into the weights, see `Denoiser.merge`; never into quantised ones,
            whose rounding would lose it.

    Raises:
        InvalidInput: unknown backbone, or a path that is no adapter.
        AssetUnavailable: weights that cannot be had, or no adapter shipped.
        DamagedFile: a truncated or altered adapter, or one with NaN weights.
        AdapterMismatch: an adapter for another backbone.
    """
    spec = get_backbone(name)  # an unknown model is refused first
    folder = shipped_adapter(spec.name) if adapter is None else find_adapter(adapter)
    config, card = read_card(folder)
    weights = read_weights(folder, card)
    # The name of a folder may change; its digest, compared below, does not.
    if card["backbone"] != spec.name and not isinstance(spec.source, Path):
        raise AdapterMismatch(
            f"the adapter in {folder} was trained for {card['backbone']!r}, not for {spec.name!r}: "
            f"expected a matching pair; pass --model {card['backbone']}"
        )
    backbone = load_backbone(name, device=device, dtype=dtype)
    for key in ("mask_token_id", "eos_token_id", "backbone_digest"):
        got, expected = card[key], getattr(backbone, key.removeprefix("backbone_"))
        if got != expected:
            raise AdapterMismatch(
                f"the adapter in {folder} says {key} = {got!r}, the backbone has {expected!r}: "
                "expected the same; use the backbone it was trained on"
            )
    denoiser = Denoiser.create(backbone, config)
    present = {key: value for key, value in denoiser.model.state_dict().items() if "lora_" in key}
    # peft writes "…lora_A.weight" and holds "…lora_A.default.weight".
    weights = {key.replace(".weight", ".default.weight"): value for key, value in weights.items()}
    if {k: v.shape for k, v in present.items()} != {k: v.shape for k, v in weights.items()}:
        raise AdapterMismatch(
            f"the weights in {folder} do not fit its denoiser.json (rank {config.rank} on "
            f"{', '.join(config.layers)}): expected both from one training run"
        )
    with torch.no_grad():
        for key, value in weights.items():
            present[key].copy_(value)
    denoiser.adapter_sha256 = card["adapter_sha256"]
    return denoiser.merge() if merge and not spec.bits else denoiser


def shipped_adapters() -> dict[str, Path]:
    """Folders of the adapters that come with this package, by name."""
    found = (Path(__file__).parents[1] / "assets" / "adapters").glob("*/denoiser.json")
    return {path.parent.name: path.parent for path in sorted(found)}


def shipped_adapter(name: str) -> Path:
    """Folder of the shipped adapter of this name; a backbone's usual one has the backbone's name.

    Raises AssetUnavailable for none.
    """
    shipped = shipped_adapters()
    if name not in shipped:
        raise AssetUnavailable(
            f"no adapter is shipped for {name!r}: expected one of {', '.join(shipped)}; "
            f"pass --adapter FOLDER, or make it with `lad train --model {name}`"
        )
    return shipped[name]


def choice_adapter(backbone: str) -> Path | None:
    """Folder of the adapter that is shipped for multiple-choice questions; None for none."""
    return shipped_adapters().get(f"{get_backbone(backbone).name}-choice")


def find_adapter(adapter: str | Path) -> Path:
    """The folder of this path, or else of the shipped adapter of this name; raises InvalidInput."""
    folder, shipped = Path(adapter), shipped_adapters()
    if not folder.exists():
        folder = shipped.get(str(adapter), folder)
    if not (folder / "denoiser.json").is_file():
        raise InvalidInput(
            f"{folder} is no adapter: expected a folder with denoiser.json and "
            "adapter_model.safetensors, as `lad train` writes it, or the name of a shipped one: "
            f"{', '.join(shipped)}"
        )
    return folder


def save_adapter(denoiser: Denoiser, folder: Path, **facts) -> Path:
    """Write the weights in bfloat16 and the card; the folder appears, or is replaced, whole.

    `facts`, such as the number of pairs, are written into the card. Raises CacheError.
    """
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in denoiser.model.state_dict().items()
        if "lora_" in name
    }
    lora = denoiser.model.peft_config["default"]
    lora.base_model_name_or_path = denoiser.backbone.spec.name  # not a path of this machine
    lora.target_modules = sorted(lora.target_modules)
    scratch = scratch_folder(folder)
    partial = scratch / "new"
    with utils.disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed
            # Asked about embeddings, peft would look for the backbone on the hub.
            denoiser.model.save_pretrained(partial, state_dict=weights, save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)  # peft's template says nothing
            (partial / "adapter_model.safetensors").chmod(0o644)  # made for the owner alone
            card = {"schema": SCHEMA, "backbone": denoiser.backbone.spec.name}
            card["backbone_digest"] = denoiser.backbone.digest
            card |= {key: getattr(denoiser, key) for key in ("mask_token_id", "eos_token_id")}
            card["adapter_sha256"] = utils.sha256_file(partial / "adapter_model.safetensors")
            card |= denoiser.config.to_dict() | facts
            (partial / "denoiser.json").write_text(json.dumps(card, indent=2) + "\n")
            utils.replace_folder(partial, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    denoiser.adapter_sha256 = card["adapter_sha256"]
    return folder


def average_adapters(adapters: Sequence[str | Path], folder: Path, model: str) -> Path:
    """Write the mean of the weights of adapters of one model, which may be better than each.

    The mean is of each tensor, lora_A and lora_B apart, so it makes sense for runs that began from
    the same adapter. The card names all digests as `mean_of`. Raises InvalidInput for a folder that
    is there and where settings differ, and as `load_denoiser` and `save_adapter` do.

    Reference: model soups, Wortsman et al., https://arxiv.org/abs/2203.05482.
    """
    if folder.exists():
        raise InvalidInput(f"{folder} is there already: expected a new folder; choose another")
    denoisers = [load_denoiser(model, adapter, merge=False) for adapter in adapters]
    for adapter, denoiser in zip(adapters, denoisers, strict=True):
        expected = denoisers[0].config.to_dict()
        remedy = f"expected the settings of {adapters[0]}"
        utils.check_same(adapter, denoiser.config.to_dict(), expected, remedy)
    states = [denoiser.model.state_dict() for denoiser in denoisers]
    digests = [denoiser.adapter_sha256 for denoiser in denoisers]
    with torch.no_grad():
        for key, value in states[0].items():
            if "lora_" in key:
                value.copy_(torch.stack([state[key].float() for state in states]).mean(dim=0))
    return save_adapter(denoisers[0], folder, mean_of=digests)


def scratch_folder(folder: Path) -> Path:
    """Where `save_adapter` makes what becomes `folder`; a killed process leaves it behind."""
    return folder.with_name(f".{folder.name}.partial")


def read_card(folder: Path) -> tuple[DenoiserConfig, dict]:
    """`denoiser.json` as settings and as it is in the file; `adapter_config.json` must agree."""
    path = folder / "denoiser.json"
    with utils.damaged_file(path, RESTORE):
        card = utils.checked(path.read_bytes(), Card)
        config = DenoiserConfig.from_dict({k: card[k] for k in DenoiserConfig().to_dict()})
    path = folder / "adapter_config.json"
    with utils.damaged_file(path, RESTORE):
        lora = PLAIN_LORA | utils.checked(path.read_bytes(), dict)
        lora["target_modules"] = set(lora["target_modules"])
    update = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": set(config.layers)}
    for key, value in (PLAIN_LORA | update).items():
        if lora.get(key) != value:
            raise AdapterMismatch(
                f"{path} says {key} = {one_line(lora.get(key))}, denoiser.json {one_line(value)}: "
                "expected both from one training run; restore them"
            )
    return config, card


def read_weights(folder: Path, card: dict) -> dict[str, Tensor]:
    """The adapter's tensors, checked against the digest in its card and for NaN."""
    path = folder / "adapter_model.safetensors"
    with utils.damaged_file(path, RESTORE, SafetensorError):
        if utils.sha256_file(path) != card["adapter_sha256"]:
            raise ValueError("not the file its denoiser.json names: sha256 differs")
        weights = load_file(path)
    bad = [key for key, value in weights.items() if not math.isfinite(value.float().abs().sum())]
    if bad:
        raise DamagedFile(
            f"{path} holds NaN or infinity in {len(bad)} of {len(weights)} tensors, first "
            f"{bad[0]}: expected finite weights; train or copy the adapter again"
        )
    return weights
