"""`lad ablate`: the same short training run, one choice changed at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from lad.cli import common

GRID = Path("configs/ablation.yaml")


@common.stopped("variants done are kept; the same command goes on")
def ablate(
    pairs: Annotated[Path, Option(help="JSON Lines of prompt and answer.")],
    out: Annotated[Path, Option(help="JSON file of results to write.")],
    grid: Annotated[Path, Option(help="YAML with steps, base and variants.")] = GRID,
    steps: Annotated[int | None, Option(help="Of every variant, for the grid's.")] = None,
    n_pairs: Annotated[int, Option(help="Held-out pairs to measure on.", min=1)] = 256,
    n_prompts: Annotated[int, Option(help="Held-out prompts to answer.", min=1)] = 100,
    model: common.Model = "smollm2-135m",
    device: common.Device = "auto",
) -> None:
    """Train and measure every variant of a grid; under `torchrun`, shared by all processes."""
    from lad.evaluation.ablation import collect, read_grid, run_variants
    from lad.evaluation.statistics import Estimate
    from lad.training import held_out_prompts

    variants = read_grid(grid)
    variants["steps"] = variants["steps"] if steps is None else steps
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = common.choose_device(device)
    if where == "cuda":
        import torch

        where = f"cuda:{rank % torch.cuda.device_count()}"
        torch.cuda.set_device(where)
    folder = out.with_name(out.stem + "-variants")
    prompts = held_out_prompts()[:n_prompts]
    for name, result in run_variants(
        variants, pairs, prompts, folder, model, where, rank, processes, n_pairs
    ):
        repair, repeats = result["repair"], result["settings"]["noiseless"]["repeats"]
        scores = (result["masked"]["0.5"]["ce"], repair["restored"], repair["kept"], repeats)
        ce, restored, kept, repeats = (Estimate.from_dict(s).text(1, 3) for s in scores)
        line = f"{name}: {result['seconds']:.0f} s, CE at 50 % masked {ce}, restored {restored}, "
        typer.echo(line + f"kept {kept}, noiseless repeats {repeats}", err=True)
    command = f"lad ablate --grid {grid.name} --n-pairs {n_pairs} --n-prompts {n_prompts}"
    command += f" --steps {steps}" if steps is not None else ""
    if collect(variants, folder, out, command):
        typer.echo(f"wrote {out}")
