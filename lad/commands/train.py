"""`lad train`: an adapter from pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lad.commands.common import Device, Model, choose_device


def train(
    pairs: Annotated[Path, typer.Option(help="JSON Lines of prompt and answer.")],
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoint and adapter.")],
    model: Model = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="Start from this adapter.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the run's settings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall time instead of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, noise and initial weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    device: Device = "auto",
) -> None:
    """Train an adapter; under `torchrun`, on every GPU it is given."""
    import torch
    import torch.distributed as dist

    from lad.backbones import load_backbone
    from lad.denoiser import Denoiser, DenoiserConfig, load_denoiser
    from lad.training import TrainConfig, read_config, read_pairs
    from lad.training import train as run_training
    from lad.training.config import check_names

    values = read_config(config) if config is not None else {}
    check_names("denoiser", values.get("denoiser", {}), DenoiserConfig)
    settings = dict(values.get("training", {}))
    if minutes is not None:
        settings |= {"minutes": minutes, "steps": steps}
    elif steps is not None:
        settings |= {"steps": steps, "minutes": None}
    if seed is not None:
        settings["seed"] = seed
    training = TrainConfig.from_dict(settings)
    data = read_pairs(pairs)

    where = choose_device(device)
    rank = int(os.environ.get("RANK", 0))
    if "RANK" in os.environ:
        gpu = where.startswith("cuda")
        where = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else where
        if gpu:
            torch.cuda.set_device(where)
        dist.init_process_group("nccl" if gpu else "gloo")
    if adapter is not None:
        denoiser = load_denoiser(model, adapter, where, merge=False)
    else:
        denoiser = Denoiser.create(
            load_backbone(model, where), DenoiserConfig(**values.get("denoiser", {})), training.seed
        )

    def tell(row: dict) -> None:
        if "validation" in row:
            scores = [
                f"{100 * float(f):.0f} % masked: CE {s['ce']:.3f}, accuracy {s['accuracy']:.3f}"
                for f, s in row["validation"].items()
            ]
            line = "held out, " + "; ".join(scores)
        else:
            rate = row["tokens"] / max(row["seconds"], 1e-9)
            line = f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}, {rate:,.0f} tokens/s"
        typer.echo(f"step {row['step']:>6}  {row['seconds']:>7.1f} s  {line}", err=True)

    try:
        run_training(
            denoiser, data, training, out, resume=resume, on_row=tell if rank == 0 else None
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        where = "adapter" if (out / "adapter" / "denoiser.json").exists() else "checkpoint.pt"
        typer.echo(f"wrote {out / where}", err=True)
