"""Figures of the denoiser: what its attention lets through, and what its adapter changes.

Shapes: t = positions, p of them prompt; a mask is `(t, t)` bool, rows look, columns are looked at.
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
    new_figure,
    series,
    set_title,
    styled,
    tint,
)

if TYPE_CHECKING:  # only names: figures need no model, and `lad.evaluation.probes` loads torch
    from lad.evaluation.probes import Candidate, Update

__all__ = [
    "adapter_update",
    "attention_effects",
    "attention_explorer",
    "attention_masks",
    "effect_sentence",
    "parameter_bars",
    "predictions",
]

SMALLEST = 1e-3  # moves below this are drawn as this: the axis is logarithmic
SEEN = tint(COLORS["swap"], 0.55)


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
        t = len(mask)
        _matrix(axes, mask, prompt_length)
        label(axes, f"looked at\n({mask.sum()} of {t * t} pairs)", "who looks")
        axes.set_title(name, loc="left", pad=16 if masked else None)
        letter = {"color": COLORS["masked"], "fontweight": "bold", "size": FONT_SIZE - 1}
        for at in masked:
            axes.text(at, -0.7, "M", ha="center", va="bottom", **letter)
            axes.text(t - 0.4, at, "M", ha="left", va="center", **letter)
    p = prompt_length
    to_the_right = [name for name, mask in masks.items() if np.triu(mask[p:, p:], 1).any()]
    read_again = [name for name in to_the_right if _prompt_sees_answer(masks[name], prompt_length)]
    text = f"{_listed(to_the_right)} lets the answer look to its right"
    if not to_the_right:
        text = "No answer position can look to its right"
    elif len(to_the_right) > 1:
        text = text.replace(" lets ", " let ")
    kept = [name for name in to_the_right if name not in read_again]
    if kept:
        text += f"; under {_listed(kept)} the prompt still reads left to right"
    hiding = [name for name, mask in masks.items() if masked and not _shows(mask, masked)]
    if hiding:
        text += f", and under {_listed(hiding)} nothing visible looks at a MASK (M)"
    set_title(figure, text[0].upper() + text[1:])
    return figure


def _prompt_sees_answer(mask: np.ndarray, prompt_length: int) -> bool:
    """Whether a prompt position before the last (which may predict the answer) sees any of it."""
    return bool(mask[: prompt_length - 1, prompt_length:].any())


def _shows(mask: np.ndarray, masked: Sequence[int]) -> bool:
    """Whether any position that is not masked looks at one that is."""
    return bool(np.delete(mask, list(masked), axis=0)[:, list(masked)].any())


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _matrix(axes: Axes, mask: np.ndarray, prompt_length: int, column: int | None = None) -> None:
    """One mask: filled with a dot where a row may look, empty where not."""
    t = len(mask)
    axes.imshow(mask, cmap=ListedColormap(["white", SEEN]), vmin=0, vmax=1, origin="upper")
    size = 60 / t
    looks, at = np.nonzero(mask)
    axes.plot(at, looks, ".", color=COLORS["text"], markersize=min(size, 5))
    axes.set_xticks(np.arange(t + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(t + 1) - 0.5, minor=True)
    axes.grid(which="major", visible=False)
    axes.grid(which="minor", color=COLORS["grid"], linewidth=0.6)
    axes.tick_params(which="both", length=0)
    middle = [(prompt_length - 1) / 2, prompt_length + (t - prompt_length - 1) / 2]
    axes.set_xticks(middle, ["prompt", "answer"])
    axes.set_yticks(middle, ["prompt", "answer"], rotation=90, va="center")
    for line in (axes.axvline, axes.axhline):
        line(prompt_length - 0.5, color=COLORS["masked"], linewidth=1.6, linestyle="--")
    if column is not None:  # of the hidden token: whoever looks there is touched
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
    first = {name: moves[0] for name, moves in effects.items()}
    moved = [f"{100 * move:.3g} % under {name}" for name, move in first.items() if move > 0]
    still = [name for name, move in first.items() if move == 0]
    which = "the last token" if hidden == len(tokens) - 1 else f"token {hidden}"
    text = f"Hiding {which} moves position 0's state by {_listed(moved)}"
    if not moved:
        text = f"Hiding {which} leaves position 0's state exactly as it was"
    elif still:
        text += f", and by exactly 0 under {_listed(still)}"
    set_title(figure, text)
    return figure


def _bars(axes: Axes, moves: np.ndarray, prompt_length: int, hidden: int, color: str) -> None:
    """Moves in percent on a logarithmic axis; an exact zero is written out."""
    t = len(moves)
    position = np.arange(t)
    moved = moves > 0
    height = 100 * np.maximum(moves, SMALLEST)
    answer = position >= prompt_length
    for chosen, hatch in ((moved & ~answer, ""), (moved & answer, "//")):
        axes.bar(
            position[chosen], height[chosen], width=0.8, facecolor=tint(color, 0.6),
            edgecolor=color, hatch=hatch,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(100 * SMALLEST, 400)
    axes.set_yticks([0.1, 1, 10, 100], ["≤0.1", "1", "10", "100"])
    axes.minorticks_off()
    for at in position[~moved]:
        axes.text(at, 0.13, "0", ha="center", va="bottom", size=FONT_SIZE - 1, fontweight="bold")
    axes.axvline(prompt_length - 0.5, color=COLORS["masked"], linewidth=1.6, linestyle="--")
    axes.set_xlim(-0.6, t - 0.4)
    axes.grid(axis="x", visible=False)
    words = {"va": "top", "size": FONT_SIZE - 1, "color": COLORS["muted"]}
    axes.text(prompt_length - 0.6, 380, "prompt ", ha="right", **words)
    axes.text(prompt_length - 0.4, 380, " answer", ha="left", **words)


def _token_ticks(axes: Axes, tokens: Sequence[str], hidden: int) -> None:
    names = [_shown(token.strip() or token) for token in tokens]
    names[hidden] = f"[{names[hidden]}]"
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    long = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, **(turned if long else {}))


def effect_sentence(
    name: str, moves: np.ndarray, tokens: Sequence[str], prompt_length: int, hidden: int
) -> str:
    """What hiding one token does, in words: how many states of prompt and answer move."""
    t = len(tokens)
    prompt = int((moves[:prompt_length] > 0).sum())
    answer = int((moves[prompt_length:] > 0).sum())
    return (
        f"Under {name} attention, hiding token {hidden} ({tokens[hidden]!r}) moves "
        f"{prompt} of {prompt_length} states of the prompt and {answer} of {t - prompt_length} "
        "of the answer."
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
    label(left, "looked at (framed: the hidden token)", "who looks", "the mask")
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
    looks = {"backbone": (COLORS["grid"], ""), "adapter": (tint(COLORS["masked"], 0.6), "//")}
    for row, name in enumerate(("backbone", "adapter")):
        color, hatch = looks[name]
        millions = counts[name] / 1e6
        axes.barh(row, millions, facecolor=color, edgecolor=COLORS["text"], hatch=hatch)
        axes.annotate(
            f"{millions:.3g} million", (millions, row), (5, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
    axes.set_yticks([0, 1], ["backbone (frozen)", "adapter (trained)"])
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("parameters (millions)")
    share = counts["adapter"] / counts["backbone"]
    if share < 1:
        text = (
            f"The trained adapter has {100 * share:.3g} % as many parameters as the frozen backbone"
        )
    else:
        text = f"The adapter has {share:.1f} times as many parameters as its backbone"
    set_title(figure, text)
    return figure


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
    image = axes.imshow(
        sizes, cmap=SEQUENTIAL, aspect="auto", vmin=0, vmax=max(np.nanmax(sizes), 1e-9)
    )
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("‖update‖ / ‖weight‖ (%)")
    axes.grid(visible=False)
    axes.set_yticks(range(len(modules)), modules)
    label(axes, "decoder layer (0 reads the tokens)", "")
    by_module = np.nanmedian(sizes, axis=1)
    most, least = int(by_module.argmax()), int(by_module.argmin())
    if np.nanmax(sizes) == 0:
        text = "A fresh adapter changes nothing: every update is 0"
    elif len(modules) == 1:
        text = f"The adapter moves {modules[0]} by {by_module[0]:.3g} % (median over the layers)"
    else:
        text = (
            f"The adapter moves a weight matrix by {np.nanmedian(sizes):.3g} % (median): "
            f"{modules[most]} most, {by_module[most]:.3g} %; "
            f"{modules[least]} least, {by_module[least]:.3g} %"
        )
    set_title(figure, text)
    return figure


@styled
def predictions(answers: Mapping[str, Sequence[Candidate]], wanted: str) -> Figure:
    """Candidates for one MASK, side by side for several models or inputs.

    Args:
        answers: name -> candidates, likeliest first.
        wanted: the token a reader would put there; marked, and in the title.
    """
    figure = new_figure(1, len(answers), height=2.7, sharex=True)
    given = {}
    for axes, (name, candidates) in zip(figure.axes, answers.items(), strict=True):
        given[name] = next((c.probability for c in candidates if _same(c.text, wanted)), None)
        for row, candidate in enumerate(candidates):
            right = _same(candidate.text, wanted)
            color = COLORS["changed"] if right else COLORS["grid"]
            percent = 100 * candidate.probability
            axes.barh(
                row, percent, facecolor=tint(color, 0.6) if right else color,
                edgecolor=COLORS["text"], hatch="//" if right else "",
            )  # fmt: skip
            axes.annotate(
                f"{percent:.1f} %", (percent, row), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(candidates)), [_shown(c.text) for c in candidates])
        axes.invert_yaxis()
        axes.set_xlim(0, 128)
        axes.set_xticks([0, 50, 100])
        axes.grid(axis="y", visible=False)
        label(axes, "probability (%)", "", name)
    said = [
        f"{100 * p:.3g} % ({name})" if p is not None else f"no place in the first {n} ({name})"
        for (name, p), n in zip(given.items(), map(len, answers.values()), strict=True)
    ]
    set_title(figure, f"“{_shown(wanted.strip())}” gets " + ", ".join(said))
    return figure


def _shown(text: str) -> str:
    """A token's text with its spaces and line breaks visible, safe from formula markup."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("$", r"\$")


def _same(text: str, wanted: str) -> bool:
    return text.strip() == wanted.strip()
