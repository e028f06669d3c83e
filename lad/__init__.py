"""LAD, the LoRA-Adapted Denoiser: a causal LLaMA that refines whole answers, draft after draft.

    utils       errors, profile, figures folder, writing to a disk
    models      the frozen backbones: names, downloads, loading, chat template
    diffusion   the method: corruption, schedule, remasking, denoiser, sampler, trace
    accel       the GPU fast path: compiled layers, CUDA graphs
    training    pairs of prompt and answer, loss, trainer
    evaluation  benchmarks, quality, convergence, speed
    viz         traces and results as figures, HTML and text
    widgets     the notebooks' controls, and the demo page
    report      executed notebooks as static pages
    cli         the command line

Each line may import the lines above it, never those below. Importing this package is light: torch
and transformers are loaded when a name that needs them is first used.

Reference: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations.
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# torch's threads wait for each other by spinning, which stalls when another process has the core:
# measured with 2 kernels on 2 cores, 8 s an iteration instead of 0.4 s. A short spin costs nothing
# measurable otherwise. It must be set before torch loads OpenMP; a value of your own is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# name -> the module it lives in
_MODULES = {
    "AdapterMismatch": "utils",
    "AssetUnavailable": "utils",
    "CacheError": "utils",
    "DamagedFile": "utils",
    "InvalidInput": "utils",
    "LADError": "utils",
    "NumericalError": "utils",
    "profile": "utils",
    "figures_folder": "utils",
    "BACKBONES": "models.registry",
    "get_backbone": "models.registry",
    "load_backbone": "models.registry",
    "CorruptionConfig": "diffusion.config",
    "corrupt": "diffusion.corruption",
    "Denoiser": "diffusion.denoiser",
    "DenoiserConfig": "diffusion.config",
    "load_denoiser": "diffusion.adapter",
    "PRESETS": "diffusion.config",
    "RefineConfig": "diffusion.config",
    "record": "diffusion.sampler",
    "refine": "diffusion.sampler",
    "refine_batch": "diffusion.sampler",
    "Step": "diffusion.trace",
    "Trace": "diffusion.trace",
    "TrainConfig": "training",
    "train": "training",
    "Estimate": "evaluation.statistics",
    "evaluate": "evaluation.adapter_eval",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'lad' has no attribute {name!r}")
    return getattr(import_module(f"lad.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
