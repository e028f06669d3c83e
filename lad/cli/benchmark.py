"""`lad benchmark`: multiple-choice questions, scored, summed up, compared and recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lad.cli import common
from lad.cli.common import AN_ADAPTER, IN_MODEL, AsJson, Device, Model
from lad.utils import InvalidInput, check_writable

ALL = "arc-easy, arc-challenge, openbookqa, hellaswag, mmlu"


def option(help: str, *names: str, **extra):
    return typer.Option(*names, help=help, **extra)


Tasks = Annotated[str, option(f"Tasks, separated by commas; all is {ALL}.", "--task")]
Number = Annotated[str, option("Questions drawn by the seed, or all.", "--n", metavar="N")]
Seed = Annotated[int, option("Of the draw and of masks.")]
Source = Annotated[str, option("wheel, or a folder of JSON Lines.")]
Batch = Annotated[int | None, option("Answers generated at once: 8 on a CPU, else 256.", min=1)]
Dtype = Annotated[str | None, option("float32 or bfloat16: float32 on a CPU, else bfloat16.")]
OutFile = Annotated[Path, option("JSON file to write.")]
Adapter = Annotated[Path | None, option(f"{AN_ADAPTER} -choice, if shipped.", **IN_MODEL)]
Folder = Annotated[Path, typer.Argument(help="A folder that --out filled.")]

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="Multiple-choice benchmarks: accuracy by likelihood or generation, with intervals.",
)


@app.callback()
@common.stopped("questions done are in --out, if given; the same command goes on")
def benchmark(
    context: typer.Context,
    task: Tasks = "arc-easy",
    n: Number = "200",
    seed: Seed = 0,
    split: Annotated[str | None, option("By default the one results are reported on.")] = None,
    scoring: Annotated[str, option("likelihood, generation, or both with a comma.")] = "generation",
    target: Annotated[str, option("Likelihood of: line (B: text), letter, or text.")] = "line",
    samples: Annotated[int, option("Masks an option; 0: left to right. Likelihood.", min=0)] = 16,
    preset: Annotated[str, option("How answers are refined: a preset or JSON file.")] = "default",
    iterations: Annotated[int | None, option("By default those of the preset.")] = None,
    rotate: Annotated[bool, option("Every option in every place.", "--rotate")] = False,
    backbone: Annotated[bool, option("The bare backbone.", "--backbone")] = False,
    source: Source = "wheel",
    out: Annotated[Path | None, option("Folder; a killed run resumes there.")] = None,
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
    _, config = common.read_setting(preset)
    if iterations is not None:
        config = replace(config, iterations=iterations)
    if backbone and adapter is not None:
        raise InvalidInput("--backbone with --adapter: expected one of them; the backbone has none")
    chosen = {"seed": seed, "target": target, "rotate": rotate, "source": source}
    runs = read_runs(task, n, split, scoring, **chosen)
    from lad.evaluation.benchmark import ScoredModel
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.tables import PARTS, percent, table, with_interval

    scored = ScoredModel.load(model, adapter, common.choose_device(device), dtype, backbone)
    scored = replace(scored, config=config, samples=samples, batch_size=batch_size)
    origin = scored.provenance()
    if backbone:
        origin["answer_length"] = config.answer_length
    else:
        origin |= {"preset": preset, "config": config.to_dict(), "samples": samples}
    summaries = score(scored, runs, origin, out)
    title = common.origin_line(origin | {"adapter_sha256": origin["adapter_sha256"] or "none"})
    lines, notes = [], []
    for one in summaries:
        line = {"task": one["task"], "scoring": one["scoring"], "n": f"{one['n']:,}"}
        if one["scoring"] == "likelihood":
            line["scoring"] += f", {one['target']}"
            line["accuracy, %"] = with_interval(one)
            line["by characters, %"] = with_interval(one, "accuracy_normalised")
        else:
            line |= {f"{name}, %": with_interval(one, key) for key, name in PARTS.items()}
            line["passes"] = Estimate.from_dict(one["forwards"]).text()
        line |= {f"{key}, %": percent(one[key]) for key in ("parsable", "chance", "majority")}
        lines.append(line | {"s": f"{one['seconds']:.0f}"})
        shares = {k: (percent(x["chosen"]), percent(x["right"])) for k, x in one["letters"].items()}
        letters = [f"{name} {chosen} (right {right})" for name, (chosen, right) in shares.items()]
        notes.append(f"{one['task']}, % chosen: {', '.join(letters)}")
        if "steady" in one:
            steady = Estimate.from_dict(one["steady"]).text(100)
            notes[-1] += f"; the same option wherever it stood: {steady} %"
    values = summaries[0] if len(summaries) == 1 else {"runs": summaries}
    text = "\n".join([title, table(lines, ["task", "scoring"]), *notes])
    common.print_result(values, as_json, text)


@app.command()
def compare(a: Folder, b: Folder, as_json: AsJson = False) -> None:
    """Two runs over the same questions: the difference in pairs, and McNemar's test."""
    from lad.evaluation.benchmark import compare_all
    from lad.evaluation.statistics import Estimate
    from lad.evaluation.tables import percent, points, table

    comparisons = compare_all(a, b)
    lines = []
    for one in comparisons:
        scorings = dict.fromkeys((one["a"]["how"], one["b"]["how"]))
        line = {"task": one["task"], "scoring": " and ".join(scorings), "n": f"{one['n']:,}"}
        for key in ("a", "b"):
            line[f"{key.upper()}, %"] = Estimate.from_dict(one[key]["accuracy"]).text(100)
        line |= {"B - A, points": points(one["difference"])}
        line |= {"text, B - A": points(one.get("difference_text"))}
        line |= {"only A": one["only_a"], "only B": one["only_b"], "p": f"{one['p']:.2g}"}
        lines.append(line | {"same choice, %": percent(one["same"])})
    models = {k: ", ".join(dict.fromkeys(one[k]["who"] for one in comparisons)) for k in "ab"}
    values = comparisons[0] if len(comparisons) == 1 else {"comparisons": comparisons}
    text = f"A: {models['a']}\nB: {models['b']}\n{table(lines, ['task', 'scoring'])}"
    common.print_result(values, as_json, text)


