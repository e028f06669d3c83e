"""Figures on what refinement does, from the numbers of `lad study`; intervals over answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from lad.diffusion.config import upgrade
from lad.viz import style
from lad.viz.style import COLORS, errorbars, label, new_figure, series, styled, titled

RATIO = "by that of its answer\n(ratio, less is better)"
# key -> panel's name, axis, factor; what a file does not have is not drawn
PANELS = {
    "relative_perplexity_with_end": ("perplexity, EOS counted", RATIO, 1),
    "relative_perplexity": ("perplexity, EOS left out", RATIO, 1),
    "repeats": ("stutter", "tokens that repeat the\none before (%)", 100),
    "repeated_4grams": ("loops", "4-grams that the answer\nhas before (%)", 100),
    "whole_sentences": ("ends", "answers that end in a\nwhole sentence (%)", 100),
    "nfe": ("cost", "forward passes spent", 1),
}
# What a strategy's rules say about the iterations until an answer settles, whatever the denoiser.
BOUNDS = {
    "guided": "bounded by the method:\nmasks until its schedule ends",
    "threshold": "bounded by the method:\nat least one token a pass",
}
DASHED = {"color": COLORS["text"], "linestyle": "--", "linewidth": 1.2}


def _line(number: int, name: str) -> dict:
    """The look of a line with intervals."""
    return series(number) | {"label": name, "capsize": 2.5, "elinewidth": 1.1}


@styled
def quality_curve(data: Mapping) -> Figure:
    """Perplexity, stutter and cost of the answers against the iterations they were allowed."""
    recorded = next(iter(data["quality"].values()))[0]
    ratio = next(key for key in PANELS if key in recorded)  # with EOS, where that was counted
    keys = [ratio, *(key for key in [*PANELS][2:] if key in recorded)]
    figure, _ = new_figure(-(-len(keys) // 3), 3, height=0.6 + 2.9 * -(-len(keys) // 3))
    for empty in figure.axes[len(keys) :]:
        empty.set_axis_off()
    for axes, key in zip(figure.axes, keys, strict=False):
        name, unit, factor = PANELS[key]
        for number, (strategy, points) in enumerate(data["quality"].items()):
            finite = [point for point in points if point[key]["value"] is not None]
            x, estimates = [point["iterations"] for point in finite], [one[key] for one in finite]
            errorbars(axes, x, estimates, factor, **_line(number, strategy))
        style.log2_axis(axes, data["iterations"])
        axes.set_ylim(bottom=0)
        if key == ratio:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.8)
            axes.axhline(1, color=COLORS["text"], linestyle=":", linewidth=1.2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda _value, _: "")
        label(axes, "iterations allowed", unit, name)
    style.shared_legend(figure)
    ends = []
    for strategy, points in data["quality"].items():
        if len(points) > 1:
            values = [point[ratio]["value"] or np.inf for point in points]
            rises = max(values) > (points[0][ratio]["high"] or np.inf)  # and not by chance
            via = f" via {max(values):.1f}" * rises
            ends.append(f"{values[0]:.1f}{via} to {values[-1]:.1f} {strategy}")
    steps = data["iterations"]
    finding = f"Perplexity, {steps[0]} to {steps[-1]} iterations: {', '.join(ends)}"
    note = "quality: its runs end by themselves, so that there are no shorter ones"
    return titled(figure, finding, note)


@styled
def convergence(data: Mapping) -> Figure:
    """Iterations until each answer settled, against its tokens; below the line is parallel."""
    strategies, limit = data["runs"], data["iterations"][-1]
    figure, _ = new_figure(1, len(strategies), height=3.6, sharex=True, sharey=True)
    most = max(max(run["tokens"], run["stood"]) for runs in strategies.values() for run in runs)
    found = []
    words = {"xycoords": "axes fraction", "va": "top", "size": 8, "color": COLORS["muted"]}
    for number, (name, runs) in enumerate(strategies.items()):
        axes = figure.axes[number]
        dots = series(number) | {"linestyle": "", "alpha": 0.7, "markersize": 5.5}
        axes.plot([0, most], [0, most], **DASHED)
        axes.annotate("y = x: as many\nas tokens", (0.04, 0.97), **words)
        settled = [run for run in runs if run["ran"] < limit]
        hollow = [run for run in runs if run["ran"] >= limit]  # ended by its iterations
        kinds = {"settled": (settled, dots["color"])}
        kinds[f"ran all {limit} iterations"] = hollow, "white"
        for kind, (part, face) in kinds.items():
            x, y = [run["tokens"] for run in part], [run["stood"] for run in part]
            axes.plot(x, y, markerfacecolor=face, label=kind, **dots)
        style.whole_numbers(axes.xaxis, axes.yaxis, most=6)
        unit = "iterations until it settles" if number == 0 else ""
        label(axes, "tokens of the answer", unit, name)
        bound = BOUNDS.get(upgrade(data["ways"][name])["remasking"])
        if bound:
            axes.annotate(bound, (0.97, 0.14), ha="right", **words)
        else:
            fewer = sum(run["stood"] < run["tokens"] for run in settled)
            found.append(f"{name}, {fewer} of {len(runs)}")
    style.shared_legend(figure)
    text = f"Answers settled in fewer iterations than tokens: {', '.join(found)}"
    note = "only noiseless refinement tests this: the method itself bounds the other two"
    return titled(figure, text, note)


@styled
def calibration_curve(data: Mapping) -> Figure:
    """Share of tokens that are right against their confidence."""
    figure, (left, right) = new_figure(1, 2, height=3.7, width_ratios=[1.25, 1])
    left.plot([0, 1], [0, 1], **DASHED)
    left.annotate("calibrated", (0.2, 0.25), rotation=38, size=8, color=COLORS["muted"])
    for number, (fraction, found) in enumerate(data["calibration"].items()):
        bins = [one for one in found["bins"] if one["tokens"]]
        x, right_shares = [one["confidence"] for one in bins], [one["right"] for one in bins]
        name = f"{100 * float(fraction):g} % masked"
        errorbars(left, x, right_shares, **_line(number, name))
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
    text = f"A token of confidence {last['low']:.1f} to {last['high']:.1f} is right in "
    text += f"{100 * last['right']['value']:.0f} % of the cases"
    return titled(figure, f"{text} ({100 * float(middle):g} % masked)")


@styled
def settled_shares(data: Mapping) -> Figure:
    """Mean share of an answer's tokens that are settled, against iteration, for each strategy."""
    figure, axes = new_figure(height=3.6)
    found = []
    for number, (strategy, estimates) in enumerate(data["settled"].items()):
        x = np.arange(1, len(estimates) + 1)
        value, low, high = style.intervals(estimates, 100)
        line = series(number)
        axes.fill_between(x, low, high, color=line["color"], alpha=0.18, linewidth=0)
        axes.plot(x, value, label=strategy, markevery=max(len(x) // 16, 1), **line)
        found.append(f"{int(np.argmax(value >= 50)) + 1} ({strategy})")
    axes.set_ylim(-2, 104)
    style.whole_numbers(axes.xaxis)
    longest = max(map(len, data["settled"].values()))
    label(axes, f"iterations done, of at most {longest}", "settled tokens (%), mean")
    style.shared_legend(figure)
    return titled(figure, f"Iterations until half of the tokens are settled: {', '.join(found)}")


@styled
def settling_order(data: Mapping) -> Figure:
    """The iteration after which a token is settled, against its place in the answer."""
    figure, axes = new_figure(height=3.6)
    beginning = 0
    for number, (strategy, estimates) in enumerate(data["order"].items()):
        finite = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
        # Side by side, or the bars of one line would hide those of another.
        x = [100 * (i + 0.5) / len(estimates) + 0.6 * (number - 1) for i, _ in finite]
        errorbars(axes, x, [e for _, e in finite], **_line(number, strategy))
        beginning += bool(finite) and style.change(finite[0][1], finite[-1][1]) == "rises"
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    label(axes, "place in the answer (%, from its first token)", "iterations until it settles")
    style.shared_legend(figure)
    share = f"{beginning} of {len(data['order'])} strategies"
    return titled(figure, f"The beginning of an answer settles first under {share}")
