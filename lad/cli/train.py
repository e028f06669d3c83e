"""`lad train`: an adapter from pairs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import AsJson, Device, Model, choose_device, print_json
from lad.utils import InvalidInput


def train(
    pairs: Annotated[Path | None, typer.Option(help="JSON Lines of prompt and answer.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for log, checkpoint, adapter.")] = None,
    model: Model = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="Start from this adapter.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the run's settings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall time instead of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, noise and initial weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only measure: memory, tokens/s, hours. No pairs.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Add a dry run's numbers to this JSON file.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train an adapter; under `torchrun`, on every GPU it is given."""
    import torch
    import torch.distributed as dist

    from lad.diffusion.denoiser import DenoiserConfig
    from lad.training import TrainConfig, read_config, read_pairs
    from lad.training import train as run_training
    from lad.training.config import check_names

    if not dry_run and (pairs is None or out is None):
        missing = "--pairs" if pairs is None else "--out"
        raise InvalidInput(
            f"{missing} is missing: expected --pairs FILE and --out FOLDER, or --dry-run"
        )
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
    data = [] if dry_run else read_pairs(pairs)

    where = choose_device(device)
    rank = int(os.environ.get("RANK", 0))
    if "RANK" in os.environ:
        gpu = where.startswith("cuda")
        where = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else where
        if gpu:
            torch.cuda.set_device(where)
        dist.init_process_group("nccl" if gpu else "gloo")

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
        denoiser = load(model, adapter, values.get("denoiser", {}), training, where)
        if dry_run:
            measure(denoiser, training, steps or 20, record, as_json, quiet=rank > 0)
            return
        run_training(
            denoiser, data, training, out, resume=resume, on_row=tell if rank == 0 else None
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        where = "adapter" if (out / "adapter" / "denoiser.json").exists() else "checkpoint.pt"
        typer.echo(f"wrote {out / where}", err=True)


def load(model: str, adapter: Path | None, settings: dict, training, where: str):
    """The denoiser where it will be trained; each process its shard of it, if that is wanted."""
    import torch

    from lad.diffusion.denoiser import Denoiser, DenoiserConfig, load_denoiser
    from lad.models.registry import get_backbone, load_backbone
    from lad.training.parallel import in_turn
    from lad.training.sharding import all_processes, check_shardable, shard

    def load_to(at: str, dtype: torch.dtype | None) -> Denoiser:
        if adapter is not None:
            return load_denoiser(model, adapter, at, dtype, merge=False)
        backbone = load_backbone(model, at, dtype)
        return Denoiser.create(backbone, DenoiserConfig(**settings), training.seed)

    if not training.shard:
        return load_to(where, None)
    check_shardable(get_backbone(model).bits, where)
    mesh = all_processes(where)
    # In the host's memory first, so that no GPU need hold the whole; nor need the host, but once.
    with in_turn(torch.device(where)):
        denoiser = load_to("cpu", None if where == "cpu" else torch.bfloat16)
        shard(denoiser, where, mesh)
    return denoiser


def measure(denoiser, training, steps: int, record: Path | None, as_json: bool, quiet: bool):
    """A dry run, told by the first process alone."""
    from lad.evaluation.throughput import add_run, training_throughput

    def tell(done: int, total: int) -> None:
        if not quiet:
            typer.echo(f"step {done} of {total}", err=True)

    run = training_throughput(denoiser, training, steps, tell)
    if run is None:
        return
    command = (
        f"torchrun --nproc-per-node={run['processes']} -m lad train --dry-run"
        f" --model {run['provenance']['model']} --steps {steps} --record"
    )
    run = {"command": command, **run}  # the settings stand beside it
    if record is not None:
        add_run(record, run)
    if as_json:
        print_json(run)
        return
    gib = 2**30
    typer.echo(
        f"{run['provenance']['model']}, {run['bits']} bit, on {run['processes']} x "
        f"{run['provenance']['processor']}{', sharded' if training.shard else ''}: "
        f"{run['tokens_per_second']:,.0f} tokens/s over "
        f"{run['steps']} steps of {run['positions_per_step']:,} positions, "
        f"{run['peak_memory'] / gib:.1f} GiB at most, "
        f"{100 * run['of_matrix_rate']:.0f} % of the matrix rate measured here; "
        f"{run['aim_tokens'] / 1e6:.0f} million tokens take {run['hours']:.1f} h"
    )
