"""Benchmarks as figures and sentences: a denoiser beside its backbone, and what iterations buy.

A sentence, like a figure's title, is made from the recorded data and says what these show.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.evaluation.tables import PARTS, authors_share, select, share_of
from lad.evaluation.tasks import TARGETS, TASKS, title_of
from lad.utils import DamagedFile
from lad.viz import style
from lad.viz.style import COLORS, errorbars, label, listed, new_figure, series, span, styled, titled

# (scoring, target) -> the panel's name, in the order of the panels
SCORINGS = {("likelihood", part): f"likelihood of the {part}" for part in TARGETS}
SCORINGS["generation", "line"] = "generation"
PRESET_NOTES = {
    "noiseless": "nothing is masked again",
    "default": "a token once shown is never masked again",
    "guided": "LAD's own re-masking, least confident first",
}
BY_CHARACTERS = "the same by characters"
WORDS = {"ha": "center", "va": "center", "color": COLORS["muted"]}
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
    style.shared_legend(figure, "outside lower center", panel=-1)
    note = "by characters: an option's log-likelihood by its length, acc_norm; not in the title"
    return titled(figure, _accuracy_finding(data), note * (BY_CHARACTERS in panels))


def _accuracy_panel(axes: Axes, runs: list[Mapping], tasks: list[str]) -> None:
    """Two dots with bars a task, and its chance."""
    for number, (by, shift) in enumerate((("backbone", -0.16), ("denoiser", 0.16))):
        part = [run for run in runs if run["by"] == by]
        if part:
            line = series(number) | {"linestyle": "none", "label": f"{by}, 95 % interval"}
            places = [tasks.index(run["task"]) + shift for run in part]
            found = [share_of(run, "accuracy").to_dict() for run in part]
            value, low, high = style.intervals(found, 100)
            axes.errorbar(value, places, xerr=[value - low, high - value], capsize=3, **line)
    line = dict(CHANCE)
    for place, task in enumerate(tasks):
        chance = next((100 * run["chance"] for run in runs if run["task"] == task), None)
        if chance is None:
            where = axes.get_yaxis_transform()
            axes.text(0.5, place, "not measured", transform=where, **WORDS)
        else:
            axes.plot([chance, chance], [place - 0.38, place + 0.38], **line)
            line["label"] = None  # once in the legend


def _accuracy_finding(data: Mapping) -> str:
    found = [one["difference"] for one in data["comparisons"] if not one["rotated"]]
    better, worse = sum(d["low"] > 0 for d in found), sum(d["high"] < 0 for d in found)
    share = f"{better} of {len(found)} comparisons, worse in {worse}"
    return f"The denoiser is better than its backbone in {share}"


@styled
def compute_curve(data: Mapping) -> Figure:
    """Right letters, right texts and whole lines against iterations; a line is a preset.

    `data` is what `lad benchmark curve` wrote. A row is a task.
    """
    curves = _curves(data)
    tasks = list(dict.fromkeys(task for task, _ in curves))
    presets = list(dict.fromkeys(preset for _, preset in curves))
    figure, _ = new_figure(len(tasks), len(PARTS), height=0.9 + 2.9 * len(tasks), sharey=True)
    panels = [(task, key) for task in tasks for key in PARTS]
    for axes, (task, key) in zip(figure.axes, panels, strict=True):
        for number, preset in enumerate(presets):
            points = [x for x in curves.get((task, preset), []) if share_of(x, key)]
            if not points:
                continue
            # Side by side, or the bars of one line would hide those of another.
            aside = 1.04 ** (2 * number - len(presets) + 1)
            line = series(number) | {"label": f"preset {preset}", "capsize": 3}
            x = [point["iterations"] * aside for point in points]
            errorbars(axes, x, [share_of(point, key).to_dict() for point in points], 100, **line)
        of_task = [point for point in data["points"] if point["task"] == task]
        if not axes.containers:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, **WORDS)
        if key != "line":
            axes.axhline(100 * of_task[0]["chance"], **CHANCE)
        style.log2_axis(axes, sorted({point["iterations"] for point in of_task}))
        first = key == "accuracy"
        x_name = "iterations allowed" if task == tasks[-1] else ""
        title = f"{title_of(task)}: {PARTS[key]}" if first else PARTS[key]
        label(axes, x_name, "answers (%)" if first else "", title)
        axes.set_ylim(0, 102)
    style.shared_legend(figure, "outside lower center")
    rising = {key: [_change(x, key) for x in curves.values()] for key in PARTS}
    recorded = [key for key in PARTS if set(rising[key]) != {None}]
    counts = ", ".join(f"{PARTS[key]} {rising[key].count('rises')}" for key in recorded)
    title = f"Of {len(curves)} curves {_range(data).lower()} rise: {counts}"
    notes = [f"{preset}: {PRESET_NOTES[preset]}" for preset in presets if preset in PRESET_NOTES]
    return titled(figure, title, "; ".join(notes))


def _curves(data: Mapping) -> dict[tuple[str, str], list[Mapping]]:
    """The points of every task and preset, by iterations; DamagedFile if there are none."""
    curves: dict[tuple[str, str], list[Mapping]] = {}
    for point in sorted(data["points"], key=lambda point: point["iterations"]):
        curves.setdefault((point["task"], point["preset"]), []).append(point)
    if not curves:
        raise DamagedFile("the curve has no points: expected some; run `lad benchmark curve` again")
    return curves


def _change(points: list[Mapping], key: str) -> str | None:
    """From fewest to most iterations: "rises", "falls", "", or None where it was not recorded."""
    ends = [share_of(points[n], key) for n in (0, -1)]
    return style.change(*(x.to_dict() for x in ends)) if all(ends) else None


def _range(data: Mapping) -> str:
    steps = [point["iterations"] for point in data["points"]]
    return f"From {min(steps)} to {max(steps)} iterations"


# -- what the data show, in sentences --------------------------------------------------------------


def against_chance(
    data: Mapping, by: str, scoring: str = "generation", target: str = "line"
) -> str:
    """Where recorded runs of a model, "denoiser" or "backbone", are above and below chance."""
    words = ("below chance", "at chance", "above chance")
    runs = select(data, by=by, scoring=scoring, target=target)
    sides = {task: _side(run["interval"], run["chance"]) for task, run in runs.items()}
    found = _grouped({title_of(task): words[1 + side] for task, side in sides.items()})
    return f"By {SCORINGS[scoring, target]} the {by} is {found or 'not recorded'}."


def against_authors(data: Mapping) -> str:
    """On how many tasks the authors' model is better by generation, and by how much."""
    runs = select(data, by="denoiser", scoring="generation")
    shares = [(authors_share(task), share_of(run, "accuracy")) for task, run in runs.items()]
    pairs = [(theirs, ours) for theirs, ours in shares if theirs]
    higher = sum(theirs.low > ours.high for theirs, ours in pairs)
    gaps = span([100 * (theirs.value - ours.value) for theirs, ours in pairs])
    return (
        f"The authors' 8B model is clearly better on {higher} of {len(pairs)} tasks; its accuracy "
        f"minus ours is {gaps} points."
    )


