"""Benchmarks as figures: a denoiser beside its backbone, and what more iterations buy.

The numbers are those of `lad benchmark collect` and `lad benchmark curve`; every share carries its
95 % interval, and chance is drawn wherever an accuracy is.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.evaluation.statistics import wilson
from lad.evaluation.tables import scoring_label
from lad.evaluation.tasks import TASKS, title_of
from lad.utils import DamagedFile
from lad.viz.numbers import numbers_of
from lad.viz.style import COLORS, label, log2_axis, new_figure, series, set_title, styled

__all__ = ["accuracies", "compute_curve", "curve_finding", "results_finding"]

# what a curve is of -> the panel's name, its axis, and the word for it in a title
MEASURED = {
    "accuracy": ("the leading letter is right", "questions (%)", "accuracy"),
    "exact": ("the answer is one of the lines", "answers (%)", "the share of whole lines"),
}
PRESET_NAMES = {"noiseless": "without re-noising", "default": "with re-noising"}


# -- a denoiser beside its backbone ----------------------------------------------------------------


@styled
def accuracies(data: Mapping) -> Figure:
    """Accuracy by task, of backbone and denoiser, with chance; a panel a way of scoring.

    Rotated runs are left out.

    Args:
        data: what `lad benchmark collect` wrote.

    Raises:
        DamagedFile: other data, or no runs.
    """
    ways = _ways(data)
    asked = {run["task"] for runs in ways.values() for run in runs}
    tasks = [task for task in TASKS if task in asked]
    figure = new_figure(
        1, len(ways), height=1.7 + 0.55 * len(tasks), sharex=True, sharey=True, squeeze=False
    )
    for axes, (way, runs) in zip(figure.axes, ways.items(), strict=True):
        _panel(axes, runs, tasks)
        first = axes is figure.axes[0]
        label(axes, "accuracy (%)", "", _short(way) if len(ways) > 1 else "")
        if first:
            axes.set_yticks(range(len(tasks)), [title_of(task) for task in tasks])
            axes.set_ylim(len(tasks) - 0.5, -0.5)
    ends = [100 * end for runs in ways.values() for run in runs for end in run["interval"]]
    low, high = min(min(ends), 20), max(max(ends), 30)
    figure.axes[0].set_xlim(5 * (low // 5), 5 * -(-high // 5))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, [f"{name}, 95 % interval" * (name != "chance") or name for name in names],
        loc="outside lower center", ncols=len(names),
    )  # fmt: skip
    set_title(figure, results_finding(data))
    return figure


def _panel(axes: Axes, runs: list[Mapping], tasks: list[str]) -> None:
    """Two dots with bars a task, and its chance; a task that was not asked is said to be so."""
    for number, (by, shift) in enumerate((("backbone", -0.16), ("denoiser", 0.16))):
        own = [run for run in runs if run["by"] == by]
        if own:
            _dots(axes, [tasks.index(run["task"]) + shift for run in own], own, by, number)
    named = False
    for place, task in enumerate(tasks):
        chance = next((100 * run["chance"] for run in runs if run["task"] == task), None)
        if chance is None:
            axes.text(
                0.5, place, "not measured", ha="center", va="center", color=COLORS["muted"],
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            continue
        axes.plot(
            [chance, chance], [place - 0.38, place + 0.38], color=COLORS["black"], linestyle=":",
            label=None if named else "chance",
        )  # fmt: skip
        named = True


def _dots(axes: Axes, places: list[float], runs: list[Mapping], by: str, number: int) -> None:
    style = series(number)
    values = [100 * run["accuracy"] for run in runs]
    ends = [
        [v - 100 * run["interval"][0] for v, run in zip(values, runs, strict=True)],
        [100 * run["interval"][1] - v for v, run in zip(values, runs, strict=True)],
    ]
    axes.errorbar(
        values, places, xerr=ends, label=by, color=style["color"], marker=style["marker"],
        linestyle="none", capsize=3, markersize=5,
    )  # fmt: skip


def results_finding(data: Mapping) -> str:
    """What the comparisons say of every way of scoring, in one sentence."""
    parts = []
    for way, runs in _ways(data).items():
        told = [
            one["difference"]
            for one in data["comparisons"]
            if (one["scoring"], one["target"], one["rotated"]) == (*way, False)
        ]
        if told:
            parts.append(f"by {_short(way)} {_apart(told)}")
        else:
            best = max(runs, key=lambda run: run["accuracy"] - run["chance"])
            points = 100 * (best["accuracy"] - best["chance"])
            parts.append(
                f"by {_short(way)} the {best['by']} is at most {points:+.1f} points from chance "
                f"({title_of(best['task'])})"
            )
    return f"Denoiser against its own backbone: {'; '.join(parts)}"


def _apart(differences: list[Mapping]) -> str:
    """Differences of several tasks in words: "0.6 to 7.3 points above (clear of 0 on 3 of 4)"."""
    values = sorted(100 * one["value"] for one in differences)
    clear = sum(one["low"] > 0 or one["high"] < 0 for one in differences)
    if values[0] >= 0 or values[-1] <= 0:
        sizes = sorted({f"{abs(value):.1f}" for value in (values[0], values[-1])}, key=float)
        size = f"{' to '.join(sizes)} points {'above' if values[-1] > 0 else 'below'}"
    else:
        size = f"{-values[0]:.1f} points below to {values[-1]:.1f} above"
    return f"{size} (clear of 0 on {clear} of {len(differences)} tasks)"


def _short(way: tuple[str, str]) -> str:
    return scoring_label({"scoring": way[0], "target": way[1]})


def _ways(data: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """Runs that are not rotated, by scoring and target: line, text, then what else there is."""
    with numbers_of("benchmarks", "lad benchmark collect"):
        ways: dict[tuple[str, str], list[Mapping]] = {}
        for run in data["runs"]:
            run["by"], run["accuracy"], run["interval"][1], run["chance"], TASKS[run["task"]]
            if not run["asked"]["rotate"]:
                ways.setdefault((run["scoring"], run["target"]), []).append(run)
        for one in data["comparisons"]:
            one["difference"]["low"], one["difference"]["high"], one["difference"]["value"]
        order = [("likelihood", "line"), ("likelihood", "letter"), ("likelihood", "text")]
        order += [("generation", "line")]
        found = {way: ways[way] for way in sorted(ways, key=order.index)}
    if not found:
        raise DamagedFile(
            "no run among these: expected at least one that is not rotated; run `lad benchmark` "
            "and collect it"
        )
    return found


# -- what iterations buy ---------------------------------------------------------------------------


@styled
def compute_curve(data: Mapping) -> Figure:
    """Accuracy by generation, and the share of answers that repeat one of the lines word for word,
    against iterations: a row a task, a panel each, and a line a way to refine.

    Args:
        data: what `lad benchmark curve` wrote.

    Raises:
        DamagedFile: other data.
    """
    lines = _lines(data)
    tasks = list(dict.fromkeys(task for task, _ in lines))
    presets = list(dict.fromkeys(preset for _, preset in lines))
    figure = new_figure(len(tasks), len(MEASURED), height=0.9 + 2.9 * len(tasks), squeeze=False)
    panels = [(task, key) for task in tasks for key in MEASURED]
    for axes, (task, key) in zip(figure.axes, panels, strict=True):
        for number, preset in enumerate(presets):
            points = lines.get((task, preset), [])
            values = [100 * p[key]["value"] for p in points]
            ends = [
                [v - 100 * p[key]["low"] for v, p in zip(values, points, strict=True)],
                [100 * p[key]["high"] - v for v, p in zip(values, points, strict=True)],
            ]
            axes.errorbar(
                # Side by side, or the bars of one line would hide those of another.
                [p["iterations"] * 1.04 ** (2 * number - len(presets) + 1) for p in points],
                values, yerr=ends, capsize=3,
                label=PRESET_NAMES.get(preset, preset), **series(number),
            )  # fmt: skip
        if key == "accuracy":
            chance = 100 * lines[task, presets[0]][0]["chance"]
            axes.axhline(chance, color=COLORS["black"], linestyle=":", label="chance")
        steps = sorted(
            {p["iterations"] for (name, _), ps in lines.items() if name == task for p in ps}
        )
        log2_axis(axes, steps)
        name, unit, _ = MEASURED[key]
        label(
            axes,
            "iterations (most; a run may stop early)" if task == tasks[-1] else "",
            unit,
            f"{title_of(task)}: {name}",
        )
        axes.set_ylim(0, 102)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    set_title(figure, curve_finding(data))
    return figure


def curve_finding(data: Mapping) -> str:
    """What the curves say of the first and the last number of iterations, in one sentence."""
    lines = _lines(data)
    steps = [point["iterations"] for points in lines.values() for point in points]
    told = [f"{word} {_changes(lines, key)}" for key, (_, _, word) in MEASURED.items()]
    return f"From {min(steps)} to {max(steps)} iterations, {'; '.join(told)}"


def _changes(lines: Mapping[tuple[str, str], list[Mapping]], key: str) -> str:
    """How one number changes along every line."""
    parts = []
    several = len({task for task, _ in lines}) > 1
    for (task, preset), points in lines.items():
        a, b = points[0][key], points[-1][key]
        if b["low"] > a["high"]:
            word = "rises"
        elif b["high"] < a["low"]:
            word = "falls"
        else:
            word = "does not clearly change"
        name = PRESET_NAMES.get(preset, f"with “{preset}”")
        where = f" on {title_of(task)}" if several else ""
        span = f"{100 * a['value']:.0f} to {100 * b['value']:.0f}\N{NO-BREAK SPACE}%"
        parts.append(f"{word}{where} {name} ({span})")
    return ", ".join(parts)


def _lines(data: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """Points by task and preset, in the order of their iterations; shares with their intervals."""
    lines: dict[tuple[str, str], list[Mapping]] = {}
    with numbers_of("a curve", "lad benchmark curve"):
        for point in data["points"]:
            n = point["accuracy"]["n"]
            for key in ("value", "low", "high"):
                float(point["accuracy"][key])
            float(point["chance"])
            own = point | {"exact": wilson(round(point["exact"] * n), n).to_dict()}
            lines.setdefault((point["task"], point["preset"]), []).append(own)
        for points in lines.values():
            points.sort(key=lambda point: point["iterations"])
    if not lines:
        raise DamagedFile("the curve has no points: expected some; run `lad benchmark curve` again")
    return lines
