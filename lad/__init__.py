"""LAD, the LoRA-Adapted Denoiser: a causal LLaMA refining whole answers, draft after draft.

Importing this package is light: torch and transformers are loaded when a name that needs them is
first used.

The rooms, in the order in which data flows; none imports one that stands below it:

    errors, settings                 what is raised, profile and figures folder
    assets, hub, convert             where bytes come from, and how they reach the disk whole
    loading, shapes                  a folder becomes a model; random models of a true shape
    backbones, tiny                  the frozen models: one from a wheel, one for tests, the paper's
    corruption, schedule             noise in training, noise between iterations
    strategies, controls             what is masked again, every control and its range
    prompts, adapter                 text to token ids, LoRA on disk
    layers, denoiser                 a backbone's layers in few kernels; backbone plus adapter
    unpickling, importing            the authors' pickled checkpoint, read without running it
    passes                           its forward passes over the same prompts, captured on a GPU
    trace, recording                 what happened in a run, and how its steps become that
    drafts                           where a run starts: a damaged text, one with gaps, a length
    decide                           from logits to the next input, on the device
    rows, sampler, reference         a batch of prompts, its refinement, and one as plain loops
    metrics, answers                 numbers with intervals; what was said to prompts, measured
    benchmarks, harness              multiple-choice questions, how they are put and scored
    training                         pairs, self-distillation, objective, loop
    evaluation, ablation             how good a denoiser is, and by which choice
    floor, bench                     how fast, and how fast it could be
    true_shape                       how fast a large one, with random weights
    study                            what refinement does, over many answers
    damage, probes, cells            what figures show, computed: noise, model, drafts
    figures, view, replay, terminal  data to matplotlib, to HTML and text, to a terminal
    widgets, visitors, demo          controls, and the page that serves them to visitors
    pages, report                    executed notebooks as static pages
    commands, __main__               the command line

Reference: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations.
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# torch's threads wait for each other by spinning. On a laptop where something else is running too,
# such as a second notebook, each then waits for a thread that has no core: measured on 2 cores with
# 2 kernels, 8 s an iteration instead of 0.4 s. Spinning briefly costs nothing measurable when
# alone. It must be set before torch loads its OpenMP library; a choice of your own comes first.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# name -> the room it lives in
_ROOMS = {
    "AdapterMismatch": "errors",
    "AssetUnavailable": "errors",
    "CacheError": "errors",
    "DamagedFile": "errors",
    "InvalidInput": "errors",
    "LADError": "errors",
    "NumericalError": "errors",
    "profile": "settings",
    "figures_folder": "settings",
    "BACKBONES": "backbones",
    "get_backbone": "backbones",
    "load_backbone": "backbones",
    "CorruptionConfig": "corruption",
    "corrupt": "corruption",
    "Denoiser": "denoiser",
    "DenoiserConfig": "denoiser",
    "load_denoiser": "denoiser",
    "PRESETS": "sampler",
    "RefineConfig": "sampler",
    "record": "sampler",
    "refine": "sampler",
    "refine_batch": "sampler",
    "Step": "trace",
    "Trace": "trace",
    "TrainConfig": "training",
    "train": "training",
    "Estimate": "metrics",
    "evaluate": "evaluation",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module 'lad' has no attribute {name!r}")
    return getattr(import_module(f"lad.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
