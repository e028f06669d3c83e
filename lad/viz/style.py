"""How figures look: size, colours, a second cue beside each colour, titles, PNG and SVG.

`pyplot` is never used: it keeps a global list of figures and expects the main thread, and widget
callbacks run elsewhere.

Colours: Okabe and Ito (2008), "Color universal design", https://jfly.uni-koeln.de/color/
"""

from __future__ import annotations

import base64
import functools
import html
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
HATCHES = {"masked": "///", "swap": "xx", "duplicate": "||", "replace": "oo", "shift": "--"}
HATCHES["mask"] = HATCHES["masked"]

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


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of a figure function: what it draws is in the common style, one at a time."""

    @functools.wraps(draw)
    def in_style(*args, **kwargs) -> Figure:
        with _LOCK, matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return in_style


def new_figure(
    rows: int = 1, columns: int = 1, height: float = 3.4, layout: str = "constrained", **subplots
) -> tuple[Figure, Axes | list[Axes]]:
    """An empty figure, `height` inches high, of `rows` x `columns` panels, and the panel or panels.

    A layout of "none" is for panels placed by hand and saves half the drawing time.
    """
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, **subplots)
    return figure, figure.axes[0] if rows * columns == 1 else figure.axes


def titled(figure: Figure, finding: str, details: str = "", **place) -> Figure:
    """The figure with its finding above, on one line, and perhaps details in small below.

    A legend below the panels is made before: the details stand on top of it.
    """
    if len(finding) > TITLE_LENGTH:
        finding = finding[: TITLE_LENGTH - 1].rstrip() + "…"
    figure.suptitle(finding, x=0.008, ha="left", color=COLORS["text"], parse_math=False, **place)
    if details and figure.legends:
        figure.legends[0].set_title(details, {"size": 8})
        figure.legends[0].get_title().set_color(COLORS["muted"])
        figure.legends[0].set_alignment("left")
    elif details:
        figure.supxlabel(details, x=0.008, ha="left", color=COLORS["muted"], fontsize=8)
    return figure


def label(axes: Axes, x: str, y: str, title: str | None = None) -> None:
    """Name both axes of a panel, units included, and perhaps the panel."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title is not None:
        axes.set_title(title, loc="left")


def listed(names: Sequence[str]) -> str:
    """Names as a phrase: "a", "a and b", "a, b and c"; "none" if there are none."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]])) or "none"


def span(values: Sequence[float], digits: int = 1) -> str:
    """The range of some numbers: "1.2 to 1.4", or "1.2" where both ends read alike."""
    return " to ".join(dict.fromkeys(f"{end:.{digits}f}" for end in (min(values), max(values))))


def whole_numbers(*axes: Axis, most: int = 10) -> None:
    """At most so many intervals between ticks, all at whole numbers."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True, nbins=most))


def log2_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """Let x double from tick to tick, each with its number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def series(number: int) -> dict:
    """Colour, line style and marker of the n-th line of a plot, as arguments for `Axes.plot`."""
    color, linestyle, marker = _SERIES[number % len(_SERIES)]
    return {"color": color, "linestyle": linestyle, "marker": marker}


def errorbars(axes: Axes, x: Sequence, estimates: Sequence[Mapping], factor=1, **line) -> None:
    """Draw estimates (`value`, `low`, `high`) as points with intervals, times `factor`."""
    values, low, high = intervals(estimates, factor)
    axes.errorbar(x, values, yerr=[values - low, high - values], **line)


def intervals(estimates: Sequence[Mapping], factor: float = 1) -> list[np.ndarray]:
    """Value, low <= value and high >= value of n estimates, times `factor`, `(n,)` each."""
    keys = ("value", "low", "high")
    values, low, high = factor * np.array([[e[k] for e in estimates] for k in keys], dtype=float)
    high = np.where(np.isnan(high), 10 * values, high)  # None is infinity: far outside
    return [values, np.minimum(low, values), np.maximum(high, values)]


def shared_legend(figure: Figure, place: str = "outside lower left", panel: int = 0) -> None:
    """Put the legend of one panel below the whole figure, in one line."""
    handles, names = figure.axes[panel].get_legend_handles_labels()
    figure.legend(handles, names, loc=place, ncols=len(names))


def change(first: Mapping, last: Mapping) -> str:
    """ "rises", "falls", or "" where either value lies within the other's 95 % interval."""
    a, b = first["value"], last["value"]
    outside = not (first["low"] <= b <= first["high"] or last["low"] <= a <= last["high"])
    return ("rises" if b > a else "falls") if outside else ""


def tint(color: str, share: float = 0.3) -> tuple[float, float, float]:
    """A colour thinned with white, light enough for black text."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, two dots a pixel of a page, the same bytes every time."""
    return _print(figure, "png", 2 * figure.dpi, Software=None)  # would name matplotlib's version


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes every time; letters are outlines, so no font is needed."""
    return _print(figure, "svg", "figure", Date=None, Creator=None)


def _print(figure: Figure, kind: str, dpi: float | str, **metadata) -> bytes:
    buffer = io.BytesIO()
    with _LOCK, matplotlib.rc_context(_RC):
        if figure.get_layout_engine() is not None:
            # Laid out once only: a second layout would start from the first's result.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """What a notebook cell shows: the PNG, also as HTML with the words JupyterLab would drop."""

    png: bytes
    alt: str

    @property
    def html(self) -> str:
        """An `<img>` that holds the picture itself."""
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        width = int.from_bytes(self.png[16:20]) // 2  # see `to_png`
        style = f"width: {width}px; max-width: 100%; background: white"
        return f'<img src="{source}" alt="{html.escape(self.alt)}" style="{style}">'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        encoded = base64.b64encode(self.png).decode()
        return {"text/html": self.html, "image/png": encoded, "text/plain": self.alt}


def show(figure: Figure, alt: str, name: str | None = None) -> Picture:
    """The figure as the last line of a cell, with its title and `alt` (not empty) in words.

    With a `name` the figure is also written to the figures folder, see `save`.
    """
    if not alt.strip():
        raise InvalidInput("alt is empty: expected a sentence that says what the figure shows")
    png = save(figure, name).read_bytes() if name else to_png(figure)
    title = figure.get_suptitle()
    return Picture(png, " ".join((f"{title}. {alt}" if title else alt).split()))


def save(figure: Figure, name: str, svg: bool = False) -> Path:
    """Write `name`.png (and .svg) into the figures folder, whole or not at all; the PNG's path."""
    path = figures_folder() / f"{name}.png"
    with disk_errors(path, "set LAD_FIGURES to another folder"):
        write_whole(path, to_png(figure))
        if svg:
            write_whole(path.with_name(f"{name}.svg"), to_svg(figure))
    return path
