"""Benchmarks as figures: a denoiser beside its backbone, and what more iterations buy.

The numbers are those of `lad benchmark collect` and `lad benchmark curve`. Every share has its 95 %
interval, and chance is drawn wherever an accuracy is.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.evaluation.tasks import TASKS
from lad.utils import DamagedFile
from lad.viz.style import (
    COLORS,
    change,
    errorbars,
    label,
    log2_axis,
    new_figure,
    series,
    set_title,
    styled,
)

# (scoring, target) -> the panel's name, in the order of the panels
SCORINGS = {
    ("likelihood", "line"): "likelihood of the line",
    ("likelihood", "letter"): "likelihood of the letter",
    ("likelihood", "text"): "likelihood of the text",
    ("generation", "line"): "generation",
}
# what a curve is of -> the panel's name, its axis
MEASURED = {
    "accuracy": ("the leading letter is right", "questions (%)"),
    "exact": ("the answer is one of the lines", "answers (%)"),
}
PRESET_NAMES = {"noiseless": "without re-masking", "default": "with re-masking"}


@styled
def accuracies(data: Mapping) -> Figure:
    """Accuracy by task, of backbone and denoiser, with chance; one panel for each scoring.

    `data` is what `lad benchmark collect` wrote; rotated runs are left out.
    """
    runs = [run for run in data["runs"] if not run["asked"]["rotate"]]
    if not runs:
        raise DamagedFile(
            "no run among these: expected at least one that is not rotated; run `lad benchmark` "
            "and collect it"
        )
    panels: dict[str, list[Mapping]] = {name: [] for name in SCORINGS.values()}
    for run in runs:
        panels[SCORINGS[run["scoring"], run["target"]]].append(run)
    panels = {name: part for name, part in panels.items() if part}
    tasks = [task for task in TASKS if task in {run["task"] for run in runs}]
    height = 1.7 + 0.55 * len(tasks)
    figure = new_figure(1, len(panels), height=height, sharex=True, sharey=True, squeeze=False)
    for axes, (name, part) in zip(figure.axes, panels.items(), strict=True):
        _accuracy_panel(axes, part, tasks)
        label(axes, "accuracy (%)", "", name if len(panels) > 1 else "")
    first = figure.axes[0]
    first.set_yticks(range(len(tasks)), [TASKS[task].title for task in tasks])
    first.set_ylim(len(tasks) - 0.5, -0.5)
    ends = [100 * end for run in runs for end in run["interval"]]
    low, high = min(*ends, 20), max(*ends, 30)
    first.set_xlim(5 * (low // 5), 5 * -(-high // 5))
    handles, names = first.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    set_title(figure, _accuracy_finding(data, runs))
    return figure


def _accuracy_panel(axes: Axes, runs: list[Mapping], tasks: list[str]) -> None:
    """Two dots with bars a task, and its chance; a task without a run is marked as such."""
    for number, (by, shift) in enumerate((("backbone", -0.16), ("denoiser", 0.16))):
        part = [run for run in runs if run["by"] == by]
        estimates = [
            {"value": run["accuracy"], "low": run["interval"][0], "high": run["interval"][1]}
            for run in part
        ]
        if part:
            errorbars(
                axes, [tasks.index(run["task"]) + shift for run in part], estimates, 100,
                horizontal=True, label=f"{by}, 95 % interval", capsize=3,
                **series(number) | {"linestyle": "none"},
            )  # fmt: skip
    line = {"color": COLORS["black"], "linestyle": ":", "label": "chance"}
    for place, task in enumerate(tasks):
        chance = next((100 * run["chance"] for run in runs if run["task"] == task), None)
        if chance is None:
            axes.text(
                0.5, place, "not measured", ha="center", va="center", color=COLORS["muted"],
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
        else:
            axes.plot([chance, chance], [place - 0.38, place + 0.38], **line)
            line["label"] = None  # once in the legend


def _accuracy_finding(data: Mapping, runs: list[Mapping]) -> str:
    """How often the denoiser is clearly better or worse; without a backbone, how near to chance."""
    found = [one["difference"] for one in data["comparisons"] if not one["rotated"]]
    if found:
        better, worse = sum(d["low"] > 0 for d in found), sum(d["high"] < 0 for d in found)
        return (
            f"The denoiser is better than its backbone in {better} of {len(found)} comparisons, "
            f"worse in {worse}"
        )
    best = max(runs, key=lambda run: run["accuracy"] - run["chance"])
    points = 100 * (best["accuracy"] - best["chance"])
    return f"The {best['by']} is at most {points:+.1f} points from chance"


@styled
def compute_curve(data: Mapping) -> Figure:
    """Accuracy by generation, and the share of answers that repeat one of the lines word for word,
    against iterations: a row a task, a panel each, and a line a preset.

    `data` is what `lad benchmark curve` wrote.
    """
    lines = _lines(data)
    tasks = list(dict.fromkeys(task for task, _ in lines))
    presets = list(dict.fromkeys(preset for _, preset in lines))
    figure = new_figure(len(tasks), len(MEASURED), height=0.9 + 2.9 * len(tasks), squeeze=False)
    panels = [(task, key) for task in tasks for key in MEASURED]
    for axes, (task, key) in zip(figure.axes, panels, strict=True):
        for number, preset in enumerate(presets):
            points = lines.get((task, preset), [])
            # Side by side, or the bars of one line would hide those of another.
            aside = 1.04 ** (2 * number - len(presets) + 1)
            errorbars(
                axes, [point["iterations"] * aside for point in points],
                [point[key] for point in points], 100, capsize=3,
                label=PRESET_NAMES.get(preset, preset), **series(number),
            )  # fmt: skip
        of_task = [point for (name, _), points in lines.items() if name == task for point in points]
        if key == "accuracy":
            chance = 100 * of_task[0]["chance"]
            axes.axhline(chance, color=COLORS["black"], linestyle=":", label="chance")
        log2_axis(axes, sorted({point["iterations"] for point in of_task}))
        name, unit = MEASURED[key]
        x = "iterations (most; a run may stop early)" if task == tasks[-1] else ""
        label(axes, x, unit, f"{TASKS[task].title}: {name}")
        axes.set_ylim(0, 102)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    rising = {key: sum(change(p[0][key], p[-1][key]) == "rises" for p in lines.values())
              for key in MEASURED}  # fmt: skip
    steps = [point["iterations"] for points in lines.values() for point in points]
    set_title(
        figure,
        f"From {min(steps)} to {max(steps)} iterations accuracy rises on {rising['accuracy']} of "
        f"{len(lines)} curves, whole lines on {rising['exact']}",
    )
    return figure


def _lines(data: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """Points by task and preset, in the order of their iterations; shares with their intervals."""
    from lad.evaluation.statistics import wilson

    lines: dict[tuple[str, str], list[Mapping]] = {}
    for point in sorted(data["points"], key=lambda point: point["iterations"]):
        n = point["accuracy"]["n"]
        exact = wilson(round(point["exact"] * n), n).to_dict()
        lines.setdefault((point["task"], point["preset"]), []).append(point | {"exact": exact})
    if not lines:
        raise DamagedFile("the curve has no points: expected some; run `lad benchmark curve` again")
    return lines
