"""`lad bench`: how fast, beside plain loops and beside the backbone from left to right."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import Adapter, AsJson, Device, Model, choose_device, print_json
from lad.cli.evaluate import DATA, progress, read_prompts, read_settings, spread
from lad.utils import CacheError, InvalidInput

# Five minutes on two cores; the reference takes seconds an iteration there.
ON_A_CPU = {
    "windows": "64,128",
    "batches": "1,4",
    "prompts": 4,
    "reference_prompts": 2,
    "reference_iterations": 1,
}
ON_A_GPU = {
    "windows": "64,128,256,512",
    "batches": "1,32",
    "prompts": 32,
    "reference_prompts": 3,
    "reference_iterations": 2,
}


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
    prompts: Annotated[Path, typer.Option(help="Prompts, one a line.", show_default=False)] = DATA
    / "held-out.txt",
    graphs: Annotated[bool, typer.Option(help="On a GPU, a pass is one CUDA graph.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write the JSON object to this file.")] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Time the sampler against its plain loops and the backbone's left-to-right answers."""
    from lad.diffusion.adapter import load_denoiser
    from lad.evaluation.bench import bench as run_bench
    from lad.models.registry import load_backbone
    from lad.utils import sha256_file, write_json

    for name, number, least in (
        ("n_prompts", n_prompts, 1),
        ("reference_prompts", reference_prompts, 0),
        ("reference_iterations", reference_iterations, 0),
    ):
        if number is not None and number < least:
            raise InvalidInput(f"{name} = {number}: expected at least {least}")
    for name, text in (("windows", windows), ("batches", batches)):
        if text is not None:
            numbers(name, text)
    if out is not None:  # said now, not after minutes of timing
        with writable(out):
            out.parent.mkdir(parents=True, exist_ok=True)
    [config] = only_one(read_settings(setting))
    known = read_prompts(prompts)
    where = choose_device(device)
    denoiser = load_denoiser(model, adapter, where, graphs=graphs)
    usual = ON_A_CPU if denoiser.device.type == "cpu" else ON_A_GPU

    def chosen(name: str, value):
        return usual[name] if value is None else value

    def keep(result: dict) -> None:
        """Into the file after every cell, so that minutes of timing outlive a stop."""
        result |= {"command": "lad bench", "setting": setting}
        result["graphs"] = denoiser.graphs is not None
        origin = {"of": len(known), "file": prompts.name, "sha256": sha256_file(prompts)}
        result["prompts"] |= origin
        if out is not None:
            with writable(out):
                write_json(out, result)

    with progress() as tell:
        result = run_bench(
            denoiser,
            load_backbone(model, where).model,
            spread(known, chosen("prompts", n_prompts)),
            config,
            numbers("windows", chosen("windows", windows)),
            numbers("batches", chosen("batches", batches)),
            chosen("reference_prompts", reference_prompts),
            chosen("reference_iterations", reference_iterations) or None,
            on_progress=tell,
            on_result=keep,
        )
    if as_json:
        print_json(result)
    else:
        show(result)


@contextmanager
def writable(path: Path):
    """What a disk refuses becomes an error of ours."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cannot write {path} ({error}): expected a folder that can be written to"
        ) from error


def numbers(name: str, text: str) -> list[int]:
    """Whole numbers from 1 up, separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"{name} = {text!r}: expected whole numbers from 1 up, such as 64,128")
    return [int(part) for part in parts]


def only_one(settings: dict) -> list:
    """Refuse several settings: a run times one."""
    if len(settings) != 1:
        raise InvalidInput(f"{len(settings)} settings: expected one preset or JSON file")
    return list(settings.values())


def show(result: dict) -> None:
    """The result as a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140)
    origin = result["provenance"]
    where = f"{origin['device']} ({origin['processor']}), {origin['dtype']}"
    digest = (origin["adapter_sha256"] or "unsaved")[:12]
    console.print(Text(f"{origin['model']}, adapter {digest}, {where}, {result['setting']}"))
    console.print(Text("Medians over rounds; a speed-up with its 95 % interval."))

    def ratio(estimate: dict | None) -> str:
        if estimate is None or not estimate["n"]:
            return "–"
        if estimate["n"] == 1:  # one round has no interval
            return "{value:.1f}".format(**estimate)
        return "{value:.1f} ({low:.1f}–{high:.1f})".format(**estimate)

    table = Table()
    for heading in (
        "window", "batch", "s an answer", "NFE", "TPF", "tokens/s", "iteration, ms", "by its floor",
        "× reference", "× its forwards", "× generate",
    ):  # fmt: skip
        table.add_column(Text(heading))
    for cell in result["cells"]:
        own = cell["sampler"]
        table.add_row(
            str(cell["window"]),
            str(cell["batch"]),
            f"{own['seconds_per_answer']:.3f}",
            f"{own['nfe']:.1f}",
            f"{own['tpf']:.2f}",
            f"{own['tokens_per_second']:.1f}",
            f"{1000 * own['iteration_seconds']:.1f}",
            f"{own['iteration_by_floor']:.1f}",
            ratio(cell["speedup_vs_reference"]),
            ratio(cell["speedup_vs_reference_forwards"]),
            ratio(cell["speedup_vs_generate"]),
        )
    console.print(table)
    console.print(
        Text(
            f"{result['prompts']['used']} of {result['prompts']['of']} prompts from "
            f"{result['prompts']['file']}; the reference answered "
            f"{result['prompts']['by_reference']} of them"
            + (
                f", {result['reference_iterations']} iterations of each."
                if result["reference_iterations"]
                else "."
            )
        )
    )
