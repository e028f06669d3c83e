"""How figures look, in one place: size, colours, a second cue beside each colour, PNG and SVG.

`pyplot` is never used. It keeps a global list of figures and expects the main thread, and widget
callbacks run elsewhere; a plain `Figure` with an Agg canvas has neither limit.

Colours are Okabe and Ito's, which people with any kind of colour vision can tell apart. A reader of
a grey print has the second cue: a hatch, a line style, a marker, an underline.

Reference: Okabe and Ito (2008), "Color universal design", https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lad.utils import CacheError, InvalidInput, figures_folder, write_whole

__all__ = [
    "COLORS",
    "DPI",
    "FONT_SIZE",
    "HATCHES",
    "MONOSPACE",
    "SEQUENTIAL",
    "WIDTH",
    "Picture",
    "label",
    "log2_axis",
    "new_figure",
    "save",
    "series",
    "set_title",
    "show",
    "styled",
    "text_color",
    "tint",
    "to_png",
    "to_svg",
]

WIDTH = 8.6  # inches; with DPI, a little under a notebook's column of about 960 pixels
DPI = 110
FONT_SIZE = 10
MONOSPACE = "DejaVu Sans Mono"
SEQUENTIAL = "cividis"  # its lightness rises evenly, so it reads the same in grey

COLORS = {
    "masked": "#D55E00",  # vermillion
    "changed": "#009E73",  # bluish green
    "swap": "#0072B2",
    "duplicate": "#E69F00",
    "replace": "#CC79A7",
    "shift": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
    "text": "#111111",
    "muted": "#595959",  # 7:1 on white
    "grid": "#D9D9D9",
    "plain": "#FFFFFF",
}

# One hatch for one thing, wherever that thing is drawn as an area.
HATCHES = {
    "masked": "///",
    "changed": "...",
    "swap": "xx",
    "duplicate": "||",
    "replace": "oo",
    "shift": "--",
}

_SERIES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    ("#56B4E9", (0, (3, 1, 1, 1)), "P"),
    ("#000000", (0, (1, 1)), "X"),
)

_RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": COLORS["muted"],
    "axes.grid": True,
    "axes.labelcolor": COLORS["text"],
    "axes.labelsize": FONT_SIZE,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT_SIZE,
    "axes.titleweight": "normal",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same glyphs everywhere
    "font.monospace": [MONOSPACE],
    "font.size": FONT_SIZE,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "legend.fontsize": FONT_SIZE - 1,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # long enough to tell one dash pattern from another
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "path",
    "svg.hashsalt": "lad",  # ids inside an SVG come from this instead of from chance
    "xtick.color": COLORS["muted"],
    "xtick.labelcolor": COLORS["text"],
    "xtick.labelsize": FONT_SIZE - 1,
    "ytick.color": COLORS["muted"],
    "ytick.labelcolor": COLORS["text"],
    "ytick.labelsize": FONT_SIZE - 1,
}

# matplotlib's settings and caches are shared by all threads, and widgets draw from several.
_LOCK = threading.RLock()

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorator of a figure function: all that it draws is in the common style, one at a time."""

    @functools.wraps(draw)
    def in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        with _LOCK, matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return in_style


@styled
def new_figure(
    rows: int = 1,
    columns: int = 1,
    height: float = 3.4,
    width: float = WIDTH,
    layout: str | None = "constrained",
    **subplots,
) -> Figure:
    """A figure of `rows` x `columns` panels in the common style; they are its `axes`.

    Args:
        rows, columns: numbers of panels; 0 rows for a bare figure.
        height, width: inches.
        layout: None for panels placed by `subplots_adjust`, which saves half the drawing time.
        subplots: further arguments of `Figure.subplots`, such as `sharey` or `width_ratios`.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    if rows:
        figure.subplots(rows, columns, **subplots)
    return figure


def set_title(figure: Figure, text: str) -> None:
    """Put the finding above the whole figure, left-aligned and wrapped to its width."""
    characters = int(figure.get_figwidth() * 10.4)
    figure.suptitle(
        textwrap.fill(text, characters),
        x=0.008,
        ha="left",
        fontsize=FONT_SIZE + 1.5,
        fontweight="bold",
        color=COLORS["text"],
    )


def label(axes: Axes, x: str, y: str, title: str | None = None) -> None:
    """Name both axes of a panel, units included, and perhaps the panel."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title is not None:
        axes.set_title(title, loc="left")


def log2_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Let x double from tick to tick, each with its number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def series(number: int) -> dict:
    """Colour, line style and marker of the n-th line of a plot, as arguments for `Axes.plot`."""
    color, linestyle, marker = _SERIES[number % len(_SERIES)]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def text_color(background) -> str:
    """Black or white, whichever contrasts more with a background (WCAG relative luminance)."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in to_rgb(background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#FFFFFF"


def tint(color: str, share: float = 0.3) -> tuple[float, float, float]:
    """A colour thinned with white, light enough for black text."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes every time."""
    buffer = io.BytesIO()
    with _LOCK, matplotlib.rc_context(_RC):
        _settle(figure)
        # Without `Software`, which would name matplotlib's version.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time; letters are outlines, so no font is needed."""
    buffer = io.BytesIO()
    with _LOCK, matplotlib.rc_context(_RC):
        _settle(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out once and for all: a second layout would start from the first's result."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@dataclass(frozen=True)
class Picture:
    """What a notebook cell shows: the PNG, and words for whoever does not see it.

    JupyterLab drops the `alt` of a bare PNG output, so the picture also goes as HTML that has it.
    """

    png: bytes
    alt: str

    @property
    def html(self) -> str:
        """An `<img>` that holds the picture itself."""
        return (
            f'<img src="data:image/png;base64,{self._encoded}" alt="{html.escape(self.alt)}" '
            'style="max-width: 100%; background: white">'
        )

    @property
    def _encoded(self) -> str:
        return base64.b64encode(self.png).decode("ascii")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html, "image/png": self._encoded, "text/plain": self.alt}


def show(figure: Figure, alt: str, name: str | None = None) -> Picture:
    """The last line of a notebook cell: the figure, and what it shows in words.

    Args:
        figure: its title, if it has one, becomes the beginning of those words.
        alt: what is drawn, for a reader who does not see it.
        name: also write it to the figures folder, see `save`.

    Raises:
        InvalidInput: no words.
    """
    if not alt.strip():
        raise InvalidInput("alt is empty: expected a sentence that says what the figure shows")
    if name is not None:
        save(figure, name)
    title = figure.get_suptitle()
    words = f"{title}. {alt}" if title else alt
    return Picture(to_png(figure), " ".join(words.split()))


def save(figure: Figure, name: str, svg: bool = False) -> Path:
    """Write `name`.png (and .svg) into the figures folder; a file appears whole or not at all.

    Args:
        name: letters, digits, dot, dash and underscore; no folder.

    Returns:
        The PNG's path.

    Raises:
        InvalidInput: a name that is more than a file name.
        CacheError: the folder cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidInput(f"figure name {name!r}: expected letters, digits, '.', '-' or '_'")
    folder = figures_folder()
    if svg:
        _write(folder / f"{name}.svg", to_svg(figure))
    return _write(folder / f"{name}.png", to_png(figure))


def _write(path: Path, data: bytes) -> Path:
    try:
        write_whole(path, data)
    except OSError as error:
        raise CacheError(
            f"cannot write {path} ({error.strerror}): expected a folder that can be written and "
            "has room; set LAD_FIGURES to another one"
        ) from error
    return path
