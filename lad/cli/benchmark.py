"""`lad benchmark`: multiple-choice questions, scored, summed up, compared and recorded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lad.cli.benchmark_tables import show, show_comparisons, show_curve
from lad.cli.common import (
    Adapter,
    AsJson,
    Device,
    Model,
    choose_device,
    parse_numbers,
    print_json,
    progress,
    read_settings,
)
from lad.utils import InvalidInput, disk_errors

if TYPE_CHECKING:
    from lad.diffusion.config import RefineConfig
    from lad.evaluation.respondents import Respondent

ALL = "arc-easy,arc-challenge,mmlu,hellaswag"
ITERATIONS = "1,2,4,8,16,32,64,128"
CURVES = "noiseless,default"

Tasks = Annotated[str, typer.Option("--task", help=f"Tasks, separated by commas; all is {ALL}.")]
Number = Annotated[
    str, typer.Option("--n", help="Questions drawn by the seed, or all.", metavar="N")
]
Seed = Annotated[int, typer.Option(help="Of the draw and of masks.")]
Split = Annotated[str | None, typer.Option(help="By default the one that results are reported on.")]
Source = Annotated[str, typer.Option(help="wheel, hub (needs the extra eval), or a folder.")]
Batch = Annotated[int | None, typer.Option(help="Answers in words at once: 8 on a CPU, else 256.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32 or bfloat16: float32 on a CPU, else bfloat16.")
]

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Multiple-choice benchmarks: accuracy by likelihood or generation, with intervals.",
)


@app.callback()
def benchmark(
    context: typer.Context,
    task: Tasks = "arc-easy",
    n: Number = "200",
    seed: Seed = 0,
    split: Split = None,
    scoring: Annotated[
        str, typer.Option(help="likelihood, generation, or both, separated by a comma.")
    ] = "generation",
    target: Annotated[
        str, typer.Option(help="What a likelihood is of: line (B: text), letter, or text.")
    ] = "line",
    samples: Annotated[
        int, typer.Option(help="Masks an option; 0: left to right. Likelihood only.")
    ] = 16,
    preset: Annotated[
        str, typer.Option(help="How answers are refined: a preset or a JSON file.")
    ] = "default",
    iterations: Annotated[
        int | None, typer.Option(help="Of a refinement; by default the preset's.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Ask with every option in every place.")
    ] = False,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="Ask the bare backbone, left to right.")
    ] = False,
    source: Source = "wheel",
    out: Annotated[
        Path | None, typer.Option(help="Folder for rows and summaries; a killed run goes on there.")
    ] = None,
    batch_size: Batch = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Score a denoiser, or its backbone, on multiple-choice questions."""
    if context.invoked_subcommand is not None:
        return
    from lad.evaluation.run import Asked

    config = refinement(preset, iterations)
    many = how_many(n)
    asked = [
        Asked(name, split_of(name, split), many, seed, way, target, rotate, source)
        for name in names_of(task)
        for way in dict.fromkeys(part.strip() for part in scoring.split(","))
    ]
    if samples < 0 or (batch_size or 1) < 1:
        raise InvalidInput(
            f"samples = {samples}, batch_size = {batch_size}: expected at least 1 of each, or 0 "
            "samples for left to right"
        )
    if backbone and adapter is not None:
        raise InvalidInput("--backbone with --adapter: expected one of them; the backbone has none")
    items = items_of(asked, source)
    respondent, origin = respond(
        model, adapter, device, dtype, backbone, config, preset, samples, seed, batch_size
    )
    summaries = ask(respondent, asked, items, origin, out)
    if as_json:
        print_json(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    else:
        show(summaries)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A folder that --out filled.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Two runs over the same questions: the difference in pairs, and McNemar's test."""
    from lad.evaluation.results import compare_all

    told = compare_all(a, b)
    if as_json:
        print_json(told[0] if len(told) == 1 else {"comparisons": told})
    else:
        show_comparisons(told)


@app.command()
def curve(
    out: Annotated[Path, typer.Option(help="JSON file to write; rows stay in a folder beside it.")],
    task: Tasks = "arc-easy",
    n: Number = "200",
    seed: Seed = 0,
    split: Split = None,
    iterations: Annotated[
        str, typer.Option(help="Numbers of iterations, separated by commas.")
    ] = ITERATIONS,
    presets: Annotated[
        str, typer.Option(help="Ways to refine: presets or JSON files, separated by commas.")
    ] = CURVES,
    source: Source = "wheel",
    batch_size: Batch = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy by generation against iterations: what test-time compute buys."""
    from lad.evaluation.curve import join_curve
    from lad.evaluation.run import Asked
    from lad.utils import write_json

    steps = sorted(set(parse_numbers("iterations", iterations)))
    settings = read_settings(presets)
    many = how_many(n)
    asked = [
        Asked(name, split_of(name, split), many, seed, source=source) for name in names_of(task)
    ]
    items = items_of(asked, source)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    denoising, origin = respond(model, adapter, device, dtype, False, None, "", 1, seed, batch_size)
    found = {}
    with progress() as tell:
        for name, config in settings.items():
            for step in steps:
                own = replace(config, iterations=step)
                folder = out.with_suffix("") / f"{name}-{step}"
                found[name, step] = ask(
                    replace(denoising, config=own),
                    asked,
                    items,
                    origin | {"preset": name, "config": own.to_dict()},
                    folder,
                    lambda stage, done, total, f=folder: tell(f"{f.name} {stage}", done, total),
                )
    result = join_curve(found, command())
    with disk_errors(out):
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        show_curve(result)


@app.command()
def collect(
    folders: Annotated[list[Path], typer.Argument(help="Folders that --out filled.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    made_by: Annotated[
        list[str] | None, typer.Option(help="The commands that filled them, for the record.")
    ] = None,
) -> None:
    """Join finished runs into one file of numbers, without any text of a benchmark."""
    from lad.evaluation.curve import join_runs
    from lad.utils import write_json

    result = join_runs(folders, made_by or [])
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    typer.echo(f"{out}: {len(result['runs'])} runs, {len(result['comparisons'])} comparisons")


# -- what was asked for ----------------------------------------------------------------------------


def names_of(text: str) -> list[str]:
    """Names of tasks, separated by commas; each exists."""
    from lad.evaluation.benchmark import get_task

    text = ALL if text.strip() == "all" else text
    return [get_task(name).name for name in dict.fromkeys(p.strip() for p in text.split(","))]


def split_of(task: str, split: str | None) -> str:
    """The split that was named, or the one that results are reported on."""
    from lad.evaluation.benchmark import get_task

    return split or get_task(task).tested_on


def how_many(text: str) -> int | None:
    """A whole number, or None for all."""
    if text.strip() == "all":
        return None
    if not (text.strip().isdecimal() and int(text) > 0):
        raise InvalidInput(f"n = {text!r}: expected a whole number from 1 up, or all")
    return int(text)


def refinement(name: str, iterations: int | None) -> RefineConfig:
    """The settings of one preset or file, with another number of iterations perhaps."""
    settings = list(read_settings(name).values())
    if len(settings) != 1:
        raise InvalidInput(f"preset = {name!r}: expected one preset or JSON file")
    return settings[0] if iterations is None else replace(settings[0], iterations=iterations)


def items_of(asked: list, source: str) -> dict:
    """The questions of every part that is asked about, read before any model is."""
    from lad.evaluation.sources import read_source

    parts = dict.fromkeys((one.task, one.split) for one in asked)
    items = {part: read_source(source, *part) for part in parts}
    for one in asked:
        if one.n is not None and one.n > len(items[one.task, one.split]):
            raise InvalidInput(
                f"n = {one.n}: {one.task} has {len(items[one.task, one.split]):,} questions in "
                f"{one.split}; expected no more, or all"
            )
    return items


def respond(
    model: str,
    adapter: Path | None,
    device: str,
    dtype: str | None,
    backbone: bool,
    config: RefineConfig | None,
    preset: str,
    samples: int,
    seed: int,
    batch_size: int | None,
) -> tuple[Respondent, dict]:
    """Who answers, and where that comes from."""
    import torch

    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import preset as settings_of
    from lad.evaluation.adapter_eval import provenance
    from lad.evaluation.respondents import Backbone, Denoising
    from lad.models.registry import load_backbone

    kinds = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise InvalidInput(f"dtype = {dtype!r}: expected float32 or bfloat16")
    where = choose_device(device)
    config = config or settings_of("default")
    if backbone:
        loaded = load_backbone(model, where, kinds[dtype])
        most = config.answer_length
        return Backbone(loaded, most, batch_size), provenance(loaded) | {"answer_length": most}
    denoiser = load_denoiser(model, adapter, where, kinds[dtype])
    origin = provenance(denoiser.backbone, denoiser.adapter_sha256) | {
        "preset": preset,
        "config": config.to_dict(),
        "samples": samples,
    }
    return Denoising(denoiser, config, samples, seed, batch_size), origin


def ask(
    respondent: Respondent,
    asked: list,
    items: dict,
    origin: dict,
    out: Path | None,
    on_progress=None,
) -> list[dict]:
    """Every run in turn; returns their summaries."""
    from lad.evaluation.run import run

    summaries = []
    with progress() as tell:
        for one in asked:
            folder = None if out is None else out / one.name
            part = items[one.task, one.split]
            told = run(respondent, part, one, origin, folder, on_progress or tell)
            summaries.append(told.summary)
    return summaries


def command() -> str:
    """What was typed, as it can be typed again."""
    import shlex

    return shlex.join(["lad", *sys.argv[1:]]) if sys.argv[1:] else "lad benchmark"