@app.command()
@common.stopped("questions done are kept; the same command goes on")
def curve(
    out: OutFile,
    task: Tasks = "arc-easy",
    n: Number = "200",
    seed: Seed = 0,
    iterations: Annotated[str, option("Numbers, separated by commas.")] = "1,2,4,8,16,32",
    presets: Annotated[
        str, option("Presets or JSON files, with commas.")
    ] = "noiseless,guided,default",
    source: Source = "wheel",
    batch_size: Batch = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Right letters, right texts and whole lines against iterations; rows stay in a folder."""
    steps = sorted(set(common.parse_numbers("iterations", iterations)))
    configs = common.read_settings(presets)
    check_writable(out)
    runs = read_runs(task, n, None, "generation", seed=seed, source=source)
    from lad.evaluation.benchmark import ScoredModel, join_curve
    from lad.evaluation.tables import curve_table

    scored = ScoredModel.load(model, adapter, common.choose_device(device), dtype, backbone=False)
    scored = replace(scored, batch_size=batch_size)
    origin, found = scored.provenance(), {}
    for name, step in ((name, step) for name in configs for step in steps):
        config = replace(configs[name], iterations=step)
        settings = origin | {"preset": name, "config": config.to_dict(), "samples": 1}
        folder = out.with_suffix("") / f"{name}-{step}"
        found[name, step] = score(replace(scored, config=config), runs, settings, folder)
    result = join_curve(found, common.command_line())
    common.save_json(out, result)
    common.print_result(result, as_json, curve_table(result).to_string())


@app.command()
def collect(
    folders: Annotated[list[Path], typer.Argument(help="Folders that --out filled.")],
    out: OutFile,
    made_by: Annotated[list[str] | None, option("Commands that made them, for the record.")] = None,
) -> None:
    """Join finished runs into one file of numbers, without any text of a benchmark."""
    from lad.evaluation.benchmark import join_runs

    result = join_runs(folders, made_by or [])
    common.save_json(out, result)
    typer.echo(f"{out}: {len(result['runs'])} runs, {len(result['comparisons'])} comparisons")


def read_runs(names: str, n: str, split: str | None, scorings: str, **chosen) -> list[tuple]:
    """`BenchmarkConfig` and items of every run: read before any model is."""
    from lad.evaluation import tasks
    from lad.evaluation.benchmark import BenchmarkConfig

    if n != "all" and not n.isdecimal():
        raise InvalidInput(f"n = {n!r}: expected a whole number from 1 up, or all")
    count = None if n == "all" else int(n)
    runs = []
    split_names = (ALL if names == "all" else names).split(",")
    for name in dict.fromkeys(tasks.get_task(name.strip()).name for name in split_names):
        task = tasks.get_task(name)
        part = split or task.tested_on
        configs = [
            BenchmarkConfig(task=task.name, split=part, n=count, scoring=way.strip(), **chosen)
            for way in dict.fromkeys(scorings.split(","))
        ]
        items = tasks.load_items(task.name, part, source=chosen["source"])
        tasks.choose(items, count, chosen["seed"])  # are there as many?
        runs += [(config, items) for config in configs]
    return runs


def score(model, runs: list, origin: dict, out: Path | None) -> list[dict]:
    from lad.evaluation.benchmark import run

    return [
        run(model, items, config, origin, out and out / config.name).summary
        for config, items in runs
    ]
