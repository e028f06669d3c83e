"""How figures look: size, colours, a second cue beside each colour, titles, PNG and SVG.

`pyplot` is never used: it keeps a global list of figures and expects the main thread, and widget
callbacks run elsewhere. A plain `Figure` with an Agg canvas has neither limit.

Colours are Okabe and Ito's, which people with any kind of colour vision can tell apart. In grey
print the second cue remains: a hatch, a line style, a marker, an underline.

Reference: Okabe and Ito (2008), "Color universal design", https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lad.utils import InvalidInput, disk_errors, figures_folder, write_whole

ASSETS = Path(__file__).parents[1] / "assets"
WIDTH = 8.6  # inches; at 110 dots an inch a little under a notebook's column of about 960 pixels
TITLE_LENGTH = 90  # characters: one line of that width
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
    "black": "#000000",
    "text": "#111111",
    "muted": "#595959",  # 7:1 on white
    "grid": "#D9D9D9",
}
COLORS["mask"] = COLORS["masked"]

# One hatch for one thing, wherever that thing is drawn as an area.
HATCHES = {
    "masked": "///",
    "mask": "///",
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

_RC = matplotlib.rc_params_from_file(ASSETS / "lad.mplstyle", use_default_template=False)

# matplotlib's settings and caches are shared by all threads, and widgets draw from several.
_LOCK = threading.RLock()

Arguments = ParamSpec("Arguments")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorator of a figure function: what it draws is in the common style, one at a time."""

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
    """An empty figure of `rows` x `columns` panels in the common style; they are its `axes`.

    Args:
        rows, columns: numbers of panels; 0 rows for a bare figure.
        height, width: inches.
        layout: None for panels placed by `subplots_adjust`, which saves half the drawing time.
        subplots: further arguments of `Figure.subplots`, such as `sharey` or `width_ratios`.
    """
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    if rows:
        figure.subplots(rows, columns, **subplots)
    return figure


# -- words ----------------------------------------------------------------------------------------


def set_title(figure: Figure, finding: str, details: str = "", **place) -> None:
    """Set the finding above the whole figure, on one line, and perhaps details in small below."""
    if len(finding) > TITLE_LENGTH:
        finding = finding[: TITLE_LENGTH - 1].rstrip() + "…"
    figure.suptitle(finding, x=0.008, ha="left", color=COLORS["text"], parse_math=False, **place)
    if details:
        figure.supxlabel(details, x=0.008, ha="left", color=COLORS["muted"], fontsize=8)


def label(axes: Axes, x: str, y: str, title: str | None = None) -> None:
    """Name both axes of a panel, units included, and perhaps the panel."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title is not None:
        axes.set_title(title, loc="left")


def listed(names: Sequence[str]) -> str:
    """Names as a phrase: "a", "a and b", "a, b and c"; "none" if there are none."""
    if not names:
        return "none"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def span(values: Sequence[float], digits: int = 1) -> str:
    """The range of some numbers: "1.2 to 1.4", or "1.2" where both ends read alike."""
    ends = [f"{end:.{digits}f}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


# -- lines and colours ----------------------------------------------------------------------------


def log2_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Let x double from tick to tick, each with its number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def series(number: int) -> dict:
    """Colour, line style and marker of the n-th line of a plot, as arguments for `Axes.plot`."""
    color, linestyle, marker = _SERIES[number % len(_SERIES)]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def errorbars(
    axes: Axes,
    places: Sequence[float],
    estimates: Sequence[Mapping],
    factor: float = 1,
    horizontal: bool = False,
    **line,
) -> None:
    """Draw estimates (`value`, `low`, `high`) as points with intervals, times `factor`.

    An end that is None, for infinity, leaves the panel.
    """
    values = factor * np.array([e["value"] for e in estimates], dtype=float)
    low = factor * np.array([e["low"] for e in estimates], dtype=float)
    high = factor * np.array(
        [10 * e["value"] if e["high"] is None else e["high"] for e in estimates], dtype=float
    )
    ends = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
    points = (values, places) if horizontal else (places, values)
    axes.errorbar(*points, **{"xerr" if horizontal else "yerr": ends}, **line)


def change(first: Mapping, last: Mapping) -> str:
    """ "rises", "falls", or "" where either value lies within the other's 95 % interval."""
    a, b = first["value"], last["value"]
    outside = not (first["low"] <= b <= first["high"] or last["low"] <= a <= last["high"])
    return ("rises" if b > a else "falls") if outside else ""


def tint(color: str, share: float = 0.3) -> tuple[float, float, float]:
    """A colour thinned with white, light enough for black text."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


# -- files ----------------------------------------------------------------------------------------


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes every time."""
    return _print(figure, "png", Software=None)  # which would name matplotlib's version


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time; letters are outlines, so no font is needed."""
    return _print(figure, "svg", Date=None, Creator=None)


def _print(figure: Figure, kind: str, **metadata) -> bytes:
    buffer = io.BytesIO()
    with _LOCK, matplotlib.rc_context(_RC):
        if figure.get_layout_engine() is not None:
            # Laid out once only: a second layout would start from the first's result.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """What a notebook cell shows: the PNG, and the same in words.

    JupyterLab drops the `alt` of a bare PNG output, so the picture also goes as HTML that has it.
    """

    png: bytes
    alt: str

    @property
    def html(self) -> str:
        """An `<img>` that holds the picture itself."""
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        look = "max-width: 100%; background: white"
        return f'<img src="{source}" alt="{html.escape(self.alt)}" style="{look}">'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        encoded = base64.b64encode(self.png).decode()
        return {"text/html": self.html, "image/png": encoded, "text/plain": self.alt}


def show(figure: Figure, alt: str, name: str | None = None) -> Picture:
    """The figure as the last line of a notebook cell, with what it shows in words.

    Args:
        figure: its title, if it has one, becomes the beginning of those words.
        alt: what is drawn, for a reader who does not see it; InvalidInput if empty.
        name: also write it to the figures folder, see `save`.
    """
    if not alt.strip():
        raise InvalidInput("alt is empty: expected a sentence that says what the figure shows")
    png = to_png(figure)
    if name is not None:
        _write(name, ".png", png)
    title = figure.get_suptitle()
    words = f"{title}. {alt}" if title else alt
    return Picture(png, " ".join(words.split()))


def save(figure: Figure, name: str, svg: bool = False) -> Path:
    """Write `name`.png (and .svg) into the figures folder; a file appears whole or not at all.

    Args:
        name: letters, digits, dot, dash and underscore; no folder.

    Returns:
        The PNG's path; InvalidInput for another name, CacheError for a folder that is read-only.
    """
    if svg:
        _write(name, ".svg", to_svg(figure))
    return _write(name, ".png", to_png(figure))


def _write(name: str, suffix: str, data: bytes) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidInput(f"figure name {name!r}: expected letters, digits, '.', '-' or '_'")
    path = figures_folder() / (name + suffix)
    with disk_errors(path, "set LAD_FIGURES to another folder"):
        write_whole(path, data)
    return path
