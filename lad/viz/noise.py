"""Figures of the noise: the schedule between iterations, and the damage done in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.diffusion.config import CorruptionConfig
from lad.diffusion.corruption import expected_rates
from lad.diffusion.schedule import mask_counts, noise_level
from lad.viz.style import (
    COLORS,
    FONT_SIZE,
    HATCHES,
    MONOSPACE,
    label,
    new_figure,
    series,
    set_title,
    styled,
    tint,
)
from lad.viz.word_corruption import Damage, Rate

__all__ = [
    "EXPLANATIONS",
    "damage_rates",
    "kinds_of_noise",
    "masked_share",
    "schedule_by_noise_start",
    "schedule_by_sharpness",
    "schedule_curve",
    "schedule_sentence",
]

EXPLANATIONS = {
    "mask": "tokens disappear behind MASK",
    "swap": "neighbours change places",
    "duplicate": "a token is overwritten by its left or right neighbour",
    "replace": "a random token stands where another stood",
    "shift": "a run of 1-3 tokens is copied a few positions along, over what stood there",
}


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
    counts = {
        s: mask_counts(iterations, answer_length, s, noise_start) for s in sorted(sharpnesses)
    }
    for number, (sharpness, masks) in enumerate(counts.items()):
        look = series(number) | {"label": f"sharpness {sharpness:g}"}
        left.plot(range(iterations), _noise_levels(iterations, sharpness), **look)
        right.plot(range(iterations), masks, **look)
    label(
        left,
        "iteration (0 is the first)",
        "share of the starting noise",
        "the noise level",
    )
    label(
        right,
        "iteration (0 is the first)",
        "tokens masked again",
        f"answer of {answer_length} tokens, noise start {noise_start:g}",
    )
    right.legend()
    slow, fast = min(counts), max(counts)
    ends = [_last_mask(counts[slow]), _last_mask(counts[fast])]
    if ends[0] is None:  # after iteration 0 the sharpness has no say: neither masks anything
        text = "With these settings nothing is masked again, whatever the sharpness"
    elif ends[0] == ends[1]:
        text = f"At sharpness {slow:g} as at {fast:g} the last masks come after iteration {ends[0]}"
    else:
        text = (
            f"At sharpness {slow:g} the last masks come after iteration {ends[0]} of {iterations}, "
            f"at sharpness {fast:g} after iteration {ends[1]}"
        )
    set_title(figure, text)
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
        totals[start] = sum(masks) / answer_length
        left.plot(range(iterations), masks, **series(number), label=f"noise start {start:g}")
        right.bar(
            f"{start:g}", totals[start], color=series(number)["color"], edgecolor="white", hatch="/"
        )
        right.annotate(f"{totals[start]:.2f}", (number, totals[start]), ha="center", va="bottom")
    label(
        left,
        "iteration (0 is the first)",
        "tokens masked again",
        f"answer of {answer_length} tokens, sharpness {sharpness:g}",
    )
    left.legend()
    label(right, "noise start (share of the answer)", "masks a token", "in the whole run")
    right.grid(axis="x", visible=False)
    right.margins(y=0.12)
    low, high = min(totals), max(totals)
    few, many = totals[low], totals[high]
    if many == 0:
        text = f"Up to a noise start of {high:g} nothing is masked again: the run is noiseless"
    elif few == 0:
        text = f"Noise start {low:g} masks nothing again; {high:g} masks a token {many:.1f} times"
    else:
        text = (
            f"From noise start {low:g} to {high:g} a token is masked again {many / few:.1f} times "
            f"as often: {few:.1f} against {many:.1f} times in {iterations} iterations"
        )
    set_title(figure, text)
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
        np.arange(iterations + 1) - 0.5,
        [*masks, masks[-1]],
        step="post",
        facecolor=tint(COLORS["masked"]),
        edgecolor=COLORS["masked"],
        hatch=HATCHES["masked"],
    )
    axes.set_xlim(-0.5, iterations - 0.5)
    axes.set_ylim(0, answer_length)
    label(
        axes,
        "iteration (0 is the first)",
        "tokens masked again",
        f"{sum(masks)} masks in {iterations} iterations"
        + ("" if last is None else f", the last after iteration {last}"),
    )
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


def _noise_levels(iterations: int, sharpness: float) -> list[float]:
    return [noise_level(i, iterations, sharpness) for i in range(iterations)]


def _last_mask(counts: Sequence[int]) -> int | None:
    """Index of the last iteration after which something is masked."""
    masked = np.flatnonzero(counts)
    return int(masked[-1]) if len(masked) else None


# -- the damage of training ------------------------------------------------------------------------


@styled
def kinds_of_noise(examples: Mapping[str, Damage], severity: float) -> Figure:
    """One sentence under each kind of noise: what it does in words, and the tokens it touched.

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
    widest = max(_row_width(d.after) for d in examples.values())
    axes.set_xlim(0, max(widest, _row_width(first.before), 96))
    _token_row(axes, 0, "the sentence", "as it was", first.before, [""] * len(first.before))
    for block, (kind, damage) in enumerate(examples.items(), start=1):
        note = EXPLANATIONS.get(kind, "masks and all four, colours as above")
        _token_row(axes, block, kind, note, damage.after, damage.shown)
    changed = {k: d.changed for k, d in examples.items() if k in EXPLANATIONS and k != "mask"}
    hidden = sum(sum(d.masked) for kind, d in examples.items() if kind in changed)
    t = len(first.before)
    if changed and not hidden:
        low, high = min(changed.values()), max(changed.values())
        count = f"{low}" if low == high else f"{low} to {high}"
        text = f"Structural noise hides nothing: {count} of {t} tokens are wrong, all are visible"
    else:
        shown = sum(sum(d.masked) for d in examples.values())
        text = f"In these draws {shown} tokens are hidden behind MASK"
    set_title(figure, f"{text} (p = {severity:g})")
    return figure


