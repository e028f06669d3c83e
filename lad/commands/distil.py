"""`lad distil`: training pairs, written by the backbone itself."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from lad.commands.common import Device, Model, choose_device


def distil(
    out: Annotated[Path, typer.Option(help="File of pairs to write, .jsonl or .jsonl.gz.")],
    batches: Annotated[int, typer.Option(help="How many batches of prompts to try.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a batch.")] = 2048,
    minutes: Annotated[float | None, typer.Option(help="Stop making batches after this.")] = None,
    context: Annotated[int, typer.Option(help="Most tokens of a pair.")] = 256,
    exclude: Annotated[
        Path | None, typer.Option(help="Passages, one a line, that no pair may share text with.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and answers.")] = 0,
    model: Model = "smollm2-135m",
    device: Device = "auto",
) -> None:
    """Let the backbone write training pairs; under `torchrun`, on every GPU it is given.

    Batches are kept beside the file and not made twice: a killed run goes on where it stopped.
    """
    import torch.distributed as dist

    from lad.backbones import load_backbone
    from lad.errors import InvalidInput
    from lad.training.distil import DistilConfig, collect
    from lad.training.distil import distil as run_distillation

    config = DistilConfig(batch_size=batch_size, context=context, seed=seed)
    if batches < 1:
        raise InvalidInput(f"batches = {batches}: expected at least 1")
    if exclude is not None and not exclude.is_file():
        raise InvalidInput(f"no passages at {exclude}: expected a text file, one passage a line")
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = choose_device(device)
    if where.startswith("cuda") and "LOCAL_RANK" in os.environ:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    started = time.monotonic()

    def tell(number: int, counts: dict) -> None:
        took = f"{time.monotonic() - started:>7.1f} s"
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if n)
        typer.echo(f"batch {number + 1:>5} of {batches}  {took}  {reasons}", err=True)

    folder = out.with_name(out.name.split(".")[0] + "-batches")
    run_distillation(
        load_backbone(model, where),
        folder,
        batches,
        config,
        rank,
        processes,
        on_batch=tell,
        more=lambda: minutes is None or time.monotonic() - started < 60 * minutes,
    )
    if processes > 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
        dist.barrier()  # the first process joins the batches when the last has made its own
        dist.destroy_process_group()
        if rank != 0:
            return
    passages = exclude.read_text(encoding="utf-8").splitlines() if exclude is not None else ()
    card = collect(folder, out, config, passages)
    typer.echo(f"wrote {out}: {card['pairs']:,} pairs out of {card['counts']['tried']:,} prompts")
