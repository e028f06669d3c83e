"""The ablation: what each choice in training does, measured one change at a time."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lad.viz.style import COLORS, FONT_SIZE, change, new_figure, styled, titled

# measure -> its panel's name, axis, factor, and whether more is better
MEASURES: dict[str, tuple[str, str, float, bool]] = {
    "ce": ("filling in", "cross-entropy, half\nmasked (nats)", 1, False),
    "restored": ("repair: restored", "corrupted tokens made\nright (%)", 100, True),
    "kept": ("repair: kept", "sound tokens left\nas they were (%)", 100, True),
    "repeats": ("noiseless answers", "tokens that repeat the\none before (%)", 100, False),
}
MARKS = {
    "better": {"marker": "^", "color": COLORS["swap"], "markersize": 7},
    "worse": {"marker": "v", "color": COLORS["masked"], "markersize": 7},
    "alike": {"marker": "o", "color": COLORS["muted"], "markersize": 5, "markerfacecolor": "white"},
}
WORDS = {"better": "better than the base", "worse": "worse", "alike": "no clear difference"}


def seed_spread(data: Mapping, measure: str) -> float:
    """How far the base moves when nothing but its seed is changed; 0 when that was not tried."""
    base = _base(data)["measures"][measure]["value"]
    seeded = [one for one in data["variants"] if set(one["changes"]) == {"training.seed"}]
    return max((abs(one["measures"][measure]["value"] - base) for one in seeded), default=0.0)


def verdict(data: Mapping, variant: Mapping, measure: str) -> str:
    """ "better" or "worse" than the base, or "alike" where there is no clear difference.

    A difference is clear where each value lies outside the other's interval (they may overlap: all
    are of the same answers), and the two are further apart than the base with another seed is.
    """
    base, measured = _base(data)["measures"][measure], variant["measures"][measure]
    direction = change(base, measured)
    if not direction or abs(measured["value"] - base["value"]) <= seed_spread(data, measure):
        return "alike"
    return "better" if (direction == "rises") == MEASURES[measure][3] else "worse"


def _base(data: Mapping) -> Mapping:
    return next(variant for variant in data["variants"] if variant["name"] == data["base"])


@styled
def ablation(data: Mapping) -> Figure:
    """Four measures of every variant as dots with 95 % intervals, from what `lad ablate` wrote."""
    variants = data["variants"]
    figure, _ = new_figure(1, len(MEASURES), height=2.0 + 0.3 * len(variants), sharey=True)
    for axes, measure in zip(figure.axes, MEASURES, strict=True):
        _panel(axes, data, measure)
    names = [_title(one) + " (base)" * (one["name"] == data["base"]) for one in variants]
    first = figure.axes[0]
    first.set_yticks(range(len(names)), names)
    first.set(ylim=(len(names) - 0.4, -0.6), ylabel="what was changed")
    marks = [Line2D([], [], linestyle="", label=WORDS[key], **mark) for key, mark in MARKS.items()]
    marks.append(Line2D([], [], color=COLORS["text"], linestyle="--", label="the base"))
    seed = Line2D([], [], color=COLORS["grid"], linewidth=8, label="what another seed changes")
    marks += [seed] * any(seed_spread(data, measure) for measure in MEASURES)
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), handlelength=1.6)
    better = [all(verdict(data, one, m) == "better" for m in MEASURES) for one in variants]
    winners = [one["name"] for one, won in zip(variants, better, strict=True) if won]
    beat = f"“{winners[0]}” beats" if len(winners) == 1 else f"{len(winners) or 'no'} changes beat"
    finding = f"After {data['steps']:,} steps {beat} the base on all four measures"
    note = "replace: random tokens; the authors' post names them, their code never applies them"
    return titled(figure, finding, note * any("replace" in name for name in names))


def _title(variant: Mapping) -> str:
    """The name of a variant; all the noise that is not restricted in kinds has *replace* too."""
    replaces = "training.corruption.kinds" not in variant["changes"]
    return variant["name"] + " + replace" * (replaces and variant["name"] == "paper's noise")


def _panel(axes: Axes, data: Mapping, measure: str) -> None:
    name, unit, factor, more = MEASURES[measure]
    centre, spread = _base(data)["measures"][measure]["value"], seed_spread(data, measure)
    if spread:
        ends = factor * (centre - spread), factor * (centre + spread)
        axes.axvspan(*ends, color=COLORS["grid"], alpha=0.6, linewidth=0)
    axes.axvline(factor * centre, color=COLORS["text"], linestyle="--", linewidth=1.2)
    for row, variant in enumerate(data["variants"]):
        measured, mark = variant["measures"][measure], MARKS[verdict(data, variant, measure)]
        low, value, high = (factor * measured[key] for key in ("low", "value", "high"))
        bar = {"color": mark["color"], "linewidth": 1.4, "marker": "|", "markersize": 6}
        axes.plot([low, high], [row, row], **bar)
        axes.plot([value], [row], linestyle="", **mark)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1)
    axes.set_xlabel(unit)
    axes.set_title(f"{name}\n({'more' if more else 'less'} is better)", fontsize=FONT_SIZE - 1)