def _row_width(pieces: Sequence[str]) -> float:
    """Width of a row of tokens, in characters."""
    return sum(len(piece) + 1.7 for piece in pieces)


def _token_row(
    axes: Axes, row: int, name: str, note: str, pieces: Sequence[str], kinds: Sequence[str]
) -> None:
    """A line of words over a line of token boxes; hatched colour under a token says what hit it."""
    axes.text(0.4, row + 0.26, name, fontweight="bold", va="center")
    axes.text(15, row + 0.26, note, va="center", color=COLORS["muted"])
    x = 0.3
    for piece, kind in zip(pieces, kinds, strict=True):
        width = len(piece) + 1.3
        color = COLORS["masked"] if kind == "mask" else COLORS.get(kind, COLORS["grid"])
        face = tint(color) if kind else "white"
        axes.add_patch(Rectangle((x, row + 0.42), width, 0.46, facecolor=face, edgecolor=color))
        if kind:
            hatch = HATCHES["masked" if kind == "mask" else kind]
            strip = Rectangle(
                (x, row + 0.76), width, 0.12, facecolor="white", edgecolor=color, hatch=hatch * 2
            )
            axes.add_patch(strip)
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
    none, whole = float((shares == 0).mean()), float((shares == 1).mean())
    edges = np.linspace(0, 1, 21)
    between = shares[(shares > 0) & (shares < 1)]
    heights = 100 * np.histogram(between, edges)[0] / len(shares)
    bars = {"edgecolor": COLORS["masked"], "facecolor": tint(COLORS["masked"])}
    centres = edges[:-1] + 0.025
    some = heights > 0
    axes.bar(centres[some], heights[some], width=0.05, hatch=HATCHES["masked"], **bars)
    for at, share, words in ((0, none, "nothing masked"), (1, whole, "all masked")):
        axes.bar(at, 100 * share, width=0.018, color=COLORS["black"])
        side = "left" if at == 0 else "right"
        axes.annotate(
            f"{words}: {100 * share:.0f} %", (at, 100 * share), (5 - 10 * at, -3),
            textcoords="offset points", ha=side, va="top",
        )  # fmt: skip
    label(axes, "share of the answer masked", f"training answers (% of {len(shares):,})")
    more = 100 * float((shares > 0.5).mean())
    set_title(
        figure,
        f"{100 * none:.0f} % of the training answers have no mask at all, "
        f"{more:.0f} % are masked by more than half",
    )
    return figure


@styled
def damage_rates(rates: Sequence[Rate], config: CorruptionConfig | None = None) -> Figure:
    """Expected damage (lines) against drawn damage (points with 95 % intervals), over p."""
    kinds = list(dict.fromkeys(rate.kind for rate in rates))
    figure = new_figure(1, len(kinds), height=3.2, sharey=True)
    inside = []
    for axes, kind in zip(figure.axes, kinds, strict=True):
        color = COLORS["masked"] if kind == "mask" else COLORS[kind]
        of_kind = sorted((r for r in rates if r.kind == kind), key=lambda r: r.severity)
        below = [100 * (r.mean - r.low) for r in of_kind]
        above = [100 * (r.high - r.mean) for r in of_kind]
        p = np.linspace(0, 1, 51)
        expected = [100 * expected_rates(float(x), config)[kind] for x in p]
        axes.plot(p, expected, color=COLORS["black"], linestyle="--", linewidth=1.2)
        axes.errorbar(
            [r.severity for r in of_kind],
            [100 * r.mean for r in of_kind],
            yerr=[below, above],
            fmt="o", color=color, markeredgecolor=COLORS["black"], markeredgewidth=0.5, capsize=3,
        )  # fmt: skip
        inside += [r.low <= expected_rates(r.severity, config)[kind] <= r.high for r in of_kind]
        unit = "share of answers (%)" if kind == "shift" else ""
        label(axes, "severity p", unit, kind)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.axes[0].set_ylabel("tokens touched (%)")
    figure.axes[0].set_ylim(bottom=0)
    share = sum(inside) / len(inside)
    # 19 of 20 intervals should hold; below 17 of 20 something else than chance is at work.
    verdict = "agrees with" if share >= 0.85 else "departs from"
    set_title(
        figure,
        f"Drawn damage {verdict} what is expected (dashed): {sum(inside)} of {len(inside)} "
        "intervals (95 %) hold it",
    )
    return figure
