"""Benchmarks as figures: a denoiser beside its backbone, and what more iterations buy."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.evaluation.statistics import wilson
from lad.evaluation.tasks import TARGETS, TASKS
from lad.utils import DamagedFile
from lad.viz import style
from lad.viz.style import COLORS, errorbars, label, new_figure, series, styled, titled

# (scoring, target) -> the panel's name, in the order of the panels
SCORINGS = {("likelihood", part): f"likelihood of the {part}" for part in TARGETS}
SCORINGS["generation", "line"] = "generation"
# what a curve is of -> the panel's name, its axis
MEASURED = {
    "accuracy": ("the leading letter is right", "questions (%)"),
    "exact": ("the answer is one of the lines", "answers (%)"),
}
PRESET_NOTES = {
    "noiseless": "nothing is masked again",
    "default": "a token once shown is never masked again",
    "guided": "LAD's own re-masking, least confident first",
}
BY_CHARACTERS = "the same by characters"
CHANCE = {"color": COLORS["black"], "linestyle": ":", "label": "chance"}


@styled
def accuracies(data: Mapping) -> Figure:
    """Accuracy by task and scoring, with chance, from what `lad benchmark collect` wrote."""
    runs = [run for run in data["runs"] if not run["asked"]["rotate"]]  # rotated: a check
    if not runs:
        raise DamagedFile("no run among these is unrotated: run `lad benchmark collect`")
    panels: dict[str, list[Mapping]] = {}
    for run in sorted(runs, key=lambda run: [*SCORINGS].index((run["scoring"], run["target"]))):
        panels.setdefault(SCORINGS[run["scoring"], run["target"]], []).append(run)
        if run["target"] == "text" and "accuracy_normalised" in run:
            usual = {key: run[f"{key}_normalised"] for key in ("accuracy", "interval")}
            panels.setdefault(BY_CHARACTERS, []).append(run | usual)
    tasks = [task for task in TASKS if task in {run["task"] for run in runs}]
    height = 1.7 + 0.55 * len(tasks)
    figure, _ = new_figure(1, len(panels), height, sharex=True, sharey=True)
    for axes, (name, part) in zip(figure.axes, panels.items(), strict=True):
        _accuracy_panel(axes, part, tasks)
        label(axes, "accuracy (%)", "", name if len(panels) > 1 else "")
    first = figure.axes[0]
    first.set_yticks(range(len(tasks)), [TASKS[task].title for task in tasks])
    first.set_ylim(len(tasks) - 0.5, -0.5)
    ends = [100 * end for run in runs for end in run["interval"]]
    first.set_xlim(5 * (min(*ends, 20) // 5), 5 * -(-max(*ends, 30) // 5))
    style.shared_legend(figure, "outside lower center")
    note = "by characters: an option's log-likelihood by its length, acc_norm; not in the title"
    return titled(figure, _accuracy_finding(data, runs), note * (BY_CHARACTERS in panels))


def _accuracy_panel(axes: Axes, runs: list[Mapping], tasks: list[str]) -> None:
    """Two dots with bars a task, and its chance."""
    for number, (by, shift) in enumerate((("backbone", -0.16), ("denoiser", 0.16))):
        part = [run for run in runs if run["by"] == by]
        if part:
            line = series(number) | {"linestyle": "none", "label": f"{by}, 95 % interval"}
            places = [tasks.index(run["task"]) + shift for run in part]
            keys = ("value", "low", "high")
            found = [dict(zip(keys, [r["accuracy"], *r["interval"]], strict=True)) for r in part]
            value, low, high = style.intervals(found, 100)
            axes.errorbar(value, places, xerr=[value - low, high - value], capsize=3, **line)
    line = dict(CHANCE)
    words = {"ha": "center", "va": "center", "color": COLORS["muted"]}
    for place, task in enumerate(tasks):
        chance = next((100 * run["chance"] for run in runs if run["task"] == task), None)
        if chance is None:
            where = axes.get_yaxis_transform()
            axes.text(0.5, place, "not measured", transform=where, **words)
        else:
            axes.plot([chance, chance], [place - 0.38, place + 0.38], **line)
            line["label"] = None  # once in the legend


def _accuracy_finding(data: Mapping, runs: list[Mapping]) -> str:
    found = [one["difference"] for one in data["comparisons"] if not one["rotated"]]
    if found:
        better, worse = sum(d["low"] > 0 for d in found), sum(d["high"] < 0 for d in found)
        share = f"{better} of {len(found)} comparisons, worse in {worse}"
        return f"The denoiser is better than its backbone in {share}"
    best = max(runs, key=lambda run: run["accuracy"] - run["chance"])
    points = 100 * (best["accuracy"] - best["chance"])
    return f"The {best['by']} is at most {points:+.1f} points from chance"


@styled
def compute_curve(data: Mapping) -> Figure:
    """Accuracy, and the share of answers that are one of the lines, against iterations.

    `data` is what `lad benchmark curve` wrote. A row is a task and a line a preset.
    """
    lines: dict[tuple[str, str], list[Mapping]] = {}
    for point in sorted(data["points"], key=lambda point: point["iterations"]):
        n = point["accuracy"]["n"]
        exact = wilson(round(point["exact"] * n), n).to_dict()
        lines.setdefault((point["task"], point["preset"]), []).append(point | {"exact": exact})
    if not lines:
        raise DamagedFile("the curve has no points: expected some; run `lad benchmark curve` again")
    tasks = list(dict.fromkeys(task for task, _ in lines))
    presets = list(dict.fromkeys(preset for _, preset in lines))
    figure, _ = new_figure(len(tasks), len(MEASURED), height=0.9 + 2.9 * len(tasks))
    panels = [(task, key) for task in tasks for key in MEASURED]
    for axes, (task, key) in zip(figure.axes, panels, strict=True):
        for number, preset in enumerate(presets):
            points = lines.get((task, preset), [])
            # Side by side, or the bars of one line would hide those of another.
            aside = 1.04 ** (2 * number - len(presets) + 1)
            line = series(number) | {"label": f"preset {preset}", "capsize": 3}
            x = [point["iterations"] * aside for point in points]
            errorbars(axes, x, [point[key] for point in points], 100, **line)
        of_task = [point for point in data["points"] if point["task"] == task]
        if key == "accuracy":
            axes.axhline(100 * of_task[0]["chance"], **CHANCE)
        style.log2_axis(axes, sorted({point["iterations"] for point in of_task}))
        name, unit = MEASURED[key]
        x_name = "iterations (most; a run may stop early)" if task == tasks[-1] else ""
        label(axes, x_name, unit, f"{TASKS[task].title}: {name}")
        axes.set_ylim(0, 102)
    style.shared_legend(figure, "outside lower center")
    rising = [
        sum(style.change(points[0][key], points[-1][key]) == "rises" for points in lines.values())
        for key in MEASURED
    ]
    steps = [point["iterations"] for point in data["points"]]
    share = f"{rising[0]} of {len(lines)} curves, whole lines on {rising[1]}"
    text = f"From {min(steps)} to {max(steps)} iterations accuracy rises on {share}"
    notes = [f"{preset}: {PRESET_NOTES[preset]}" for preset in presets if preset in PRESET_NOTES]
    return titled(figure, text, "; ".join(notes))
