"""Five figures on what refinement does, from the numbers of `lad study`.

    quality_curve      more iterations, better answers? perplexity, stutter and cost
    convergence        fewer iterations than tokens? each answer against the line y = x
    calibration_curve  is a 0.9 token right 90 % of the time?
    settled_shares     how much of an answer is final, against iteration
    settling_order     which places of an answer become final first

Each title is what the numbers say, and is computed from them. Intervals are 95 %, over answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lad.viz.numbers import numbers_of
from lad.viz.style import COLORS, label, log2_axis, new_figure, series, set_title, styled

__all__ = [
    "calibration_curve",
    "convergence",
    "quality_curve",
    "settled_shares",
    "settling_order",
]

# key -> panel's name, axis, factor
PANELS = {
    "relative_perplexity": (
        "perplexity under the backbone",
        "by that of its own answer\n(ratio, less is better)",
        1,
    ),
    "repeats": ("stutter", "tokens that repeat the\none before (%)", 100),
    "nfe": ("cost", "forward passes spent", 1),
}


COUNTED = (("relative_perplexity", "perplexity", ""), ("repeats", "stutter", " %"))

from_study = numbers_of("a study", "lad study")


# -- quality ---------------------------------------------------------------------------------------


@from_study
@styled
def quality_curve(data: Mapping) -> Figure:
    """Perplexity, stutter and cost of the answers against the iterations they were allowed.

    A way without shorter runs is one point, at the forward passes that it spent.
    """
    figure = new_figure(1, len(PANELS), height=3.5)
    for axes, (key, (name, unit, factor)) in zip(figure.axes, PANELS.items(), strict=True):
        for number, (way, points) in enumerate(data["quality"].items()):
            own = [point for point in points if point[key]["value"] is not None]
            x = [point["iterations"] for point in own]
            if len(points) == 1:
                x = [point["nfe"]["value"] for point in own]
            _errorbars(axes, x, [point[key] for point in own], factor, number, way)
        log2_axis(axes, data["iterations"])
        axes.set_ylim(bottom=0)
        if key == "relative_perplexity":
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.8)
            axes.axhline(1, color=COLORS["text"], linestyle=":", linewidth=1.2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda _value, _: "")
        label(axes, "iterations allowed", unit, name)
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3)
    set_title(figure, quality_finding(data))
    return figure


def quality_finding(data: Mapping) -> str:
    """What more iterations did, way by way; told apart only where the intervals are."""
    parts = []
    for way, points in data["quality"].items():
        if len(points) < 2:
            continue
        first, last = points[0], points[-1]
        said = []
        for key, name, factor in (
            ("relative_perplexity", "perplexity", 1),
            ("repeats", "stutter", 100),
        ):
            word = _change(first[key], last[key])
            ends = (
                f"{_number(first[key]['value'], factor)} to {_number(last[key]['value'], factor)}"
            )
            said.append(f"{word} {name} ({ends}{' %' if factor == 100 else ''})")
        span = f"{first['iterations']} to {last['iterations']} iterations"
        parts.append(f"{way}, {span} {' and '.join(said)}")
    return _sentence(parts)


def _change(first: Mapping, last: Mapping) -> str:
    """ "lower", "raise", or neither where either value lies within the other's interval."""

    def bounds(estimate: Mapping) -> list[float]:
        return [
            np.inf if estimate[key] is None else estimate[key] for key in ("low", "value", "high")
        ]

    (a_low, a, a_high), (b_low, b, b_high) = bounds(first), bounds(last)
    if b_high < a_low or (b < a_low and b_high < a):
        return "lower"
    if b_low > a_high or (b > a_high and b_low > a):
        return "raise"
    return "do not clearly change"


# -- convergence -----------------------------------------------------------------------------------


