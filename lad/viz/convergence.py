"""Five figures on what refinement does, from the numbers of `lad study`.

    quality_curve      perplexity, repeats and cost against the iterations allowed
    convergence        iterations of each answer against its tokens, with the line y = x
    calibration_curve  share of tokens that are right against their confidence
    settled_shares     how much of an answer is final, against iteration
    settling_order     which places of an answer become final first

Intervals are 95 %, over answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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

# key -> panel's name, axis, factor
PANELS = {
    "relative_perplexity": (
        "perplexity under the backbone",
        "by that of its answer\n(ratio, less is better)",
        1,
    ),
    "repeats": ("stutter", "tokens that repeat the\none before (%)", 100),
    "nfe": ("cost", "forward passes spent", 1),
}
# as recorded -> as shown
STRATEGIES = {
    "without re-noising": "noiseless",
    "with re-noising": "re-masking",
    "sure tokens only": "confident only",
}
INTERVAL = {"capsize": 2.5, "elinewidth": 1.1}


def _name(strategy: str) -> str:
    return STRATEGIES.get(strategy, strategy)


@styled
def quality_curve(data: Mapping) -> Figure:
    """Perplexity, stutter and cost of the answers against the iterations they were allowed.

    A strategy without shorter runs is one point, at the forward passes that it spent.
    """
    figure = new_figure(1, len(PANELS), height=3.5)
    for axes, (key, (name, unit, factor)) in zip(figure.axes, PANELS.items(), strict=True):
        for number, (strategy, points) in enumerate(data["quality"].items()):
            finite = [point for point in points if point[key]["value"] is not None]
            x = [point["iterations"] for point in finite]
            if len(points) == 1:
                x = [point["nfe"]["value"] for point in finite]
            line = series(number) | {"label": _name(strategy)} | INTERVAL
            errorbars(axes, x, [point[key] for point in finite], factor, **line)
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
    ends = []
    for strategy, points in data["quality"].items():
        if len(points) > 1:
            values = [point["relative_perplexity"]["value"] or np.inf for point in points]
            ends.append(f"{values[0]:.1f} to {values[-1]:.1f} ({_name(strategy)})")
    steps = data["iterations"]
    set_title(figure, f"{steps[0]} to {steps[-1]} iterations: perplexity {', '.join(ends)}")
    return figure


@styled
def convergence(data: Mapping) -> Figure:
    """Iterations after which each answer stood, against its tokens; below the line is parallel.

    Filled: the run came to rest by itself. Hollow: it used up its iterations, so its answer stands
    because the run was over.
    """
    strategies, limit = data["runs"], data["iterations"][-1]
    figure = new_figure(1, len(strategies), height=3.6, sharex=True, sharey=True, squeeze=False)
    most = max(max(run["tokens"], run["stood"]) for runs in strategies.values() for run in runs)
    found = []
    for number, (axes, (name, runs)) in enumerate(
        zip(figure.axes, strategies.items(), strict=True)
    ):
        line = series(number)
        axes.plot([0, most], [0, most], color=COLORS["text"], linestyle="--", linewidth=1.2)
        axes.annotate(
            "y = x: as many\nas tokens", (0.04, 0.97), xycoords="axes fraction", va="top",
            size=8, color=COLORS["muted"],
        )  # fmt: skip
        rested = [run for run in runs if run["ran"] < limit]
        hollow = [run for run in runs if run["ran"] >= limit]
        for part, face, words in (
            (rested, line["color"], "came to rest"),
            (hollow, "white", f"ran all {limit} iterations"),
        ):
            axes.plot(
                [run["tokens"] for run in part], [run["stood"] for run in part], linestyle="",
                marker=line["marker"], color=line["color"], alpha=0.7, markerfacecolor=face,
                markersize=5.5, label=words,
            )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        unit = "iterations until it stands" if number == 0 else ""
        label(axes, "tokens of the answer", unit, _name(name))
        fewer = sum(run["stood"] < run["tokens"] for run in rested)
        found.append(f"{fewer} of {len(runs)}")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=2)
    set_title(figure, f"Answers at rest in fewer iterations than tokens: {', '.join(found)}")
    return figure


@styled
def calibration_curve(data: Mapping) -> Figure:
    """Share of tokens that are right against their confidence; a calibrated one is on the line."""
    figure = new_figure(1, 2, height=3.7, width_ratios=[1.25, 1])
    left, right = figure.axes
    left.plot([0, 1], [0, 1], color=COLORS["text"], linestyle="--", linewidth=1.2)
    left.annotate("calibrated", (0.2, 0.25), rotation=38, size=8, color=COLORS["muted"])
    for number, (fraction, found) in enumerate(data["calibration"].items()):
        bins = [one for one in found["bins"] if one["tokens"]]
        line = series(number) | {"label": f"{100 * float(fraction):g} % masked"} | INTERVAL
        errorbars(left, [one["confidence"] for one in bins], [one["right"] for one in bins], **line)
        total = sum(one["tokens"] for one in found["bins"])
        middles = [(one["low"] + one["high"]) / 2 for one in found["bins"]]
        shares = [100 * one["tokens"] / total for one in found["bins"]]
        right.plot(middles, shares, **series(number))
    left.set(xlim=(0, 1), ylim=(0, 1))
    label(left, "confidence (probability of the token)", "share of tokens that are right")
    right.set_ylim(bottom=0)
    label(right, "confidence", "tokens (%)", "how often each confidence occurs")
    left.legend(loc="lower right")
    fractions = sorted(data["calibration"], key=float)
    middle = fractions[len(fractions) // 2]
    last = [one for one in data["calibration"][middle]["bins"] if one["tokens"]][-1]
    set_title(
        figure,
        f"A token of confidence {last['low']:.1f} to {last['high']:.1f} is right in "
        f"{100 * last['right']['value']:.0f} % of the cases ({100 * float(middle):g} % masked)",
    )
    return figure


@styled
def settled_shares(data: Mapping) -> Figure:
    """Mean share of an answer's tokens that are final, against iteration, for each strategy."""
    figure = new_figure(height=3.6)
    axes = figure.axes[0]
    found = []
    for number, (strategy, estimates) in enumerate(data["settled"].items()):
        x = np.arange(1, len(estimates) + 1)
        low, value, high = (
            100 * np.array([e[key] for e in estimates]) for key in ("low", "value", "high")
        )
        line = series(number)
        axes.fill_between(x, low, high, color=line["color"], alpha=0.18, linewidth=0)
        axes.plot(x, value, label=_name(strategy), markevery=max(len(x) // 16, 1), **line)
        found.append(f"{int(np.argmax(value >= 50)) + 1} ({_name(strategy)})")
    axes.set_ylim(-2, 104)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(map(len, data["settled"].values()))
    label(axes, f"iterations done, of at most {longest}", "final answer tokens (%), mean")
    figure.legend(loc="outside lower left", ncols=3)
    set_title(figure, f"Half is final after iteration {', '.join(found)}")
    return figure


@styled
def settling_order(data: Mapping) -> Figure:
    """The iteration after which a token is final, against its place in the answer."""
    figure = new_figure(height=3.6)
    axes = figure.axes[0]
    beginning = 0
    for number, (strategy, estimates) in enumerate(data["order"].items()):
        finite = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
        # Side by side, or the bars of one line would hide those of another.
        x = [100 * (i + 0.5) / len(estimates) + 0.6 * (number - 1) for i, _ in finite]
        line = series(number) | {"label": _name(strategy)} | INTERVAL
        errorbars(axes, x, [e for _, e in finite], **line)
        beginning += bool(finite) and change(finite[0][1], finite[-1][1]) == "rises"
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    label(axes, "place in the answer (%, from its first token)", "iterations until it is final")
    figure.legend(loc="outside lower left", ncols=3)
    share = f"{beginning} of {len(data['order'])}"
    set_title(figure, f"The beginning of an answer settles first under {share} strategies")
    return figure