def against_backbone(
    data: Mapping, scoring: str = "generation", target: str = "line", key: str = "difference"
) -> str:
    """Where the denoiser is better and worse than its backbone; `key` is of the comparisons."""
    words, found = ("worse", "not clearly different", "better"), {}
    for task, one in select(data, "comparisons", scoring=scoring, target=target).items():
        name = f"{title_of(task)} ({100 * one[key]['value']:+.1f})"
        found[name] = words[1 + _side((one[key]["low"], one[key]["high"]), 0)]
    return _grouped(found) or "not recorded"


def iterations_help(data: Mapping) -> str:
    """What changes, and with which presets, from the fewest to the most iterations."""
    curves, words = _curves(data), {"rises": "more", "falls": "fewer", "": "no clear change"}
    tasks = {task for task, _ in curves}
    sentences = []
    for key, name in PARTS.items():
        changes = {}
        for (task, preset), points in curves.items():
            where = preset if len(tasks) == 1 else f"{preset} ({title_of(task)})"
            changes[where] = words.get(_change(points, key), "not recorded")
        sentences.append(f"{name}: {_grouped(changes, 'with')}")
    return f"{_range(data)}, {'; '.join(sentences)}."


def _side(interval, reference: float) -> int:
    """1 where an interval lies above a number, -1 below, else 0."""
    low, high = interval
    return (low > reference) - (high < reference)


def _grouped(words: Mapping[str, str], link: str = "on") -> str:
    """Names by what is said of them: "better on a and b, worse on c"."""
    names: dict[str, list[str]] = {}
    for name, word in words.items():
        names.setdefault(word, []).append(name)
    return ", ".join(f"{word} {link} {listed(some)}" for word, some in names.items())