@from_study
@styled
def convergence(data: Mapping) -> Figure:
    """Iterations after which each answer stood, against its tokens; below the line is parallel.

    Filled: the run came to rest by itself. Hollow: it used up its iterations, so its answer stands
    because the run was over.
    """
    ways, limit = data["runs"], data["iterations"][-1]
    figure = new_figure(1, len(ways), height=3.6, sharex=True, sharey=True, squeeze=False)
    most = max(max(run["tokens"], run["stood"]) for runs in ways.values() for run in runs)
    for number, (axes, (way, runs)) in enumerate(zip(figure.axes, ways.items(), strict=True)):
        look = series(number)
        axes.plot([0, most], [0, most], color=COLORS["text"], linestyle="--", linewidth=1.2)
        axes.annotate(
            "y = x: as many\nas tokens", (0.04, 0.97), xycoords="axes fraction", va="top",
            size=8, color=COLORS["muted"],
        )  # fmt: skip
        for rested, face in ((True, look["color"]), (False, "white")):
            own = [run for run in runs if (run["ran"] < limit) == rested]
            axes.plot(
                [run["tokens"] for run in own], [run["stood"] for run in own], linestyle="",
                marker=look["marker"], color=look["color"], alpha=0.7, markerfacecolor=face,
                markersize=5.5, label=("came to rest" if rested else f"ran all {limit} iterations"),
            )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        unit = "iterations until it stands" if number == 0 else ""
        label(axes, "tokens of the answer", unit, way)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=2)
    set_title(figure, convergence_finding(data))
    return figure


def convergence_finding(data: Mapping) -> str:
    """How many answers came to rest by themselves in fewer iterations than they have tokens."""
    parts, limit = [], data["iterations"][-1]
    for way, runs in data["runs"].items():
        rested = [run for run in runs if run["ran"] < limit]
        fewer = sum(run["stood"] < run["tokens"] for run in rested)
        parts.append(f"{fewer} of {len(runs)} {way}")
    return (
        "Answers that come to rest by themselves in fewer iterations than they have tokens: "
        + ", ".join(parts)
    )


# -- calibration -----------------------------------------------------------------------------------


@from_study
@styled
def calibration_curve(data: Mapping) -> Figure:
    """Share of tokens that are right against their confidence; an honest one is on the line."""
    figure = new_figure(1, 2, height=3.7, width_ratios=[1.25, 1])
    left, right = figure.axes
    left.plot([0, 1], [0, 1], color=COLORS["text"], linestyle="--", linewidth=1.2)
    left.annotate("as sure as right", (0.2, 0.25), rotation=38, size=8, color=COLORS["muted"])
    for number, (fraction, found) in enumerate(data["calibration"].items()):
        bins = [one for one in found["bins"] if one["tokens"]]
        name = f"{100 * float(fraction):g} % masked"
        x = [one["confidence"] for one in bins]
        _errorbars(left, x, [one["right"] for one in bins], 1, number, name)
        total = sum(one["tokens"] for one in found["bins"])
        middles = [(one["low"] + one["high"]) / 2 for one in found["bins"]]
        shares = [100 * one["tokens"] / total for one in found["bins"]]
        right.plot(middles, shares, **series(number))
    left.set(xlim=(0, 1), ylim=(0, 1))
    label(left, "confidence (probability of the token)", "share of tokens that are right")
    right.set_ylim(bottom=0)
    label(right, "confidence", "tokens (%)", "how often it is that sure")
    left.legend(loc="lower right")
    set_title(figure, calibration_finding(data))
    return figure


