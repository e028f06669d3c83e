"""Benchmarks as figures: a denoiser beside its backbone, and what more iterations buy.

The numbers are those of `lad benchmark collect` and `lad benchmark curve`; every share carries its
95 % interval, and chance is drawn wherever an accuracy is.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.benchmarks.results import how, title_of
from lad.errors import DamagedFile, InvalidInput
from lad.figures.numbers import numbers_of
from lad.figures.recorded import read_numbers
from lad.figures.style import COLORS, label, log2_axis, new_figure, series, set_title, styled

__all__ = ["accuracies", "compute_curve", "curve_finding", "recorded", "results_finding"]

PRESET_NAMES = {"noiseless": "without re-noising", "default": "with re-noising"}


def recorded(name: str) -> dict | None:
    """Numbers of `figures/data/NAME.json`, or None where none have been recorded.

    Raises:
        DamagedFile: a file that is not JSON.
    """
    try:
        return read_numbers(name)
    except InvalidInput:
        return None


# -- a denoiser beside its backbone ----------------------------------------------------------------


@styled
def accuracies(data: Mapping, scoring: str = "likelihood", target: str = "line") -> Figure:
    """Accuracy by task, of backbone and denoiser, with chance.

    Args:
        data: what `lad benchmark collect` wrote.
        scoring, target: which of its runs.

    Raises:
        DamagedFile: other data, or no such runs.
    """
    runs = _runs(data, scoring, target)
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    figure = new_figure(height=1.3 + 0.75 * len(tasks))
    axes: Axes = figure.axes[0]
    for number, (by, shift) in enumerate((("backbone", 0.16), ("denoiser", -0.16))):
        own = [run for run in runs if run["by"] == by]
        if own:
            _dots(axes, [tasks.index(run["task"]) + shift for run in own], own, by, number)
    for place, task in enumerate(tasks):
        chance = 100 * next(run["chance"] for run in runs if run["task"] == task)
        axes.plot(
            [chance, chance], [place - 0.38, place + 0.38], color=COLORS["black"], linestyle=":",
            label="chance" if place == 0 else None,
        )  # fmt: skip
    axes.set_yticks(range(len(tasks)), [title_of(task) for task in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    label(axes, "accuracy (% of questions), 95 % interval", "")
    axes.legend(loc="lower right")
    set_title(figure, results_finding(data, scoring, target))
    return figure


def _dots(axes: Axes, places: list[float], runs: list[Mapping], by: str, number: int) -> None:
    style = series(number)
    values = [100 * run["accuracy"] for run in runs]
    ends = [
        [v - 100 * run["interval"][0] for v, run in zip(values, runs, strict=True)],
        [100 * run["interval"][1] - v for v, run in zip(values, runs, strict=True)],
    ]
    axes.errorbar(
        values, places, xerr=ends, label=by, color=style["color"], marker=style["marker"],
        linestyle="none", capsize=3, markersize=6,
    )  # fmt: skip


def results_finding(data: Mapping, scoring: str, target: str) -> str:
    """What the comparisons say, in one sentence."""
    runs = _runs(data, scoring, target)
    told = [
        one
        for one in data["comparisons"]
        if (one["scoring"], one["target"], one["rotated"]) == (scoring, target, False)
    ]
    asked = how({"scoring": scoring, "target": target})
    if not told:
        best = max(runs, key=lambda run: run["accuracy"] - run["chance"])
        points = 100 * (best["accuracy"] - best["chance"])
        return (
            f"Scored by {asked}, the {best['by']} is furthest from chance on "
            f"{title_of(best['task'])}: {points:+.1f} points"
        )
    better = [one for one in told if one["difference"]["low"] > 0]
    worse = [one for one in told if one["difference"]["high"] < 0]
    parts = []
    for some, word in ((better, "is above its backbone"), (worse, "is below its backbone")):
        names = ", ".join(
            f"{title_of(one['task'])} ({100 * one['difference']['value']:+.1f} points)"
            for one in some
        )
        parts += [f"{word} on {names}"] if names else []
    alike = [title_of(one["task"]) for one in told if one not in better and one not in worse]
    if alike:
        parts.append(f"cannot be told from its backbone on {', '.join(alike)}")
    return f"Scored by {asked}, the denoiser {'; it '.join(parts)}"


def _runs(data: Mapping, scoring: str, target: str) -> list[Mapping]:
    with numbers_of("benchmarks", "lad benchmark collect"):
        runs = [
            run
            for run in data["runs"]
            if (run["scoring"], run["target"], run["asked"]["rotate"]) == (scoring, target, False)
        ]
        for run in runs:
            run["by"], run["accuracy"], run["interval"][1], run["chance"], run["task"]
        data["comparisons"]
    if not runs:
        raise DamagedFile(
            f"no run by {scoring} of the {target} among these: expected at least one; run `lad "
            f"benchmark --scoring {scoring} --target {target}` and collect it"
        )
    return runs


# -- accuracy against iterations -------------------------------------------------------------------


@styled
def compute_curve(data: Mapping) -> Figure:
    """Accuracy by generation against iterations, a panel a task and a line a way to refine.

    Args:
        data: what `lad benchmark curve` wrote.

    Raises:
        DamagedFile: other data.
    """
    lines = _lines(data)
    tasks = list(dict.fromkeys(task for task, _ in lines))
    presets = list(dict.fromkeys(preset for _, preset in lines))
    figure = new_figure(1, len(tasks), height=3.6, sharey=True, squeeze=False)
    for axes, task in zip(figure.axes, tasks, strict=True):
        for number, preset in enumerate(presets):
            points = lines.get((task, preset), [])
            values = [100 * p["accuracy"]["value"] for p in points]
            ends = [
                [v - 100 * p["accuracy"]["low"] for v, p in zip(values, points, strict=True)],
                [100 * p["accuracy"]["high"] - v for v, p in zip(values, points, strict=True)],
            ]
            axes.errorbar(
                # Side by side, or the bars of one line would hide those of another.
                [p["iterations"] * 1.04 ** (2 * number - len(presets) + 1) for p in points],
                values, yerr=ends, capsize=3,
                label=PRESET_NAMES.get(preset, preset), **series(number),
            )  # fmt: skip
        chance = 100 * lines[task, presets[0]][0]["chance"]
        axes.axhline(chance, color=COLORS["black"], linestyle=":", label="chance")
        steps = sorted(
            {p["iterations"] for (name, _), ps in lines.items() if name == task for p in ps}
        )
        log2_axis(axes, steps)
        label(
            axes,
            "iterations (most; a run may stop early)",
            "accuracy (% of questions)" if axes is figure.axes[0] else "",
            title_of(task),
        )
    figure.axes[0].set_ylim(bottom=0)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    set_title(figure, curve_finding(data))
    return figure


def curve_finding(data: Mapping) -> str:
    """What the curves say of the first and the last number of iterations, in one sentence."""
    lines, parts = _lines(data), []
    several = len({task for task, _ in lines}) > 1
    for (task, preset), points in lines.items():
        a, b = points[0]["accuracy"], points[-1]["accuracy"]
        if b["low"] > a["high"]:
            word = "rises"
        elif b["high"] < a["low"]:
            word = "falls"
        else:
            word = "does not clearly change"
        name = PRESET_NAMES.get(preset, f"with “{preset}”")
        where = f" on {title_of(task)}" if several else ""
        parts.append(f"{word}{where} {name} ({100 * a['value']:.0f} to {100 * b['value']:.0f} %)")
    steps = [point["iterations"] for points in lines.values() for point in points]
    return f"From {min(steps)} to {max(steps)} iterations, accuracy {', '.join(parts)}"


def _lines(data: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """Points by task and preset, in the order of their iterations."""
    lines: dict[tuple[str, str], list[Mapping]] = {}
    with numbers_of("a curve", "lad benchmark curve"):
        for point in data["points"]:
            for key in ("value", "low", "high"):
                float(point["accuracy"][key])
            float(point["chance"])
            lines.setdefault((point["task"], point["preset"]), []).append(point)
        for points in lines.values():
            points.sort(key=lambda point: point["iterations"])
    if not lines:
        raise DamagedFile("the curve has no points: expected some; run `lad benchmark curve` again")
    return lines
