"""Figures of training: the loss over the steps, and the scores on pairs never trained on.

The log is that of `lad.training`: rows of `{"step", "loss", "seconds", ...}` and, now and then,
`{"step", "validation": {"0.25": {"ce", "accuracy", "error", "n", "answers"}, ...}, ...}`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby, pairwise, product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lad.evaluation.statistics import wilson
from lad.utils import InvalidInput
from lad.viz import style
from lad.viz.style import COLORS, errorbars, label, new_figure, series, styled, titled


@styled
def loss_curve(log: Sequence[dict]) -> Figure:
    """The training loss: every logged row (two at least) as a dot, and their running median."""
    log = [row for row in log if "loss" in row]
    if len(log) < 2:
        raise InvalidInput(f"{len(log)} rows with a loss: expected at least 2 to draw a curve")
    steps = np.array([row["step"] for row in log])
    losses = np.array([row["loss"] for row in log], dtype=float)
    half = max(len(log) // 10, 3) // 2
    # As many rows before as after, so that the median begins where the loss does.
    smooth = [np.median(losses[max(i - half, 0) : i + min(i, half) + 1]) for i in range(len(log))]
    figure, axes = new_figure(height=3.4)
    axes.plot(steps, losses, "o", color=COLORS["shift"], markersize=3, label="a log row")
    axes.plot(steps, smooth, color=COLORS["swap"], linewidth=2.2, label="running median")
    axes.legend(loc="upper right")
    style.whole_numbers(axes.xaxis)
    axes.set_xlim(steps[0] - 0.02 * (steps[-1] - steps[0]), steps[-1] * 1.01)
    label(axes, "optimiser step", "cross-entropy (nats a token)")
    seconds = np.array([row.get("seconds", np.nan) for row in log], dtype=float)
    if (np.diff(steps) > 0).all() and (np.diff(seconds) > 0).all():
        _time_axis(axes, steps, seconds)
    first, last = smooth[0], smooth[-1]
    spread = 1.4826 * np.median(np.abs(losses - smooth))  # a robust standard deviation
    verb = "falls" if last < first - 2 * spread else "stays where it is"
    verb = "rises" if last > first + 2 * spread else verb
    ends = f"{first:.2f} at step {steps[0]:,}, {last:.2f} at step {steps[-1]:,}"
    return titled(figure, f"The loss {verb}: {ends} (running median)")


def _time_axis(axes: Axes, steps: np.ndarray, seconds: np.ndarray) -> None:
    """A second axis above: wall time, read off the log; beyond its ends, at its mean speed."""
    minutes = seconds[-1] > 300
    at_step, at_time = (
        np.array([2 * values[0] - values[-1], *values, 2 * values[-1] - values[0]])
        for values in (steps, seconds / (60 if minutes else 1))
    )
    to_time = functools.partial(np.interp, xp=at_step, fp=at_time)
    to_step = functools.partial(np.interp, xp=at_time, fp=at_step)
    upper = axes.secondary_xaxis("top", functions=(to_time, to_step))
    upper.set_xlabel("minutes" if minutes else "seconds")


@styled
def validation_curves(log: Sequence[dict]) -> Figure:
    """Cross-entropy and accuracy on held-out pairs, for each share of the answer masked.

    Accuracy has 95 % intervals over answers: Wilson's, for as many independent tokens as would have
    the same standard error. Logs of an earlier version lack that error and are drawn without. Where
    another number of tokens was masked, the pairs were others: the lines are interrupted there.
    """
    found = [(row["step"], row["validation"].items()) for row in log if "validation" in row]
    log = [{"step": step, **{f: s for f, s in scores if s["n"]}} for step, scores in found]
    if not (log := [row for row in log if len(row) > 1]):
        raise InvalidInput("no row with a validation of a token: expected at least one")
    shares = sorted(log[-1].keys() - {"step"}, key=float)
    figure, (left, right) = new_figure(1, 2, height=3.3)
    for number, share in enumerate(shares):
        rows = [row for row in log if share in row]
        line = series(number) | {"label": f"{100 * float(share):g} % masked"}
        for _, same in groupby(rows, lambda row: row[share]["n"]):  # noqa: B023
            steps, scores = zip(*((row["step"], row[share]) for row in same), strict=True)
            left.plot(steps, [score["ce"] for score in scores], **line)
            line["label"] = None
            errorbars(right, steps, [*map(_over_answers, scores)], 100, capsize=2.5, **line)
    label(left, "optimiser step", "cross-entropy (nats a token)")
    label(right, "optimiser step", "tokens right (%)")
    style.whole_numbers(left.xaxis, right.xaxis, most=6)
    middle = shares[len(shares) // 2]
    style.shared_legend(figure)
    last, first = log[-1][middle], log[0].get(middle, {})
    counted = [(row["step"], row[middle]["n"]) for row in log if middle in row]
    changes = [(a + b) / 2 for (a, n), (b, m) in pairwise(counted) if n != m]
    for axes, step in product((left, right), changes):
        axes.axvline(step, color=COLORS["text"], linestyle=":", linewidth=1.2)
    text = f"With {100 * float(middle):g} % masked, {100 * last['accuracy']:.0f} % of the held-out "
    text += "tokens are right"
    if len(log) > 1 and first and not changes:
        text += f", {100 * first['accuracy']:.0f} % at step {log[0]['step']:,}"
    notes = ["at a dotted line the held-out pairs change: compare points of one side only"]
    notes = notes * bool(changes) + ["bars: 95 % intervals over answers"] * ("error" in last)
    return titled(figure, text, "; ".join(notes))


def _over_answers(score: dict) -> dict:
    value, error = score["accuracy"], score.get("error")
    if error is None:
        return dict.fromkeys(("value", "low", "high"), value)
    n = value * (1 - value) / error**2 if error else score["answers"]
    return wilson(value * n, n).to_dict()
