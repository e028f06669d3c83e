"""`lad study`, `lad frontier`, `lad ablate`, `lad gallery`: what figures and pages are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Option, echo

from lad.cli import common
from lad.utils import InvalidInput, check_writable, figures_folder

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
    from lad.diffusion.adapter import load_denoiser
    from lad.evaluation.convergence import run_study
    from lad.training import read_pairs

    steps, path = common.parse_numbers("iterations", iterations), _writable("study", out, as_json)
    denoiser = load_denoiser(model, adapter, common.choose_device(device))
    prompts = _prompts(denoiser, n_prompts)
    few = ON_A_CPU["pairs"] if denoiser.device.type == "cpu" else None
    pairs = common.evenly_spaced(read_pairs(common.PAIRS), n_pairs or few)
    command = f"lad study --iterations {iterations} --n-prompts {len(prompts)} "
    command += f"--n-pairs {len(pairs)} --seed {seed}"
    result = run_study(denoiser, prompts, pairs, steps, seed, batch_size, command)
    if path is not None:
        common.save_json(path, result)
    common.print_result(result, as_json, str(path))


@common.stopped("strategies done are in the file; --strategy adds one of the others")
def frontier(
    out: Out = None,
    strategy: Annotated[
        str | None, Option(help="One alone; what --out has of others stays.")
    ] = None,
    n_prompts: Prompts = None,
    batch_size: common.BatchSize = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Sweep each strategy's main setting: quality against tokens a forward pass."""
    from lad.diffusion.adapter import load_denoiser
    from lad.evaluation.frontier import SWEEPS, added, read_frontier, run_frontier

    path, sweeps = _writable("frontier", out, as_json), SWEEPS
    if strategy is not None:
        if strategy not in SWEEPS:
            names = ", ".join(SWEEPS)
            raise InvalidInput(f"unknown strategy {strategy!r}: expected one of {names}")
        sweeps = {strategy: SWEEPS[strategy]}
    denoiser = load_denoiser(model, adapter, common.choose_device(device))
    prompts = _prompts(denoiser, n_prompts)
    command = f"lad frontier --n-prompts {len(prompts)}"
    command += f" --batch-size {batch_size}" if batch_size else ""
    command += f" --strategy {strategy}" if strategy else ""
    before: dict = {}
    if strategy and path is not None and path.exists():
        before = read_frontier(path, denoiser.adapter_sha256)

    def keep(result: dict) -> None:
        if path is not None:
            common.save_json(path, added(before, result))

    result = run_frontier(denoiser, prompts, sweeps, batch_size, command, keep)
    common.print_result(added(before, result), as_json, str(path))


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

    check_writable(out)
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
        echo(line + f"kept {kept}, noiseless repeats {repeats}", err=True)
    command = f"lad ablate --grid {grid.name} --n-pairs {n_pairs} --n-prompts {n_prompts}"
    command += f" --steps {steps}" if steps is not None else ""
    if collect(variants, folder, out, command):
        echo(f"wrote {out}")


def gallery(
    out: Annotated[Path | None, Option(help="By default figures/data/gallery.jsonl.gz.")] = None,
    n_prompts: Annotated[int, Option(help="Of the six prompts; texts likewise.", min=1)] = 6,
    presets: Annotated[str | None, Option(help="Separated by commas; all by default.")] = None,
    seeds: Annotated[int, Option(help="How many, from 0 up.", min=1)] = 3,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
) -> None:
    """Record a run for every choice of the report's menus: prompts, presets, seeds, texts."""
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import PRESETS
    from lad.evaluation.generation import bar

    with common.notebooks_extra():
        from lad.widgets import recorded

    path = out or figures_folder() / "data" / recorded.FILE
    check_writable(path)
    names = list(PRESETS) if presets is None else [name.strip() for name in presets.split(",")]
    where = common.choose_device(device)
    wanted = list(recorded.choices(recorded.PROMPTS[:n_prompts], names, range(seeds)))
    denoiser, command = load_denoiser(model, adapter, where), common.command_line()
    traces = [recorded.run_choice(denoiser, choice, command) for choice in bar(wanted, "runs")]
    recorded.save_runs(traces, path)
    print(f"{path}: {len(traces)} runs, {path.stat().st_size / 1e6:.1f} MB")
