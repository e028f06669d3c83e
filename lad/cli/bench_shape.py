"""`lad bench-shape`: a large model's speed, with random weights and no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli.bench import numbers
from lad.cli.common import AsJson, Device, check_least, choose_device, print_json
from lad.cli.evaluate import progress
from lad.utils import InvalidInput


def bench_shape(
    shape: Annotated[str, typer.Argument(help="Whose shape.")] = "llama-3.1-8b",
    bits: Annotated[
        int | None, typer.Option(help="4 or 8: quantised weights; needs bitsandbytes.")
    ] = None,
    windows: Annotated[str, typer.Option(help="Answer regions, in tokens.")] = "256",
    batches: Annotated[str, typer.Option(help="Prompts at once.")] = "1,8,32",
    iterations: Annotated[int, typer.Option(help="Of every run.")] = 8,
    reference_iterations: Annotated[
        int, typer.Option(help="That the plain loops are run for; 0: none.")
    ] = 1,
    config: Annotated[
        Path | None, typer.Option(help="YAML whose section `denoiser` fixes adapter and masks.")
    ] = None,
    graphs: Annotated[bool, typer.Option(help="On a GPU, a pass is one CUDA graph.")] = True,
    record: Annotated[
        Path | None, typer.Option(help="Add the measurement to this JSON file.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time iterations of a model of that shape against their floor; the weights are random."""
    from lad.diffusion.config import DenoiserConfig
    from lad.evaluation.true_shape import add_run, measure_iterations
    from lad.training.config import check_names, read_config

    if bits not in (None, 4, 8):
        raise InvalidInput(f"bits = {bits}: expected 4 or 8, or none for plain weights")
    check_least(2, iterations=iterations)
    check_least(0, reference_iterations=reference_iterations)
    values = read_config(config).get("denoiser", {}) if config is not None else {}
    check_names("denoiser", values, DenoiserConfig)
    with progress() as tell:
        run = measure_iterations(
            f"{shape}:random" + (f":{bits}bit" if bits else ""),
            choose_device(device),
            DenoiserConfig(**values),
            numbers("windows", windows),
            numbers("batches", batches),
            iterations,
            reference_iterations or None,
            graphs,
            tell,
        )
    command = (
        f"lad bench-shape {shape} --windows {windows} --batches {batches}"
        f" --iterations {iterations} --reference-iterations {reference_iterations}"
        + (f" --bits {bits}" if bits else "")
        + ("" if graphs else " --no-graphs")
    )
    run = {"command": f"{command} --record", **run}
    if record is not None:
        add_run(record, run)
    if as_json:
        print_json(run)
        return
    origin = run["provenance"]
    typer.echo(f"{origin['model']}, {run['bits']} bit, {origin['processor']}, {origin['dtype']}")
    for cell in run["cells"]:
        own = cell["sampler"]
        typer.echo(
            f"window {cell['window']}, batch {cell['batch']}: "
            f"{1000 * own['iteration_seconds']:.1f} ms an iteration, "
            f"{own['iteration_by_floor']:.2f} x its floor, "
            f"{own['iteration_by_floor_of_normals']:.2f} x that of normal numbers; "
            f"{words(cell['speedup_vs_reference'])} x reference, "
            f"{words(cell['speedup_vs_generate'])} x generate"
        )


def words(ratio: dict | None) -> str:
    """A ratio of times, if it was measured."""
    return "–" if ratio is None or ratio["value"] is None else f"{ratio['value']:.1f}"
