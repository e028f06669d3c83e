"""What explorers share: sizes, an error as they show it, and a field for each kind of setting."""

from __future__ import annotations

import ipywidgets as widgets

from lad.diffusion.config import RANGES, RefineConfig
from lad.viz.html import escape

__all__ = [
    "FIELD",
    "FULL",
    "LONG",
    "MEDIUM",
    "ROW",
    "SHORT",
    "SPACED",
    "WIDE",
    "choice",
    "error_html",
    "number",
    "slider",
]

# Layouts
WIDE = {"width": "auto"}
FULL = {"width": "100%"}
FIELD = {"width": "26em"}
ROW = {"flex_flow": "row wrap", "align_items": "center"}
SPACED = ROW | {"grid_gap": "0 16px"}
# Styles: room for a control's name
SHORT = {"description_width": "5em"}
MEDIUM = {"description_width": "9em"}
LONG = {"description_width": "11em"}


def error_html(text: str) -> str:
    """An error as an explorer shows it; `lad.report` looks for this mark."""
    return f'<div role="alert"><b>Error:</b> {escape(text)}</div>'


def slider(
    config: RefineConfig, name: str, text: str, step: float, low: float | None = None
) -> widgets.FloatSlider:
    """A slider over the range `RefineConfig` allows for this field."""
    least, most = RANGES[name]
    return widgets.FloatSlider(
        value=getattr(config, name), min=least if low is None else low, max=most, step=step,
        description=text, style=LONG, layout=WIDE,
    )  # fmt: skip


def number(
    config: RefineConfig, name: str, text: str, most: int | None = None
) -> widgets.BoundedIntText:
    """A number field over the range `RefineConfig` allows for this field, or up to `most`."""
    least, highest = RANGES[name]
    return widgets.BoundedIntText(
        value=getattr(config, name), min=least, max=min(highest, most or 2**31 - 1),
        description=text,
        style=LONG, layout=WIDE,
    )  # fmt: skip


def choice(
    config: RefineConfig,
    name: str,
    text: str,
    options: tuple[int, ...],
    none: str = "no limit",
) -> widgets.Dropdown:
    """A few of the numbers this field may have, or None, which `none` puts in words."""
    value = getattr(config, name)
    numbers = sorted({*options, *([] if value is None else [value])})
    # By index: ipywidgets takes the value None for "nothing chosen" and would show a blank.
    return widgets.Dropdown(
        options=[(none, None), *((str(n), n) for n in numbers)],
        index=[None, *numbers].index(value), description=text, style=LONG, layout=WIDE,
    )  # fmt: skip
