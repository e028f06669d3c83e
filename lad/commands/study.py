"""`lad study`: what refinement does, over many answers; the numbers behind five figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lad.commands.common import Adapter, AsJson, Device, Model, choose_device, print_json
from lad.commands.evaluate import DATA, progress, read_prompts, spread
from lad.errors import CacheError, InvalidInput

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
    import torch

    from lad.assets import write_whole
    from lad.backbones import load_backbone
    from lad.denoiser import load_denoiser
    from lad.settings import figures_folder
    from lad.study import run_study
    from lad.training import read_pairs

    try:
        numbers = [int(one) for one in iterations.split(",")]
    except ValueError:
        raise InvalidInput(
            f"iterations = {iterations!r}: expected whole numbers, such as 1,4,16,64"
        ) from None
    for name, number in (("n_prompts", n_prompts), ("n_pairs", n_pairs)):
        if number is not None and number < 1:
            raise InvalidInput(f"{name} = {number}: expected at least 1")
    prompts = read_prompts(DATA / "held-out.txt")
    pairs = read_pairs(DATA / "held-out-pairs.jsonl.gz")
    where = choose_device(device)
    denoiser = load_denoiser(model, adapter, where)
    slow = denoiser.device.type == "cpu"
    n_prompts = n_prompts or (ON_A_CPU["prompts"] if slow else len(prompts))
    n_pairs = n_pairs or (ON_A_CPU["pairs"] if slow else len(pairs))
    # Taking a merged adapter out again is exact enough in float32 alone.
    exact = denoiser.causal_lm.dtype == torch.float32
    with progress() as tell:
        result = run_study(
            denoiser,
            spread(prompts, n_prompts),
            spread(pairs, n_pairs),
            numbers,
            seed=seed,
            batch_size=batch_size,
            backbone=None if exact else load_backbone(model, where),
            command=f"lad study --iterations {iterations} --n-prompts {n_prompts} "
            f"--n-pairs {n_pairs} --seed {seed}",
            on_progress=tell,
        )
    if as_json:
        print_json(result)
        if out is None:
            return
    path = out or figures_folder() / "data" / "study.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        raise CacheError(
            f"cannot write {path} ({error.strerror}): expected a folder with room that can be "
            "written; choose another with --out"
        ) from error
    if not as_json:
        typer.echo(str(path))
