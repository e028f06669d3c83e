"""Figures of the noise: the schedule between iterations, and the corruption of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.diffusion.schedule import mask_counts, noise_level
from lad.viz.style import (
    COLORS,
    FONT_SIZE,
    HATCHES,
    MONOSPACE,
    errorbars,
    label,
    new_figure,
    series,
    set_title,
    span,
    styled,
    tint,
)

if TYPE_CHECKING:  # only a name: `lad.diffusion.corruption` loads torch
    from lad.diffusion.config import CorruptionConfig

EXPLANATIONS = {
    "mask": "tokens disappear behind MASK",
    "swap": "neighbours change places",
    "duplicate": "a token is overwritten by its left or right neighbour",
    "replace": "a random token stands where another stood",
    "shift": "a run of 1-3 tokens is copied a few positions along, over what stood there",
}
ITERATION = "iteration (0 is the first)"
REMASKED = "tokens masked again"


@dataclass(frozen=True)
class Corrupted:
    """One sentence before and after the corruption.

    Attributes:
        before, after: t pieces each.
        masked: for each position, whether it shows MASK now.
        causes: for each position the kinds that acted on it, in the order in which they acted.
        shares: kind -> share of positions it acted on in this draw.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    masked: tuple[bool, ...]
    causes: tuple[tuple[str, ...], ...]
    shares: dict[str, float]

    @property
    def changed(self) -> int:
        """Number of positions that show something else than before."""
        return sum(a != b for a, b in zip(self.before, self.after, strict=True))

    @property
    def shown(self) -> tuple[str, ...]:
        """For each position the kind that a view names: "mask", the last cause, or ""."""
        return tuple(
            "mask" if masked else (causes[-1] if causes else "")
            for masked, causes in zip(self.masked, self.causes, strict=True)
        )


class Rate(NamedTuple):
    """How often a kind acted at one severity, with a 95 % interval over the answers drawn."""

    kind: str
    severity: float
    mean: float
    low: float
    high: float


# -- the schedule ----------------------------------------------------------------------------------


@styled
def schedule_by_sharpness(
    sharpnesses: Sequence[float] = (1, 3, 5, 10, 20),
    iterations: int = 16,
    answer_length: int = 64,
    noise_start: float = 0.5,
) -> Figure:
    """How fast the noise falls: the noise level, and the tokens masked, for several sharpnesses."""
    figure = new_figure(1, 2, height=3.6)
    left, right = figure.axes
    last = {}
    for number, sharpness in enumerate(sorted(sharpnesses)):
        masks = mask_counts(iterations, answer_length, sharpness, noise_start)
        levels = [noise_level(i, iterations, sharpness) for i in range(iterations)]
        last[sharpness] = _last_mask(masks)
        left.plot(range(iterations), levels, **series(number))
        right.plot(range(iterations), masks, label=f"sharpness {sharpness:g}", **series(number))
    label(left, ITERATION, "share of the starting noise", "the noise level")
    settings = f"answer of {answer_length} tokens, noise start {noise_start:g}"
    label(right, ITERATION, REMASKED, settings)
    right.legend()
    slow, fast = min(last), max(last)
    text = f"The last masks come after iteration {last[slow]} at sharpness {slow:g}, "
    text += f"after {last[fast]} at {fast:g}"
    # After iteration 0 the sharpness does not matter: none of them masks anything.
    set_title(figure, "Nothing is masked again at any sharpness" if last[slow] is None else text)
    return figure


@styled
def schedule_by_noise_start(
    noise_starts: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    iterations: int = 16,
    answer_length: int = 64,
    sharpness: float = 5.0,
) -> Figure:
    """How much noise there is to begin with, and how often that masks a token in all."""
    figure = new_figure(1, 2, height=3.6, width_ratios=(3, 2))
    left, right = figure.axes
    totals = {}
    for number, start in enumerate(sorted(noise_starts)):
        masks = mask_counts(iterations, answer_length, sharpness, start)
        totals[start] = total = sum(masks) / answer_length
        left.plot(range(iterations), masks, **series(number), label=f"noise start {start:g}")
        color = series(number)["color"]
        right.bar(f"{start:g}", total, color=color, edgecolor="white", hatch="/")
        right.annotate(f"{total:.2f}", (number, total), ha="center", va="bottom")
    settings = f"answer of {answer_length} tokens, sharpness {sharpness:g}"
    label(left, ITERATION, REMASKED, settings)
    left.legend()
    label(right, "noise start (share of the answer)", "masks a token", "in the whole run")
    right.grid(axis="x", visible=False)
    right.margins(y=0.12)
    low, high = min(totals), max(totals)
    set_title(
        figure,
        f"Noise start {low:g} masks a token {totals[low]:.1f} times in {iterations} iterations, "
        f"{high:g} masks it {totals[high]:.1f} times",
    )
    return figure


