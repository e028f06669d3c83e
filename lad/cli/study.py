"""`lad study`: what refinement does, over many answers; the numbers behind five figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli.bench import numbers, writable
from lad.cli.common import Adapter, AsJson, Device, Model, check_least, print_json
from lad.cli.evaluate import DATA, load_both, progress, read_prompts, some

ON_A_CPU = {"prompts": 6, "pairs": 24}  # about five minutes on two cores


def study(
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default figures/data/study.json.")
    ] = None,
    iterations: Annotated[
        str, typer.Option(help="Iterations to allow, rising, separated by commas.")
    ] = "1,2,4,8,16,32,64",
    n_prompts: Annotated[
        int | None, typer.Option(help="Prompts answered: 6 on a CPU, else all 100.")
    ] = None,
    n_pairs: Annotated[
        int | None, typer.Option(help="Pairs for the calibration: 24 on a CPU, else all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Answers at once.")] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Follow held-out answers iteration by iteration, in three ways to refine."""
    from lad.evaluation.convergence import run_study
    from lad.training import read_pairs
    from lad.utils import figures_folder, write_json

    steps = numbers("iterations", iterations)
    check_least(1, n_prompts=n_prompts, n_pairs=n_pairs, batch_size=batch_size)
    prompts = read_prompts(DATA / "held-out.txt")
    pairs = read_pairs(DATA / "held-out-pairs.jsonl.gz")
    denoiser, backbone = load_both(model, adapter, device)
    prompts = some(prompts, n_prompts, ON_A_CPU["prompts"], denoiser)
    pairs = some(pairs, n_pairs, ON_A_CPU["pairs"], denoiser)
    with progress() as tell:
        result = run_study(
            denoiser,
            prompts,
            pairs,
            steps,
            seed=seed,
            batch_size=batch_size,
            backbone=backbone,
            command=f"lad study --iterations {iterations} --n-prompts {len(prompts)} "
            f"--n-pairs {len(pairs)} --seed {seed}",
            on_progress=tell,
        )
    if as_json:
        print_json(result)
        if out is None:
            return
    path = out or figures_folder() / "data" / "study.json"
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    if not as_json:
        typer.echo(str(path))
