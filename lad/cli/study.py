"""`lad study` and `lad frontier`: what refinement does, over many answers; numbers for figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lad.cli import common
from lad.utils import check_writable, figures_folder

ON_A_CPU = {"prompts": 6, "pairs": 24}  # about seven minutes on two cores, the frontier twenty
Out = Annotated[Path | None, Option(help="By default figures/data/NAME.json, by the command.")]
Prompts = Annotated[int | None, Option(help="Prompts: 6 on a CPU, else 100.", min=1)]


def study(
    out: Out = None,
    iterations: Annotated[str, Option(help="Rising, separated by commas.")] = "1,2,4,8,16,32,64",
    n_prompts: Prompts = None,
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
    from lad.training import read_pairs

    steps, path = common.parse_numbers("iterations", iterations), _writable("study", out, as_json)
    denoiser, backbone = common.load_with_baseline(model, adapter, device)
    prompts = _prompts(denoiser, n_prompts)
    few = ON_A_CPU["pairs"] if denoiser.device.type == "cpu" else None
    pairs = common.evenly_spaced(read_pairs(common.PAIRS), n_pairs or few)
    command = f"lad study --iterations {iterations} --n-prompts {len(prompts)} "
    command += f"--n-pairs {len(pairs)} --seed {seed}"
    with common.progress() as on_progress:
        options = seed, batch_size, backbone, command, on_progress
        result = run_study(denoiser, prompts, pairs, steps, *options)
    _write(path, result, as_json)


def frontier(
    out: Out = None,
    n_prompts: Prompts = None,
    batch_size: common.BatchSize = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Sweep each strategy's main setting: quality against tokens a forward pass."""
    from lad.evaluation.frontier import SWEEPS, run_frontier

    path = _writable("frontier", out, as_json)
    denoiser, backbone = common.load_with_baseline(model, adapter, device)
    prompts = _prompts(denoiser, n_prompts)
    command = f"lad frontier --n-prompts {len(prompts)}"
    with common.progress() as on_progress:
        options = batch_size, backbone, command, on_progress
        result = run_frontier(denoiser, prompts, SWEEPS, *options)
    _write(path, result, as_json)


def _writable(name: str, out: Path | None, as_json: bool) -> Path | None:
    """Where the numbers go, checked before any work; None where they are printed only."""
    path = out if out or as_json else figures_folder() / "data" / f"{name}.json"
    if path is not None:
        check_writable(path)
    return path


def _prompts(denoiser, n: int | None) -> list[str]:
    from lad.training import held_out_prompts

    few = ON_A_CPU["prompts"] if denoiser.device.type == "cpu" else None
    return common.evenly_spaced(held_out_prompts(), n or few)


def _write(path: Path | None, result: dict, as_json: bool) -> None:
    if path is not None:
        common.save_json(path, result)
    common.print_result(result, as_json, str(path))