@styled
def schedule_curve(
    iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> Figure:
    """One schedule: tokens masked again after each iteration. Laid out by hand, to be quick."""
    figure = new_figure(height=2.9, width=7.2, layout=None)
    figure.subplots_adjust(left=0.09, right=0.985, top=0.88, bottom=0.17)
    axes = figure.axes[0]
    masks = mask_counts(iterations, answer_length, sharpness, noise_start)
    last = _last_mask(masks)
    axes.fill_between(
        np.arange(iterations + 1) - 0.5, [*masks, masks[-1]], step="post",
        facecolor=tint(COLORS["masked"]), edgecolor=COLORS["masked"], hatch=HATCHES["masked"],
    )  # fmt: skip
    axes.set_xlim(-0.5, iterations - 0.5)
    axes.set_ylim(0, answer_length)
    ends = "" if last is None else f", the last after iteration {last}"
    label(axes, ITERATION, REMASKED, f"{sum(masks)} masks in {iterations} iterations{ends}")
    return figure


def schedule_sentence(
    iterations: int, answer_length: int, sharpness: float, noise_start: float
) -> str:
    """One schedule in words."""
    masks = mask_counts(iterations, answer_length, sharpness, noise_start)
    last = _last_mask(masks)
    if last is None:
        return f"Nothing is masked again in {iterations} iterations: a noiseless run."
    return (
        f"{masks[0]} of {answer_length} tokens masked after iteration 0, the last "
        f"{masks[last]} after iteration {last} of {iterations}; {sum(masks)} in all."
    )


def _last_mask(counts: Sequence[int]) -> int | None:
    """Index of the last iteration after which something is masked."""
    masked = np.flatnonzero(counts)
    return int(masked[-1]) if len(masked) else None


# -- the corruption of training --------------------------------------------------------------------


@styled
def kinds_of_noise(examples: Mapping[str, Corrupted], severity: float) -> Figure:
    """One sentence under each kind of noise: what it does in words, and the tokens it acted on.

    Args:
        examples: kind -> the sentence under that kind alone; any other key is "all together".
        severity: the p they were drawn with.
    """
    first = next(iter(examples.values()))
    blocks = len(examples) + 1
    height = 0.35 + 0.66 * blocks
    figure = new_figure(height=height, layout=None)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.42 / height)
    axes = figure.axes[0]
    axes.set_axis_off()
    axes.set_ylim(blocks, 0)
    texts = [first.before, *(example.after for example in examples.values())]
    axes.set_xlim(0, max(96, *(sum(len(piece) + 1.7 for piece in text) for text in texts)))
    _token_row(axes, 0, "the sentence", "as it was", first.before, [""] * len(first.before))
    for block, (kind, example) in enumerate(examples.items(), start=1):
        note = EXPLANATIONS.get(kind, "masks and all four, colours as above")
        _token_row(axes, block, kind, note, example.after, example.shown)
    structural = [e for kind, e in examples.items() if kind in EXPLANATIONS and kind != "mask"]
    hidden = sum(sum(example.masked) for example in structural)
    text = f"In these draws {hidden} tokens are hidden behind MASK"
    if structural and not hidden:
        wrong = span([example.changed for example in structural], digits=0)
        text = f"Structural noise hides nothing: {wrong} of {len(first.before)} tokens are wrong, "
        text += "all are visible"
    set_title(figure, f"{text} (p = {severity:g})")
    return figure


