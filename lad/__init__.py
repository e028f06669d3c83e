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
    name: module
    for module, names in {
        "utils": "LADError AdapterMismatch AssetUnavailable CacheError DamagedFile InvalidInput "
        "NumericalError profile figures_folder",
        "models.registry": "BACKBONES get_backbone load_backbone",
        "diffusion.config": "CorruptionConfig DenoiserConfig RefineConfig PRESETS",
        "diffusion.corruption": "corrupt",
        "diffusion.denoiser": "Denoiser",
        "diffusion.adapter": "load_denoiser",
        "diffusion.sampler": "record refine refine_batch",
        "diffusion.trace": "Step Trace",
        "training": "TrainConfig train",
        "evaluation.statistics": "Estimate",
        "evaluation.adapter_eval": "evaluate",
    }.items()
    for name in names.split()
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'lad' has no attribute {name!r}")
    return getattr(import_module(f"lad.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
