"""How fast a large model is, measured with random weights of its true shape.

What an iteration costs does not hang on what the weights say, so nothing is downloaded: see
`lad.models.random_weights`. The numbers are those of `lad.evaluation.bench` for refinement (against its floor on the same
card, against the plain loops of `lad.diffusion.reference`, against left to right), and those of
`lad.evaluation.dry_run` for training. Each measurement is a run of its own, perhaps on another number
of GPUs, and is added to one file, from which the figure is drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

from lad.diffusion.config import DenoiserConfig, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.adapter_eval import provenance
from lad.evaluation.bench import bench
from lad.evaluation.dry_run import dry_run
from lad.evaluation.floor import floor, machine_rates
from lad.models.registry import load_backbone
from lad.training.config import TrainConfig
from lad.utils import CacheError, DamagedFile, write_whole

__all__ = [
    "PROMPT",
    "add_run",
    "floor_of_bits",
    "make_denoiser",
    "measure_iterations",
    "measure_training",
]

SCHEMA = 1
ROUNDS = 4  # of one prompt each at batch 1; larger batches take it more than once
# About as long as an everyday prompt under LLaMA's template; the tiny tokenizer makes bytes of it.
PROMPT = "What do you know about Amsterdam, and about its canals?"

Progress = Callable[[str, int, int], object]


def make_denoiser(name: str, device: str | torch.device, config: DenoiserConfig) -> Denoiser:
    """A new adapter on a backbone, `NAME:random` for one of random weights."""
    return Denoiser.create(load_backbone(name, device), config)


def measure_iterations(
    name: str,
    device: str | torch.device,
    config: DenoiserConfig,
    windows: Sequence[int] = (256,),
    batches: Sequence[int] = (1, 8, 32),
    iterations: int = 8,
    reference_iterations: int | None = 1,
    graphs: bool = True,
    on_progress: Progress = lambda stage, done, total: None,
) -> dict:
    """Time refinement of one backbone; see `lad.evaluation.bench.bench` for what is compared, and how.

    Args:
        name: of the backbone, such as "llama-3.1-8b:random" or "llama-3.1-8b:random:4bit".
        iterations: of every run; random weights never settle, so all are taken.
        reference_iterations: that the plain loops are run for; None leaves them out.
        graphs: on a GPU, a forward pass is one CUDA graph.

    Returns:
        A run for `add_run`.
    """
    denoiser = make_denoiser(name, device, config)
    if not denoiser.backbone.spec.bits:
        denoiser.merge()
    if graphs and denoiser.device.type == "cuda":
        denoiser.capture()
    settings = RefineConfig(iterations=iterations, temperature=0.0, remasking="random", patience=0)
    result = bench(
        denoiser,
        load_backbone(name, device).model,
        [PROMPT] * ROUNDS,
        settings,
        windows,
        batches,
        0 if reference_iterations is None else 1,
        reference_iterations or None,
        on_progress,
    )
    if denoiser.backbone.spec.bits:
        prompt = len(denoiser.encode(PROMPT))
        for cell in result["cells"]:
            lowest = floor_of_bits(denoiser, result["rates"], cell["batch"], prompt, cell["window"])
            cell["floor"] = lowest
            own = cell["sampler"]
            for name in ("", "_of_normals"):
                share = own["iteration_seconds"] / lowest["seconds" + name]
                own["iteration_by_floor" + name] = share
    return {
        "kind": "iteration",
        "bits": denoiser.backbone.spec.bits or 8 * denoiser.causal_lm.dtype.itemsize,
        "graphs": denoiser.graphs is not None,
        "denoiser": denoiser.config.to_dict(),
        **{key: result[key] for key in ("provenance", "rates", "config", "cells")},
    }


def floor_of_bits(denoiser: Denoiser, rates: dict, batch: int, prompt: int, window: int) -> dict:
    """`lad.evaluation.floor.floor` of a model whose linear layers are quantised.

    Their tensors are packed, so shapes are taken from a plain model of the same configuration; it
    is multiplied in 16 bit all the same, and only the bytes that are read are fewer.
    """
    plain_dtype = denoiser.causal_lm.lm_head.weight.dtype
    config = denoiser.causal_lm.config.__class__(
        **{
            k: v
            for k, v in denoiser.causal_lm.config.to_dict().items()
            if k != "quantization_config"
        }
    )
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(config, dtype=plain_dtype)
    plain = SimpleNamespace(causal_lm=twin, config=denoiser.config)
    lowest = floor(plain, rates, batch, prompt, window)
    head = twin.lm_head.weight.numel() * plain_dtype.itemsize
    layers = lowest["weight_bytes"] - head
    bits = denoiser.backbone.spec.bits or 8 * plain_dtype.itemsize
    weight_bytes = head + layers * bits // (8 * plain_dtype.itemsize)
    by_memory = weight_bytes / rates["bytes_per_second"]
    return lowest | {
        "weight_bytes": weight_bytes,
        "memory_seconds": by_memory,
        "seconds": max(by_memory, lowest["arithmetic_seconds"]),
        "seconds_of_normals": max(
            by_memory, lowest["flops"] / rates["flops_per_second_of_normals"]
        ),
    }


def measure_training(
    denoiser: Denoiser,
    config: TrainConfig,
    steps: int = 20,
    on_step: Callable[[int, int], object] = lambda done, total: None,
) -> dict:
    """A dry run, with what this machine multiplies at best; a run for `add_run`."""
    rates = machine_rates(denoiser.device, denoiser.causal_lm.dtype)
    measured = dry_run(denoiser, config, steps, on_step)
    return {
        "kind": "training",
        "bits": denoiser.backbone.spec.bits or 8 * denoiser.causal_lm.dtype.itemsize,
        "provenance": provenance(denoiser),
        "rates": rates,
        "of_matrix_rate": measured["flops_per_second"] / rates["flops_per_second"],
        **measured,
    }


def add_run(path: Path, run: dict) -> None:
    """Add a measurement to a file, which is made if it is not there.

    Raises:
        DamagedFile: it is there and holds something else.
        CacheError: the disk refuses.
    """
    runs: list[dict] = []
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if held["schema"] != SCHEMA:
                raise ValueError(f"schema {held['schema']}, this code writes {SCHEMA}")
            runs = list(held["runs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFile(
                f"{path} holds no measurements ({error!r}): expected what `lad bench-shape` wrote; "
                "name another file"
            ) from error
    text = json.dumps({"schema": SCHEMA, "runs": [*runs, run]}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise CacheError(
            f"cannot write {path} ({error}): expected a folder that can be written to"
        ) from error
