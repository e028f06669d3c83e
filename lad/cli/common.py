"""What the commands share: their common options, and how they speak."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lad.utils import InvalidInput

if TYPE_CHECKING:
    from lad.diffusion.config import RefineConfig
    from lad.diffusion.denoiser import Denoiser
    from lad.diffusion.drafts import Draft

Model = Annotated[
    str,
    typer.Option(
        help="Backbone: a name (see lad info), OWNER/NAME on the hub, or a folder; "
        "with :4bit or :8bit quantised."
    ),
]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder of an adapter; the shipped one by default.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
KeepTrace = Annotated[Path | None, typer.Option(help="Keep the whole run in this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_least(least: int, **numbers: int | None) -> None:
    """Refuse a number below `least`; None is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InvalidInput(f"{name} = {number}: expected at least {least}")


def print_json(values: dict) -> None:
    """One object on stdout, in ASCII: what a terminal could not show is escaped."""
    typer.echo(json.dumps(values, ensure_ascii=True, indent=2))


def answer(
    denoiser: Denoiser,
    prompt: str,
    config: RefineConfig,
    draft: Draft | None = None,
    *,
    trace: Path | None,
    as_json: bool,
    told: dict,
) -> None:
    """Refine, keep the run if a file is named, and say the answer: alone, watched, or as JSON.

    `told` is what a command adds to the JSON object.
    """
    from lad.diffusion.sampler import record

    start = {} if draft is None else {"draft": draft.tokens, "fixed": draft.fixed}
    watched = sys.stdout.isatty() and not as_json
    if watched:
        from lad.viz.terminal import watch

        run = watch(denoiser, prompt, config, **start)
    else:
        run = record(denoiser, prompt, config, **start)
    if trace is not None:
        run.save(trace)
    if as_json:
        print_json(
            {
                "answer": run.answer,
                "tokens": run.tokens,
                "iterations": len(run.steps),
                "stopped_early": run.stopped_early,
                "nfe": run.nfe,
                "seconds": round(run.seconds, 3),
                "model": denoiser.backbone.spec.name,
                "adapter_sha256": denoiser.adapter_sha256,
                "seed": config.seed,
            }
            | told
            | {"config": config.to_dict()}
        )
    elif not watched:
        typer.echo(run.answer)
