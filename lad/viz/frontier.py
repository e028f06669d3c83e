"""The frontier of quality and speed, from the numbers of `lad frontier`; intervals over answers."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lad.utils import DamagedFile
from lad.viz.style import COLORS, errorbars, intervals, label, new_figure, series, styled, titled
from lad.viz.tokens import count

GROUPS = ("short", "long")
RATIO = "perplexity by that of the\nbackbone's answer"
SCORES = {  # key -> axis, factor
    "relative_perplexity_with_end": (RATIO, 1),
    "repeats": ("tokens that repeat the\none before (%)", 100),
}
FASTER = "tokens a forward pass"


@styled
def frontier(data: Mapping) -> Figure:
    """Perplexity and repeats against tokens a pass, and the area that each strategy covers."""
    strategies, short = data["strategies"], data["short"]
    if not strategies:
        raise DamagedFile("no strategies among these: expected some; run `lad frontier` again")
    figure, panels = new_figure(2, 3, height=6.2)
    for left, right in (panels[:2], panels[3:5]):
        right.sharey(left)
    said = {"short": f"under {short} tokens", "long": f"{short} tokens and more"}
    for column, group in enumerate(GROUPS):
        number = data["answers"][group]
        for row, (key, (unit, factor)) in enumerate(SCORES.items()):
            axes = panels[3 * row + column]
            _curves(axes, data, group, key, factor)
            title = f"{said[group]}, {count(number, 'answer')}" if row == 0 else None
            label(axes, FASTER * (row == 1), unit * (column == 0), title)
    areas, legend = panels[2], panels[5]
    best = []
    for n, group in enumerate(GROUPS):
        found = {name: one["area"][group] for name, one in strategies.items()}
        found = {name: one for name, one in found.items() if one["value"] is not None}
        places = [[*strategies].index(name) + 0.3 * n - 0.15 for name in found]
        values, low, high = intervals(list(found.values())) if found else ([], 0, 0)
        look = series(6) | {"linestyle": "", "markerfacecolor": ("white", "black")[n]}
        look |= {"marker": "os"[n], "capsize": 2.5, "label": said[group]}
        if found:
            areas.errorbar(values, places, xerr=[values - low, high - values], **look)
            name = max(found, key=lambda name: found[name]["value"])
            best.append((name, found[name]["value"], group))
    areas.axvline(1, color=COLORS["text"], linestyle=":", linewidth=1.2)
    areas.set_yticks(range(len(strategies)), [_named(data, name) for name in strategies])
    areas.set_ylim(len(strategies) - 0.5, -0.5)
    areas.set_xlim(left=0)
    label(areas, "area (left to right: 1)", "", "area under quality")
    legend.set_axis_off()
    drawn = panels[1 if data["answers"]["long"] else 0], areas
    lines, marks = (panel.get_legend_handles_labels() for panel in drawn)
    legend.legend(*(a + b for a, b in zip(lines, marks, strict=True)), loc="center left")
    parts = [f"{name} {value:.2f} on {group} answers" for name, value, group in best]
    finding = f"Largest area (left to right 1): {', '.join(parts).removesuffix(' answers')}"
    note = "quality: 1 at the backbone's perplexity, 0 at twice that; EOS counts as a token; "
    return titled(figure, finding, f"{note}bars: 95 % intervals over answers")


def _named(data: Mapping, name: str) -> str:
    """The strategy's name, with its number of answers where others were measured on more."""
    point = data["strategies"][name]["points"][0]
    n = sum(point[group]["relative_perplexity_with_end"]["n"] for group in GROUPS)
    return name if n == sum(data["answers"].values()) else f"{name} (n = {n})"


def _curves(axes: Axes, data: Mapping, group: str, key: str, factor: float) -> None:
    """A line for each strategy, and the two ways of the backbone."""
    for number, (name, strategy) in enumerate(data["strategies"].items()):
        points = [point[group] for point in strategy["points"]]
        points = [one for one in points if one[key]["value"] is not None]
        if points:
            speed, low, high = intervals([one["tokens_per_forward"] for one in points])
            line = series(number) | {"label": _named(data, name), "capsize": 0, "elinewidth": 0.6}
            line |= {"xerr": [speed - low, high - speed], "markersize": 4.5}
            errorbars(axes, speed, [one[key] for one in points], factor, **line)
    for name, marker in (("left_to_right", "*"), ("prompt_lookup", "X")):
        one = data[name][group]
        if one[key]["value"] is not None:
            words = name.replace("_", " ")
            look = {"color": COLORS["black"], "linestyle": "", "markersize": 9, "zorder": 5}
            place = [one["tokens_per_forward"]["value"]], [factor * one[key]["value"]]
            axes.plot(*place, marker=marker, label=words, **look)
    axes.set_xlim(left=0)
    if factor == 1:
        axes.set_yscale("log")
        axes.axhline(1, color=COLORS["text"], linestyle=":", linewidth=1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda _value, _: "")
    else:  # the interval of a 0 among few answers would flatten all others
        rows = [p[g] for one in data["strategies"].values() for p in one["points"] for g in GROUPS]
        tallest = max(row[key]["value"] or 0 for row in rows)
        axes.set_ylim(0, 2 * factor * tallest or None)
