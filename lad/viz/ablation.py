"""The ablation: what each choice in training does, measured one change at a time.

The numbers are those of `lad ablate`: every variant with what it changes against the base, and four
measures of it, each with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lad.viz.numbers import numbers_of
from lad.viz.style import COLORS, FONT_SIZE, new_figure, set_title, styled

__all__ = ["MEASURES", "ablation", "seed_spread", "verdict"]

# measure -> its panel's name, axis, factor, and whether more is better
MEASURES: dict[str, tuple[str, str, float, bool]] = {
    "ce": ("filling in", "cross-entropy, half\nmasked (nats)", 1, False),
    "restored": ("repair: restored", "damaged tokens made\nright (%)", 100, True),
    "kept": ("repair: kept", "sound tokens left\nas they were (%)", 100, True),
    "repeats": ("noiseless answers", "tokens that repeat the\none before (%)", 100, False),
}
_LOOKS = {
    "better": {"marker": "^", "color": COLORS["swap"], "markersize": 7},
    "worse": {"marker": "v", "color": COLORS["masked"], "markersize": 7},
    "alike": {"marker": "o", "color": COLORS["muted"], "markersize": 5, "markerfacecolor": "white"},
}
_WORDS = {"better": "better than the base", "worse": "worse", "alike": "not told apart"}


# -- what the numbers say --------------------------------------------------------------------------


def seed_spread(data: Mapping, measure: str) -> float:
    """How far the base moves when nothing but its seed is changed; 0 when that was not tried."""
    base = _base(data)["measures"][measure]["value"]
    others = [
        variant["measures"][measure]["value"]
        for variant in data["variants"]
        if set(variant["changes"]) == {"training.seed"}
    ]
    return max((abs(value - base) for value in others), default=0.0)


def verdict(data: Mapping, variant: Mapping, measure: str) -> str:
    """ "better" or "worse" than the base, or "alike" when that cannot be told.

    To be told apart, each value has to lie outside the other's interval, and the two further apart
    than the base and itself with another seed. All are measured on the same answers, so the
    intervals share most of their causes, and asking that they do not overlap would ask too much.
    """
    base, own = _base(data)["measures"][measure], variant["measures"][measure]
    difference = own["value"] - base["value"]
    within = (
        own["low"] <= base["value"] <= own["high"] or base["low"] <= own["value"] <= base["high"]
    )
    if within or abs(difference) <= seed_spread(data, measure):
        return "alike"
    return "better" if (difference > 0) == MEASURES[measure][3] else "worse"


def _base(data: Mapping) -> Mapping:
    return next(variant for variant in data["variants"] if variant["name"] == data["base"])


def _finding(data: Mapping) -> str:
    """The title: who wins everywhere, and who pays for a gain with the ability to repair."""
    base = _base(data)["measures"]
    won, traded = [], []
    for variant in data["variants"]:
        verdicts = {measure: verdict(data, variant, measure) for measure in MEASURES}
        if set(verdicts.values()) == {"better"}:
            won.append(variant)
        elif (verdicts["ce"], verdicts["restored"]) == ("better", "worse"):
            traded.append(variant)
    said = []
    if won:
        names = [f"“{variant['name']}”" for variant in won]
        text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
        said.append(f"{text} beat{'s' if len(won) == 1 else ''} the base on all four counts")
    if traded:
        most = min(traded, key=lambda variant: variant["measures"]["restored"]["value"])
        own = most["measures"]
        said.append(
            f"“{most['name']}” fills in better (cross-entropy {own['ce']['value']:.2f} against "
            f"{base['ce']['value']:.2f}) but repairs worse "
            f"({100 * own['restored']['value']:.0f} % restored against "
            f"{100 * base['restored']['value']:.0f} %)"
        )
    if not said:
        said.append("no choice beats the base on all four counts")
    return f"After {data['steps']:,} steps, " + "; ".join(said)


# -- the figure ------------------------------------------------------------------------------------


@numbers_of("an ablation", "lad ablate")
@styled
def ablation(data: Mapping) -> Figure:
    """Four measures of every variant as dots with 95 % intervals; the base is a dashed line.

    A grey band around the line is as wide as what another seed changes. Pointing up, filled: better
    than the base; pointing down: worse; a hollow dot: not told apart, see `verdict`.

    Args:
        data: what `lad ablate` wrote.

    Raises:
        DamagedFile: it is something else.
    """
    variants = data["variants"]
    figure = new_figure(1, len(MEASURES), height=2.0 + 0.3 * len(variants), sharey=True)
    for axes, measure in zip(figure.axes, MEASURES, strict=True):
        _panel(axes, data, variants, measure)
    base = [variant["name"] == data["base"] for variant in variants]
    names = [
        variant["name"] + (" (base)" if is_base else "")
        for variant, is_base in zip(variants, base, strict=True)
    ]
    first = figure.axes[0]
    first.set_yticks(range(len(names)), names)
    first.set_ylim(len(names) - 0.4, -0.6)
    first.set_ylabel("what was changed")
    marks = [
        Line2D([], [], linestyle="", label=_WORDS[name], **look) for name, look in _LOOKS.items()
    ]
    marks.append(Line2D([], [], color=COLORS["text"], linestyle="--", label="the base"))
    if any(seed_spread(data, measure) for measure in MEASURES):
        band = {"color": COLORS["grid"], "linewidth": 8}
        marks.append(Line2D([], [], label="what another seed changes", **band))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), handlelength=1.6)
    set_title(figure, _finding(data))
    return figure


def _panel(axes: Axes, data: Mapping, variants: Sequence[Mapping], measure: str) -> None:
    name, unit, factor, more = MEASURES[measure]
    centre, spread = _base(data)["measures"][measure]["value"], seed_spread(data, measure)
    if spread:
        ends = factor * (centre - spread), factor * (centre + spread)
        axes.axvspan(*ends, color=COLORS["grid"], alpha=0.6, linewidth=0)
    axes.axvline(factor * centre, color=COLORS["text"], linestyle="--", linewidth=1.2)
    for row, variant in enumerate(variants):
        own, look = variant["measures"][measure], _LOOKS[verdict(data, variant, measure)]
        axes.plot(
            [factor * own["low"], factor * own["high"]], [row, row], color=look["color"],
            linewidth=1.4, marker="|", markersize=6,
        )  # fmt: skip
        axes.plot([factor * own["value"]], [row], linestyle="", **look)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1)
    axes.set_xlabel(unit)
    axes.set_title(f"{name}\n({'more' if more else 'less'} is better)", fontsize=FONT_SIZE - 1)
