"""Ablations: the same short training run again and again, one choice changed at a time.

A grid is a YAML file (configs/ablation.yaml) with `steps`, a `base` run, and `variants`, each of
which names only what it changes; the first changes nothing and is the baseline of the others.
Every variant's result is a file of its own, so any number of processes share a grid and a stopped
one continues; `collect` joins them. The recorded figures/data/ablation.json is of an earlier recipe
with settings `draft_*`, which the trainer no longer has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from typing_extensions import TypedDict

from lad import utils
from lad.diffusion.config import PRESETS, DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.adapter_eval import evaluate
from lad.models.registry import load_backbone
from lad.training import TrainConfig, hold_out, pack, read_pairs, train
from lad.training.config import SECTIONS, read_sections, read_yaml
from lad.utils import InvalidInput, checked, damaged_file, disk_errors, record

NOISELESS = {"noiseless": PRESETS["noiseless"]}
QUALITY = ("repeats", "repeated_4grams", "whole_sentences", "relative_perplexity_with_end")
OTHER = "delete the folder's results or choose another --out"
SHARED = ("model", "pairs_sha256", "trained_on")  # what all results of one grid have in common
# A variant's file, which also has what `evaluate` returns.
Result = record(TypedDict("Result", {"variant": str, "training": dict, "denoiser": dict}))


def read_grid(path: str | Path) -> dict:
    """A grid, checked: every variant's settings are valid before the first run begins."""
    grid = read_yaml(path)
    if not isinstance(grid, dict) or set(grid) != {"steps", "base", "variants"}:
        raise InvalidInput(f"{path}: expected the sections base, steps, variants")
    variants = grid["variants"]
    if not isinstance(variants, dict) or not variants or next(iter(variants.values())):
        raise InvalidInput(
            f"{path}: the first variant is what the others are compared with and changes nothing; "
            "write it as `name: {}`"
        )
    for name in variants:
        settings_of(grid, name)
    return grid


def settings_of(grid: Mapping, name: str) -> tuple[DenoiserConfig, TrainConfig]:
    """The settings of one variant: the base's, overridden by what it changes.

    Of a `corruption` that a variant names, what it leaves out has the default, not the base's.
    """
    base = read_sections(grid["base"], "base")
    changes = read_sections(grid["variants"][name], f"variant {name!r}")
    parts = {part: base[part] | changes[part] for part in base}
    training = TrainConfig.from_dict(parts["training"] | {"steps": grid["steps"]})
    return DenoiserConfig.from_dict(parts["denoiser"]), training


def run_variants(
    grid: Mapping,
    pairs: Path,
    prompts: Sequence[str],
    folder: Path,
    model: str,
    device: str,
    rank: int = 0,
    processes: int = 1,
    most_pairs: int = 256,
) -> Iterator[tuple[str, dict]]:
    """Train and measure this process's share of the variants, each into a file of `folder`.

    Yields name and result of each variant that was run; those with a result already are skipped.

    Args:
        pairs: training data; one in fifty is held out, and `most_pairs` of those measured on.
        prompts: not trained on, to be answered noiselessly.
    """
    train_pairs, held_out = hold_out(read_pairs(pairs))
    counts = {"pairs_to_train_on": len(train_pairs), "pairs_held_out": len(held_out)}
    utils.check_least(1, **counts, prompts=len(prompts))
    shared = dict(zip(SHARED, (model, utils.sha256_file(pairs), len(train_pairs)), strict=True))
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in list(enumerate(grid["variants"]))[rank::processes]:
        path = folder / f"{number:02d}.json"
        denoiser_config, training = settings_of(grid, name)
        expected = shared | {"steps": training.steps}
        expected |= {"denoiser": denoiser_config.to_dict(), "training": training.to_dict()}
        if path.exists():
            utils.check_same(path, _read_result(path, name), expected, OTHER)
            continue
        denoiser = Denoiser.create(load_backbone(model, device), denoiser_config, training.seed)
        # What cannot be measured must not be trained first.
        pack(denoiser.backbone, held_out[:most_pairs], denoiser_config.context)
        started = time.monotonic()
        log = train(denoiser, train_pairs, training, held_out=())
        result = {"variant": name, **expected, "seconds": round(time.monotonic() - started, 1)}
        result["adapter_parameters"] = denoiser.parameter_counts()["adapter"]
        result["tokens"] = log[-1]["tokens"]
        result |= evaluate(denoiser, held_out[:most_pairs], prompts, NOISELESS)
        utils.write_json(path, result)
        yield name, result


def _read_result(path: Path, name: str) -> dict:
    with damaged_file(path, "delete it and run `lad ablate` again"):
        result = checked(path.read_bytes(), Result)
        if result["variant"] != name:
            raise ValueError(f"it is of the variant {result['variant']!r}, not {name!r}")
        return result


def collect(grid: Mapping, folder: Path, out: Path, command: str = "lad ablate") -> bool:
    """Join the results into one file, in the grid's order; False while some are missing.

    The file has the command, the base's settings, provenance (a list where processes differed), and
    for each variant its changes ("training.seed": 1), its cost, and its measures with intervals.
    """
    paths = [folder / f"{number:02d}.json" for number in range(len(grid["variants"]))]
    if not all(path.exists() for path in paths):
        return False
    results = [_read_result(path, name) for path, name in zip(paths, grid["variants"], strict=True)]
    shared = {key: results[0].get(key) for key in (*SHARED, "steps")}
    for path, result in zip(paths, results, strict=True):
        utils.check_same(path, result, shared, OTHER)
    with damaged_file(folder, "delete what is damaged there and run `lad ablate` again"):
        data = {"command": command} | _join(results)
    utils.write_json(out, data)
    return True


def _join(results: Sequence[Mapping]) -> dict:
    """What the figure needs of the results, of which the base is the first, and what made them."""
    base = results[0]
    origin = {key: base[key] for key in SHARED} | {
        "pairs_measured": base["pairs"]["used"],
        "prompts": base["prompts"]["used"],
        "repair": {key: base["repair"][key] for key in ("severity", "iterations")},
    }
    for key in base["provenance"]:
        values = list(dict.fromkeys(result["provenance"][key] for result in results))
        if key not in ("seconds", "adapter_sha256"):
            origin[key] = values[0] if len(values) == 1 else values
    usual = _settings(base)
    variants = [
        {
            "name": one["variant"],
            "changes": {k: v for k, v in _settings(one).items() if v != usual.get(k)},
            **{key: one[key] for key in ("adapter_parameters", "tokens", "seconds")},
            "measures": {key: one["masked"]["0.5"][key] for key in ("ce", "accuracy")}
            | {key: one["repair"][key] for key in ("restored", "kept")}
            | {key: one["settings"]["noiseless"][key] for key in QUALITY},
        }
        for one in results
    ]
    noiseless = {"noiseless": base["settings"]["noiseless"]["config"]}
    return {
        "steps": base["training"]["steps"],
        "base": base["variant"],
        "settings": {part: base[part] for part in SECTIONS} | noiseless,
        "provenance": origin,
        "variants": variants,
    }


def _settings(result: Mapping) -> dict:
    """Settings as one level, such as {"training.corruption.all_masked": 0.1}."""
    [flat] = pd.json_normalize([{part: result[part] for part in SECTIONS}]).to_dict("records")
    return flat
