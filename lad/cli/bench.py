"""`lad bench`: how fast, beside plain loops and beside the backbone from left to right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli import common
from lad.utils import InvalidInput, disk_errors

# Windows, batches, prompts, how many of these by the reference, iterations of the reference.
DEFAULTS = {
    "cpu": ("64,128", "1,4", 4, 2, 1),  # five minutes on two cores
    "gpu": ("64,128,256,512", "1,32", 32, 3, 2),
    "random": ("256", "1,8,32", 4, 1, 1),
}
# Random weights never settle on an answer: all iterations are run.
RANDOM = {"iterations": 8, "temperature": 0.0, "remasking": "random", "patience": 0}


def bench(
    setting: Annotated[
        str, typer.Option(help="A preset, or a JSON file with settings.")
    ] = "default",
    windows: Annotated[
        str | None, typer.Option(help="Answer regions: 64,128 on a CPU, else 64,128,256,512.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="Prompts at once: 1,4 on a CPU, else 1,32.")
    ] = None,
    n_prompts: Annotated[
        int | None, typer.Option(help="Prompts, evenly spaced: 4 on a CPU, else 32.")
    ] = None,
    reference_prompts: Annotated[
        int | None, typer.Option(help="Of these, by the reference: 2 on a CPU, else 3; 0: none.")
    ] = None,
    reference_iterations: Annotated[
        int | None, typer.Option(help="Iterations it runs: 1 on a CPU, else 2; 0: all.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Of every run, for the setting's; 8 with random weights.")
    ] = None,
    prompts: Annotated[
        Path, typer.Option(help="Prompts, one a line.", show_default=False)
    ] = common.ASSETS / "held-out.txt",
    config: Annotated[
        Path | None, typer.Option(help="YAML whose section `denoiser` describes a new adapter.")
    ] = None,
    graphs: Annotated[bool, typer.Option(help="On a GPU, a pass is one CUDA graph.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object to this file.")] = None,
    record: Annotated[Path | None, typer.Option(help="Add it to this JSON file of runs.")] = None,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
    as_json: common.AsJson = False,
) -> None:
    """Time the sampler against its plain loops and the backbone's left-to-right answers.

    A model NAME:random (or NAME:random:4bit) has random weights of that shape and a new adapter:
    nothing is downloaded.
    """
    from lad.diffusion.config import RefineConfig
    from lad.evaluation.throughput import add_run, read_runs
    from lad.evaluation.throughput import bench as run_bench
    from lad.models.registry import load_backbone
    from lad.utils import sha256_file, write_json

    where, random = common.choose_device(device), ":random" in model
    given = (windows, batches, n_prompts, reference_prompts, reference_iterations)
    usual = DEFAULTS["random" if random else "cpu" if where == "cpu" else "gpu"]
    windows, batches, n_prompts, reference_prompts, reference_iterations = (
        default if value is None else value for value, default in zip(given, usual, strict=True)
    )
    sizes = common.parse_numbers("windows", windows), common.parse_numbers("batches", batches)
    common.check_least(1, n_prompts=n_prompts, iterations=iterations)
    common.check_least(0, reference_prompts=reference_prompts)
    common.check_least(0, reference_iterations=reference_iterations)
    # What cannot be written is said now, not after minutes of timing.
    if out is not None:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    if record is not None:
        read_runs(record)
    settings = {"random": RefineConfig(**RANDOM)} if random else common.read_settings(setting)
    if len(settings) != 1:
        raise InvalidInput(f"{len(settings)} settings: expected one preset or JSON file")
    [(setting, values)] = settings.items()
    if iterations is not None:
        values = RefineConfig.from_dict(values.to_dict() | {"iterations": iterations})
    texts = common.read_prompts(prompts)
    denoiser = load(model, adapter, where, config)
    captured = graphs and denoiser.device.type == "cuda"
    if captured:
        from lad.accel import capture

        capture(denoiser)

    def keep(result: dict) -> None:
        """Into the file after every cell, so that minutes of timing outlive a stop."""
        result |= {"kind": "iteration", "command": common.command_line(), "setting": setting}
        result["graphs"] = captured
        result["prompts"] |= {"of": len(texts), "file": prompts.name}
        result["prompts"]["sha256"] = sha256_file(prompts)
        if out is not None:
            with disk_errors(out):
                write_json(out, result)

    with common.progress() as on_progress:
        result = run_bench(
            denoiser,
            load_backbone(model, where).model,
            common.evenly_spaced(texts, n_prompts),
            values,
            *sizes,
            reference_prompts,
            reference_iterations or None,
            on_progress=on_progress,
            on_result=keep,
        )
    if record is not None:
        add_run(record, result)
    if as_json:
        common.print_json(result)
    else:
        show(result)


def load(model: str, adapter: Path | None, where: str, config: Path | None):
    """A trained denoiser, or a new adapter on random weights."""
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import DenoiserConfig
    from lad.diffusion.denoiser import Denoiser
    from lad.models.registry import load_backbone
    from lad.training.config import read_config

    if ":random" not in model:
        return load_denoiser(model, adapter, where)
    values = read_config(config).get("denoiser", {}) if config is not None else {}
    denoiser = Denoiser.create(load_backbone(model, where), DenoiserConfig.from_dict(values))
    return denoiser if denoiser.backbone.spec.bits else denoiser.merge()


def show(result: dict) -> None:
    """Print the result as a table."""
    from lad.evaluation.statistics import Estimate

    def ratio(estimate: dict | None) -> str:
        return "–" if estimate is None else Estimate.from_dict(estimate).text()

    rows = []
    for cell in result["cells"]:
        sampler = cell["sampler"]
        rows.append(
            {
                "window": str(cell["window"]),
                "batch": str(cell["batch"]),
                "s an answer": f"{sampler['seconds_per_answer']:.3f}",
                "NFE": f"{sampler['nfe']:.1f}",
                "TPF": f"{sampler['tpf']:.2f}",
                "tokens/s": f"{sampler['tokens_per_second']:.1f}",
                "iteration, ms": f"{1000 * sampler['iteration_seconds']:.1f}",
                "by roofline": f"{sampler['iteration_by_floor']:.1f}",
                "× reference": ratio(cell["speedup_vs_reference"]),
                "× its forwards": ratio(cell["speedup_vs_reference_forwards"]),
                "× generate": ratio(cell["speedup_vs_generate"]),
            }
        )
    typer.echo(f"{common.origin_line(result['provenance'])}, {result['setting']}")
    typer.echo("Medians over rounds; a speed-up with its 95 % interval.")
    common.print_table(list(rows[0]), [row.values() for row in rows])
    prompts, run = result["prompts"], result["reference_iterations"]
    typer.echo(
        f"{prompts['used']} of {prompts['of']} prompts from {prompts['file']}; the reference "
        f"answered {prompts['by_reference']} of them"
        + (f", {run} iterations of each." if run else ".")
    )
