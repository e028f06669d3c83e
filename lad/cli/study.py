"""`lad study` and `lad frontier`: what refinement does, over many answers; numbers for figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lad.cli import common

ON_A_CPU = {"prompts": 6, "pairs": 24}  # about five minutes on two cores


def study(
    out: Annotated[Path | None, Option(help="By default figures/data/study.json.")] = None,
    iterations: Annotated[str, Option(help="Rising, separated by commas.")] = "1,2,4,8,16,32,64",
    n_prompts: Annotated[int | None, Option(help="Prompts: 6 on a CPU, else 100.", min=1)] = None,
    n_pairs: Annotated[int | None, Option(help="Pairs: 24 on a CPU, else all.", min=1)] = None,
    seed: Annotated[int, Option(help="Of the masks.")] = 0,
    batch_size: common.BatchSize = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Follow held-out answers iteration by iteration, in three ways to refine."""
    from lad.evaluation.convergence import run_study
    from lad.training import held_out_prompts, read_pairs
    from lad.utils import check_writable, figures_folder

    steps = common.parse_numbers("iterations", iterations)
    path = out if out or as_json else figures_folder() / "data" / "study.json"
    if path is not None:
        check_writable(path)
    denoiser, backbone = common.load_with_baseline(model, adapter, device)
    few = ON_A_CPU if denoiser.device.type == "cpu" else {}
    prompts = common.evenly_spaced(held_out_prompts(), n_prompts or few.get("prompts"))
    pairs = common.evenly_spaced(read_pairs(common.PAIRS), n_pairs or few.get("pairs"))
    command = f"lad study --iterations {iterations} --n-prompts {len(prompts)} "
    command += f"--n-pairs {len(pairs)} --seed {seed}"
    with common.progress() as on_progress:
        options = seed, batch_size, backbone, command, on_progress
        result = run_study(denoiser, prompts, pairs, steps, *options)
    if path is not None:
        common.save_json(path, result)
    common.print_result(result, as_json, str(path))


def frontier(
    out: Annotated[Path | None, Option(help="By default figures/data/frontier.json.")] = None,
    n_prompts: Annotated[int | None, Option(help="Prompts: 6 on a CPU, else 100.", min=1)] = None,
    batch_size: common.BatchSize = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Sweep each strategy's main setting: quality against tokens a forward pass."""
    from lad.evaluation.frontier import run_frontier
    from lad.training import held_out_prompts
    from lad.utils import check_writable, figures_folder

    path = out if out or as_json else figures_folder() / "data" / "frontier.json"
    if path is not None:
        check_writable(path)
    denoiser, backbone = common.load_with_baseline(model, adapter, device)
    few = ON_A_CPU["prompts"] if denoiser.device.type == "cpu" else None
    prompts = common.evenly_spaced(held_out_prompts(), n_prompts or few)
    command = f"lad frontier --n-prompts {len(prompts)}"
    with common.progress() as on_progress:
        options = {"backbone": backbone, "command": command, "on_progress": on_progress}
        result = run_frontier(denoiser, prompts, batch_size=batch_size, **options)
    if path is not None:
        common.save_json(path, result)
    common.print_result(result, as_json, str(path))