def calibration_finding(data: Mapping) -> str:
    """What the surest tokens are worth, and which way confidence errs on the whole."""
    fractions = sorted(data["calibration"], key=float)
    middle = fractions[len(fractions) // 2]
    found = data["calibration"][middle]
    bins = [one for one in found["bins"] if one["tokens"]]
    last = bins[-1]
    total = sum(one["tokens"] for one in bins)
    lean = sum(one["tokens"] * (one["confidence"] - one["right"]["value"]) for one in bins) / total
    if last["right"]["low"] <= last["confidence"] <= last["right"]["high"]:
        verdict = "as often as it says"
    else:
        verdict = "less" if last["right"]["value"] < last["confidence"] else "more"
        verdict += " often than it says"
    way = "too sure" if lean > 0 else "not sure enough"
    return (
        f"With {100 * float(middle):g} % masked, a token of confidence {last['low']:.1f} to "
        f"{last['high']:.1f} is right in {100 * last['right']['value']:.0f} % of the cases, "
        f"{verdict}; over all tokens the denoiser is {way} by {100 * abs(lean):.0f} points"
    )


# -- settling --------------------------------------------------------------------------------------


@from_study
@styled
def settled_shares(data: Mapping) -> Figure:
    """Mean share of an answer's tokens that are final, against iteration, for each way."""
    figure = new_figure(height=3.6)
    axes = figure.axes[0]
    for number, (way, estimates) in enumerate(data["settled"].items()):
        x = np.arange(1, len(estimates) + 1)
        low, value, high = (100 * np.array([e[key] for e in estimates]) for key in ENDS)
        look = series(number)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
        axes.plot(x, value, label=way, markevery=max(len(x) // 16, 1), **look)
    axes.set_ylim(-2, 104)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(map(len, data["settled"].values()))
    label(axes, f"iterations done, of at most {longest}", "final answer tokens (%), mean")
    figure.legend(loc="outside lower left", ncols=3)
    set_title(figure, settled_finding(data))
    return figure


def settled_finding(data: Mapping) -> str:
    """After how many iterations half of an answer is final."""
    parts = []
    for way, estimates in data["settled"].items():
        after = next(i for i, one in enumerate(estimates, start=1) if one["value"] >= 0.5)
        parts.append(f"{after} {way}")
    return "Iterations after which half of an answer is final, on average: " + ", ".join(parts)


@from_study
@styled
def settling_order(data: Mapping) -> Figure:
    """The iteration after which a token is final, against its place in the answer."""
    figure = new_figure(height=3.6)
    axes = figure.axes[0]
    for number, (way, estimates) in enumerate(data["order"].items()):
        own = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
        x = [100 * (i + 0.5) / len(estimates) + 0.6 * (number - 1) for i, _ in own]
        _errorbars(axes, x, [e for _, e in own], 1, number, way)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    label(axes, "place in the answer (%, from its first token)", "iterations until it is final")
    figure.legend(loc="outside lower left", ncols=3)
    set_title(figure, order_finding(data))
    return figure


def order_finding(data: Mapping) -> str:
    """Whether an answer settles from its beginning."""
    found: dict[str, list[str]] = {}
    for way, estimates in data["order"].items():
        first, last = estimates[0], estimates[-1]
        if first["value"] is None:
            continue
        word = {"raise": "the beginning settles first", "lower": "the end settles first"}.get(
            _change(first, last), "beginning and end settle alike"
        )
        found.setdefault(word, []).append(f"{first['value']:.1f} and {last['value']:.1f} {way}")
    if not found:
        return _sentence(["no answer was long enough to tell its tenths apart"])
    told = [f"{word} ({', '.join(ways)})" for word, ways in found.items()]
    told[0] = told[0].replace("(", "(iterations until first and last tenth are final: ", 1)
    return _sentence(told)


# -- together --------------------------------------------------------------------------------------

ENDS = ("low", "value", "high")


def _errorbars(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Mapping],
    factor: float,
    number: int,
    name: str,
) -> None:
    """A line with intervals; an end that is not finite is left open at the top of the panel."""
    values = factor * np.array([e["value"] for e in estimates], dtype=float)
    low = factor * np.array([e["low"] for e in estimates], dtype=float)
    high = factor * np.array(
        [e["value"] * 10 if e["high"] is None else e["high"] for e in estimates], dtype=float
    )
    ends = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
    axes.errorbar(x, values, yerr=ends, capsize=2.5, label=name, elinewidth=1.1, **series(number))


def _number(value: float | None, factor: float = 1) -> str:
    if value is None:
        return "∞"
    return f"{factor * value:.0f}" if factor * abs(value) >= 10 else f"{factor * value:.1f}"


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]
