"""Figures of training: the loss over the steps, and the scores on pairs never trained on.

The rows are those of `lad.training.train`: `{"step", "loss", "accuracy", "tokens", "seconds", ...}`
and, now and then, `{"step", "validation": {"0.25": {"ce", "accuracy"}, ...}, ...}`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lad.utils import InvalidInput
from lad.viz.style import COLORS, label, new_figure, series, set_title, styled

__all__ = ["loss_curve", "running_median", "validation_curves"]


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median over a window of `width` around each value, cut off at both ends: `(n,)` to `(n,)`."""
    half = max(width // 2, 0)
    windows = (values[max(i - half, 0) : i + half + 1] for i in range(len(values)))
    return np.array([np.median(window) for window in windows])


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share that was counted on n independent cases (Wilson, 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


@styled
def loss_curve(rows: Sequence[dict]) -> Figure:
    """The training loss: every logged row as a dot, and their running median.

    The upper axis shows the seconds that had passed at the steps below it.

    Raises:
        InvalidInput: fewer than two rows with a loss.
    """
    rows = [row for row in rows if "loss" in row]
    if len(rows) < 2:
        raise InvalidInput(f"{len(rows)} rows with a loss: expected at least 2 to draw a curve")
    steps = np.array([row["step"] for row in rows])
    losses = np.array([row["loss"] for row in rows], dtype=float)
    drafts = np.array([bool(row.get("drafts")) for row in rows])
    smooth = running_median(losses, max(len(rows) // 10, 3))
    figure = new_figure(height=3.4)
    axes = figure.axes[0]
    axes.plot(
        steps[~drafts], losses[~drafts], "o", color=COLORS["shift"], markersize=3, label="a log row"
    )
    if drafts.any():
        axes.plot(
            steps[drafts], losses[drafts], "x", color=COLORS["duplicate"], markersize=4,
            label="a log row that ends on the model's own drafts",
        )  # fmt: skip
    axes.plot(steps, smooth, color=COLORS["swap"], linewidth=2.2, label="running median")
    axes.legend(loc="upper right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(steps[0] - 0.02 * (steps[-1] - steps[0]), steps[-1] * 1.01)
    label(axes, "optimiser step", "cross-entropy (nats a token)")
    seconds = np.array([row.get("seconds", np.nan) for row in rows], dtype=float)
    if np.isfinite(seconds).all() and (np.diff(steps) > 0).all() and (np.diff(seconds) > 0).all():
        _time_axis(axes, steps, seconds)
    first, last = smooth[0], smooth[-1]
    spread = 1.4826 * np.median(np.abs(losses - smooth))  # what a standard deviation would be
    verb = "stays where it is"
    if abs(last - first) > 2 * spread:
        verb = "falls" if last < first else "rises"
    set_title(
        figure, f"The loss {verb}: {first:.2f} at first, {last:.2f} at step {steps[-1]:,} (medians)"
    )
    return figure


def _time_axis(axes, steps: np.ndarray, seconds: np.ndarray) -> None:
    """A second axis above: wall time. Training does not run evenly, so it is read off the log.

    Beyond both ends the axis goes on at the run's mean speed.
    """
    minutes = seconds[-1] > 300
    unit = 60 if minutes else 1
    at_step, at_second = (
        np.array([2 * values[0] - values[-1], *values, 2 * values[-1] - values[0]])
        for values in (steps, seconds / unit)
    )
    upper = axes.secondary_xaxis(
        "top",
        functions=(
            lambda x: np.interp(x, at_step, at_second),
            lambda x: np.interp(x, at_second, at_step),
        ),
    )
    upper.set_xlabel("minutes" if minutes else "seconds")


@styled
def validation_curves(rows: Sequence[dict]) -> Figure:
    """Cross-entropy and accuracy on held-out pairs, for each share of the answer masked.

    Accuracy has 95 % Wilson intervals where the row gives the number of tokens `n`. They treat
    tokens as independent; tokens of one answer are not quite, so they are a little too narrow.

    Raises:
        InvalidInput: no row with a validation.
    """
    rows = [row for row in rows if "validation" in row]
    if not rows:
        raise InvalidInput("no row with a validation: expected at least one")
    shares = sorted(rows[-1]["validation"], key=float)
    figure = new_figure(1, 2, height=3.3)
    left, right = figure.axes
    for number, share in enumerate(shares):
        kept = [row for row in rows if share in row["validation"]]
        steps = [row["step"] for row in kept]
        scores = [row["validation"][share] for row in kept]
        left.plot(
            steps, [s["ce"] for s in scores], **series(number),
            label=f"{100 * float(share):g} % masked",
        )  # fmt: skip
        right.plot(steps, [100 * s["accuracy"] for s in scores], **series(number))
        for step, score in zip(steps, scores, strict=True):
            if score.get("n"):
                interval = [100 * end for end in wilson(score["accuracy"], score["n"])]
                right.plot([step, step], interval, "-_", color=series(number)["color"])
    left.legend()
    label(left, "optimiser step", "cross-entropy (nats a token)")
    label(right, "optimiser step", "tokens right (%), 95 % interval")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    middle = shares[len(shares) // 2]
    last, first = rows[-1]["validation"][middle], rows[0]["validation"].get(middle)
    text = (
        f"With {100 * float(middle):g} % masked, {100 * last['accuracy']:.0f} % of the held-out "
        f"tokens are right (cross-entropy {last['ce']:.2f})"
    )
    if len(rows) > 1 and first is not None:
        text += f"; at step {rows[0]['step']:,} it was {100 * first['accuracy']:.0f} %"
    set_title(figure, text)
    return figure
