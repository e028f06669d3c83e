"""Figures of the denoiser: what its attention mask lets through, and what its adapter changes.

Shapes: t = positions, p of them prompt; a mask is `(t, t)` bool, rows attend to columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lad.viz.style import (
    COLORS,
    FONT_SIZE,
    SEQUENTIAL,
    label,
    listed,
    new_figure,
    series,
    set_title,
    styled,
    tint,
)

if TYPE_CHECKING:  # only names: figures need no model, and `lad.evaluation.probes` loads torch
    from lad.evaluation.probes import Candidate, Update

SMALLEST = 1e-3  # moves below this are drawn as this: the axis is logarithmic
VISIBLE = tint(COLORS["swap"], 0.55)


# -- masks and what they let through ---------------------------------------------------------------


@styled
def attention_masks(
    masks: Mapping[str, np.ndarray], prompt_length: int, masked: Sequence[int] = ()
) -> Figure:
    """The attention masks as small matrices, with prompt and answer marked.

    Args:
        masks: name -> `(t, t)` bool.
        prompt_length: p.
        masked: positions where the draft is MASK; an M marks their rows and columns.
    """
    figure = new_figure(1, len(masks), height=3.4 if len(masks) > 3 else 3.9)
    for axes, (name, mask) in zip(figure.axes, masks.items(), strict=True):
        _matrix(axes, mask, prompt_length)
        label(axes, f"attended to\n({mask.sum()} of {mask.size} pairs)", "attends")
        axes.set_title(name, loc="left", pad=16 if masked else None)
        letter = {"color": COLORS["masked"], "fontweight": "bold", "size": FONT_SIZE - 1}
        for at in masked:
            axes.text(at, -0.7, "M", ha="center", va="bottom", **letter)
            axes.text(len(mask) - 0.4, at, "M", ha="left", va="center", **letter)
    p = prompt_length
    names = [name for name, mask in masks.items() if np.triu(mask[p:, p:], 1).any()]
    verb = "lets" if len(names) == 1 else "let"
    text = f"{listed(names)} {verb} the answer attend to its right"
    if not names:
        text = "No answer position attends to its right"
    set_title(figure, text[0].upper() + text[1:])
    return figure


def _matrix(axes: Axes, mask: np.ndarray, prompt_length: int, column: int | None = None) -> None:
    """One mask: filled with a dot where a row attends, empty where not; `column` in a frame."""
    t = len(mask)
    axes.imshow(mask, cmap=ListedColormap(["white", VISIBLE]), vmin=0, vmax=1, origin="upper")
    rows, columns = np.nonzero(mask)
    axes.plot(columns, rows, ".", color=COLORS["text"], markersize=min(60 / t, 5))
    axes.set_xticks(np.arange(t + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(t + 1) - 0.5, minor=True)
    axes.grid(which="major", visible=False)
    axes.grid(which="minor", color=COLORS["grid"], linewidth=0.6)
    axes.tick_params(which="both", length=0)
    middle = [(prompt_length - 1) / 2, (prompt_length + t - 1) / 2]
    axes.set_xticks(middle, ["prompt", "answer"])
    axes.set_yticks(middle, ["prompt", "answer"], rotation=90, va="center")
    for line in (axes.axvline, axes.axhline):
        line(prompt_length - 0.5, color=COLORS["masked"], linewidth=1.6, linestyle="--")
    if column is not None:
        frame = {"fill": False, "edgecolor": COLORS["masked"], "linewidth": 2.2}
        axes.add_patch(Rectangle((column - 0.5, -0.5), 1, t, **frame))


@styled
def attention_effects(
    effects: Mapping[str, np.ndarray], tokens: Sequence[str], prompt_length: int, hidden: int
) -> Figure:
    """How far every position's final state moves when one token is hidden behind MASK.

    Args:
        effects: name -> `(t,)` move over length of the state, from `lad.evaluation.probes.effects`.
        tokens: t pieces of text.
        prompt_length: p.
        hidden: the position that was hidden.
    """
    figure = new_figure(len(effects), 1, height=1.0 + 1.35 * len(effects), sharex=True, sharey=True)
    for number, (axes, (name, moves)) in enumerate(zip(figure.axes, effects.items(), strict=True)):
        _bars(axes, moves, prompt_length, hidden, series(number)["color"])
        axes.set_title(name, loc="left")
        axes.set_ylabel("move (%)")
    _token_ticks(figure.axes[-1], tokens, hidden)
    figure.axes[-1].set_xlabel("position, with its token (the hidden one in brackets)")
    moved = [name for name, moves in effects.items() if moves[0] > 0]
    which = "the last token" if hidden == len(tokens) - 1 else f"token {hidden}"
    where = f"under {listed(moved)} only" if moved else "under none of these masks"
    set_title(figure, f"Hiding {which} moves position 0's state {where}")
    return figure


def _bars(axes: Axes, moves: np.ndarray, prompt_length: int, hidden: int, color: str) -> None:
    """Moves in percent on a logarithmic axis; an exact zero is written out."""
    t = len(moves)
    position = np.arange(t)
    height = 100 * np.maximum(moves, SMALLEST)
    answer = position >= prompt_length
    for chosen, hatch in (((moves > 0) & ~answer, ""), ((moves > 0) & answer, "//")):
        axes.bar(
            position[chosen], height[chosen], width=0.8, facecolor=tint(color, 0.6),
            edgecolor=color, hatch=hatch,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(100 * SMALLEST, 400)
    axes.set_yticks([0.1, 1, 10, 100], ["≤0.1", "1", "10", "100"])
    axes.minorticks_off()
    for at in position[moves == 0]:
        axes.text(at, 0.13, "0", ha="center", va="bottom", size=FONT_SIZE - 1, fontweight="bold")
    axes.axvline(prompt_length - 0.5, color=COLORS["masked"], linewidth=1.6, linestyle="--")
    axes.set_xlim(-0.6, t - 0.4)
    axes.grid(axis="x", visible=False)
    words = {"va": "top", "size": FONT_SIZE - 1, "color": COLORS["muted"]}
    axes.text(prompt_length - 0.6, 380, "prompt ", ha="right", **words)
    axes.text(prompt_length - 0.4, 380, " answer", ha="left", **words)


def _token_ticks(axes: Axes, tokens: Sequence[str], hidden: int) -> None:
    names = [_printable(token.strip() or token) for token in tokens]
    names[hidden] = f"[{names[hidden]}]"
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **(turned if max(map(len, names)) > 3 else {}))


def effect_sentence(
    name: str, moves: np.ndarray, tokens: Sequence[str], prompt_length: int, hidden: int
) -> str:
    """What hiding one token does, in words: how many states of prompt and answer move."""
    prompt, answer = (int((part > 0).sum()) for part in np.split(moves, [prompt_length]))
    return (
        f"Under {name} attention, hiding token {hidden} ({tokens[hidden]!r}) moves "
        f"{prompt} of {prompt_length} states of the prompt and {answer} of "
        f"{len(tokens) - prompt_length} of the answer."
    )


@styled
def attention_explorer(
    mask: np.ndarray, moves: np.ndarray, tokens: Sequence[str], prompt_length: int, hidden: int
) -> Figure:
    """One mask and the effect of hiding one token, side by side. Laid out by hand, to be quick."""
    figure = new_figure(1, 2, height=3.3, layout=None, width_ratios=(1, 1.9))
    figure.subplots_adjust(left=0.06, right=0.99, top=0.91, bottom=0.27, wspace=0.2)
    left, right = figure.axes
    _matrix(left, mask, prompt_length, hidden)
    label(left, "attended to (framed: the hidden token)", "attends", "the mask")
    _bars(right, moves, prompt_length, hidden, series(0)["color"])
    _token_ticks(right, tokens, hidden)
    label(right, "position, with its token", "move of its final state (%)", "what moves")
    return figure


# -- the adapter -----------------------------------------------------------------------------------


@styled
def parameter_bars(counts: Mapping[str, int]) -> Figure:
    """Sizes of backbone and adapter, the two keys of `Denoiser.parameter_counts()`."""
    figure = new_figure(height=1.9)
    axes = figure.axes[0]
    bars = {"backbone": (COLORS["grid"], ""), "adapter": (tint(COLORS["masked"], 0.6), "//")}
    for row, (name, (color, hatch)) in enumerate(bars.items()):
        _bar(axes, row, counts[name] / 1e6, f"{counts[name] / 1e6:.3g} million", color, hatch)
    axes.set_yticks([0, 1], ["backbone (frozen)", "adapter (trained)"])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.set_xlabel("parameters (millions)")
    share = 100 * counts["adapter"] / counts["backbone"]
    set_title(figure, f"The trained adapter has {share:.3g} % of the frozen backbone's parameters")
    return figure


def _bar(axes: Axes, row: int, length: float, words: str, color: object, hatch: str) -> None:
    axes.barh(row, length, facecolor=color, edgecolor=COLORS["text"], hatch=hatch)
    axes.annotate(words, (length, row), (5, 0), textcoords="offset points", va="center")
    axes.grid(axis="y", visible=False)


@styled
def adapter_update(updates: Sequence[Update]) -> Figure:
    """How large the adapter's update of each weight matrix is, by layer and module."""
    modules = list(dict.fromkeys(update.module for update in updates))
    layers = 1 + max(update.layer for update in updates)
    sizes = np.full((len(modules), layers), np.nan)
    for update in updates:
        sizes[modules.index(update.module), update.layer] = 100 * update.size
    figure = new_figure(height=0.9 + 0.34 * len(modules))
    axes = figure.axes[0]
    # From 0, so that a small update does not look like a large one.
    top = max(np.nanmax(sizes), 1e-9)
    image = axes.imshow(sizes, cmap=SEQUENTIAL, aspect="auto", vmin=0, vmax=top)
    figure.colorbar(image, ax=axes, pad=0.01).set_label("‖update‖ / ‖weight‖ (%)")
    axes.grid(visible=False)
    axes.set_yticks(range(len(modules)), modules)
    label(axes, "decoder layer (0 reads the tokens)", "")
    by_module = np.nanmedian(sizes, axis=1)
    most, least = int(by_module.argmax()), int(by_module.argmin())
    set_title(
        figure,
        f"The adapter moves weights by {np.nanmedian(sizes):.3g} % (median): {modules[most]} most, "
        f"{modules[least]} least",
    )
    return figure