def _token_row(
    axes: Axes, row: int, name: str, note: str, pieces: Sequence[str], kinds: Sequence[str]
) -> None:
    """A line of words over a line of token boxes; hatched colour under a token names its kind."""
    axes.text(0.4, row + 0.26, name, fontweight="bold", va="center")
    axes.text(15, row + 0.26, note, va="center", color=COLORS["muted"])
    x = 0.3
    for piece, kind in zip(pieces, kinds, strict=True):
        width = len(piece) + 1.3
        color = COLORS[kind or "grid"]
        face = tint(color) if kind else "white"
        axes.add_patch(Rectangle((x, row + 0.42), width, 0.46, facecolor=face, edgecolor=color))
        if kind:
            strip = {"facecolor": "white", "edgecolor": color, "hatch": HATCHES[kind] * 2}
            axes.add_patch(Rectangle((x, row + 0.76), width, 0.12, **strip))
        axes.text(
            x + width / 2, row + 0.59, piece, family=MONOSPACE, size=FONT_SIZE - 1.5,
            ha="center", va="center",
        )  # fmt: skip
        x += width + 0.4


@styled
def masked_share(shares: np.ndarray) -> Figure:
    """How much of an answer is masked in training: `shares` is `(rows,)`, one for each answer."""
    figure = new_figure(height=2.9)
    axes = figure.axes[0]
    none, whole = 100 * (shares == 0).mean(), 100 * (shares == 1).mean()
    edges = np.linspace(0, 1, 21)
    between = shares[(shares > 0) & (shares < 1)]
    heights = 100 * np.histogram(between, edges)[0] / len(shares)
    some = heights > 0
    axes.bar(
        (edges[:-1] + 0.025)[some], heights[some], width=0.05, hatch=HATCHES["masked"],
        edgecolor=COLORS["masked"], facecolor=tint(COLORS["masked"]),
    )  # fmt: skip
    for at, percent, words in ((0, none, "nothing masked"), (1, whole, "all masked")):
        axes.bar(at, percent, width=0.018, color=COLORS["black"])
        axes.annotate(
            f"{words}: {percent:.0f} %", (at, percent), (5 - 10 * at, -3),
            textcoords="offset points", ha="right" if at else "left", va="top",
        )  # fmt: skip
    label(axes, "share of the answer masked", f"training answers (% of {len(shares):,})")
    more = 100 * (shares > 0.5).mean()
    set_title(
        figure,
        f"{none:.0f} % of the training answers have no mask, {more:.0f} % more than half masked",
    )
    return figure


@styled
def corruption_rates(rates: Sequence[Rate], config: CorruptionConfig | None = None) -> Figure:
    """Expected corruption (lines) against drawn (points with 95 % intervals), over p."""

    kinds = list(dict.fromkeys(rate.kind for rate in rates))
    figure = new_figure(1, len(kinds), height=3.2, sharey=True)
    p = np.linspace(0, 1, 51)
    expected = [config.expected_rates(float(x)) for x in p]
    for axes, kind in zip(figure.axes, kinds, strict=True):
        of_kind = sorted((r for r in rates if r.kind == kind), key=lambda r: r.severity)
        lines = [100 * one[kind] for one in expected]
        axes.plot(p, lines, color=COLORS["black"], linestyle="--", linewidth=1.2)
        errorbars(
            axes, [r.severity for r in of_kind],
            [r._asdict() | {"value": r.mean} for r in of_kind], factor=100,
            fmt="o", color=COLORS[kind], markeredgecolor=COLORS["black"], markeredgewidth=0.5,
            capsize=3,
        )  # fmt: skip
        label(axes, "severity p", "share of answers (%)" if kind == "shift" else "", kind)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.axes[0].set_ylabel("tokens corrupted (%)")
    figure.axes[0].set_ylim(bottom=0)
    inside = sum(r.low <= config.expected_rates(r.severity)[r.kind] <= r.high for r in rates)
    # 19 of 20 intervals should hold it; below 17 of 20 something else than chance is at work.
    verb = "agree with" if inside >= 0.85 * len(rates) else "depart from"
    set_title(
        figure, f"Drawn rates {verb} the expected ones: {inside} of {len(rates)} intervals hold it"
    )
    return figure
