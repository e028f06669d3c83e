"""One setting at several values: a run for each, as small multiples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import NoneType
from typing import get_args

import ipywidgets as widgets

from lad.diffusion.config import RefineConfig
from lad.diffusion.trace import Trace
from lad.utils import InvalidInput
from lad.viz.html import answer_html, escape, page_html
from lad.viz.refinement import confidence_maps
from lad.viz.style import show
from lad.viz.tokens import repeated_share
from lad.widgets.controls import COLUMNS, SETTINGS, SPACED, labelled

MOST = 6  # values
KEY = "Confidence from dark red (a guess) to pale green (certain); white below: the run has ended."
WORDS = {"none": None, "true": True, "false": False}


def word(value: object) -> str:
    """A value as `parse` reads it."""
    return next((name for name, one in WORDS.items() if one is value), str(value))


def suggested(name: str, config: RefineConfig) -> list:
    """About five values of a setting near the one it has: all of a list, else evenly apart."""
    field, value = SETTINGS[name], getattr(config, name)
    kinds = (field["type"], *get_args(field["type"]))
    if field["choices"] or bool in kinds:
        return list(field["choices"] or (False, True))[:MOST]
    low, high = field["low"], field["high"]
    if float in kinds and high <= 1:
        return [round(low + n * (high - low) / 4, 2) for n in range(5)]
    if float in kinds:
        near = [round(value + n * 10 * field["step"], 2) for n in range(-4, 5)]
        near = [x for x in near if low <= x <= high]
        return sorted(sorted(near, key=lambda x: abs(x - value))[:5])
    if name == "seed":
        return [value + n for n in range(4)]
    start = 16 if value is None else value
    near = sorted({start * 2**n // 8 for n in range(5)})
    return [None] * (NoneType in kinds) + [x for x in near if low <= x <= high]


def parse(name: str, text: str, config: RefineConfig) -> dict[str, RefineConfig]:
    """Settings for each value of a text with commas, by name.

    InvalidInput if one is no value, or where the setting has no effect.
    """
    field = SETTINGS[name]
    if config.remasking not in field.get("used_by", (config.remasking,)):
        raise InvalidInput(
            f"{field['label']} has no effect where {SETTINGS['remasking']['label']} is "
            f"{config.remasking}: expected {' or '.join(field['used_by'])} there"
        )
    typed = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    if not 2 <= len(typed) <= MOST:
        raise InvalidInput(f"{len(typed)} values: expected 2 to {MOST}, with commas between them")
    runs = {}
    for one in typed:
        value = one
        if not field["choices"]:
            with suppress(ValueError):  # then it is refused below, with what is expected
                value = WORDS[one] if one in WORDS else json.loads(one)
        runs[f"{field['label']}: {one}"] = replace(config, **{name: value})
    return runs


def differences(config: RefineConfig, other: RefineConfig, most: int = 3) -> str:
    """What settings differ from others, in words: "Temperature 0.7, Seed 1"."""
    values, others = config.to_dict(), other.to_dict()
    names = [name for name, value in values.items() if value != others[name]]
    said = [f"{SETTINGS[n]['label']} {word(values[n])}" for n in names[:most]]
    more = [f"and {len(names) - most} more"] * (len(names) > most)
    return ", ".join(said + more) or "the same settings"


class Sweep:
    """A setting, its values, and a card for the run at each of them."""

    def __init__(self, current: Callable[[], RefineConfig], start: Callable[[], object]) -> None:
        """`current` returns all other settings, `start` is called when the button is pressed."""
        self._current = current
        labels = [(field["label"], name) for name, field in SETTINGS.items()]
        self.setting = labelled(widgets.Dropdown, "Setting", 26, options=labels)
        self.values = labelled(widgets.Text, "Values", 26)
        self.values.tooltip = f"2 to {MOST} values, with commas between them"
        self.button = widgets.Button(description="Sweep", icon="th")
        self.button.tooltip = "run the prompt once for each value, all else as set above"
        self.cards = widgets.GridBox(layout=COLUMNS)
        self.setting.observe(self._suggest, "value")
        self.button.on_click(lambda _button: start())
        bar = widgets.HBox([self.setting, self.values, self.button], layout=SPACED)
        self.key = widgets.HTML(KEY, layout={"display": "none"})
        self.widget = widgets.VBox([bar, self.key, self.cards])
        self.setting.value = "remasking"

    def _suggest(self, _change: object = None) -> None:
        values = suggested(self.setting.value, self._current())
        self.values.value = ", ".join(word(value) for value in values)

    def runs(self) -> dict[str, RefineConfig]:
        """The settings to run, by name."""
        return parse(self.setting.value, self.values.value, self._current())

    def show(self, runs: Mapping[str, Trace]) -> None:
        """A card a run: its confidence by position and iteration, its answer and its cost."""
        figures = confidence_maps(list(runs.values()))
        cards = []
        for (name, trace), figure in zip(runs.items(), figures, strict=True):
            title = f"<div><strong>{escape(name)}</strong></div>"
            alt = f"Confidence by position and iteration, {name}: pale green is certain."
            repeats = f"<div>{repeated_share(trace):.0%} of its tokens repeat the one before.</div>"
            parts = title, show(figure, alt).html, answer_html(trace), repeats
            cards.append(widgets.HTML(page_html(*parts), layout={"min_width": "0"}))
        self.cards.children, self.key.layout.display = cards, ""

    def clear(self) -> None:
        """No cards."""
        self.cards.children, self.key.layout.display = (), "none"