@styled
def predictions(answers: Mapping[str, Sequence[Candidate]], wanted: str) -> Figure:
    """Candidates for one MASK, side by side for several models or inputs.

    Args:
        answers: name -> candidates, likeliest first.
        wanted: the token a reader would fill in; marked, and in the title.
    """
    figure = new_figure(1, len(answers), height=2.7, sharex=True)
    found = []
    for axes, (name, candidates) in zip(figure.axes, answers.items(), strict=True):
        percents = {c.text.strip(): 100 * c.probability for c in reversed(candidates)}
        percent = percents.get(wanted.strip())
        found.append("not among them" if percent is None else f"{percent:.3g} %")
        for row, one in enumerate(candidates):
            right = one.text.strip() == wanted.strip()
            color = tint(COLORS["changed"], 0.6) if right else COLORS["grid"]
            percent = 100 * one.probability
            _bar(axes, row, percent, f"{percent:.1f} %", color, "//" if right else "")
        axes.set_yticks(range(len(candidates)), [_printable(c.text) for c in candidates])
        axes.invert_yaxis()
        axes.set_xlim(0, 128)
        axes.set_xticks([0, 50, 100])
        label(axes, "probability (%)", "", name)
    set_title(figure, f"“{wanted.strip()}” gets {', '.join(found)} (left to right)")
    return figure


def _printable(text: str) -> str:
    """A token's text with its spaces and line breaks visible, safe from formula markup."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("$", r"\$")
