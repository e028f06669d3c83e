"""Explorers of the noise: the schedule between iterations, and the corruption of training.

Neither needs a model or a kernel: in a notebook as in the report each is a script,
`lad/assets/noise.js`. It computes what `lad.diffusion.schedule` and `lad.viz.word_corruption` do,
from the same seed; tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from lad.diffusion.config import SETTINGS, CorruptionConfig
from lad.viz.html import ASSETS, ENVIRONMENT, page_html
from lad.viz.noise import EXPLANATIONS
from lad.viz.style import COLORS, tint
from lad.viz.word_corruption import ALL_KINDS, EVERYDAY

NOTE = (
    "Expected is for long answers. In a short one the first and the last token have one neighbour "
    "only, and the number of masks is rounded down, so its means lie a little lower."
)
SCRIPT = (ASSETS / "noise.js").read_text(encoding="utf-8")


class ScheduleExplorer:
    """The noise schedule under its four controls: a curve, and the same in words and numbers."""

    def _repr_html_(self) -> str:
        starts = {"iterations": 16, "answer_length": 64, "sharpness": 5, "noise_start": 0.5}
        most = {"iterations": 128, "answer_length": 256}
        fields = [_setting(name, value, most.get(name)) for name, value in starts.items()]
        return _page(fields, {"explorer": "schedule"})


class CorruptionExplorer:
    """A sentence under the noise of training, and how often each kind is expected to strike.

    Words stand for tokens, see `lad.viz.word_corruption`. That training masks one answer in ten
    whole is left out.
    """

    def _repr_html_(self) -> str:
        sentence = "The river flows past the old town and ends in the sea."
        fields = [
            _field("sentence", "text", "Your sentence", value=sentence),
            _field("severity", "range", "Severity p", value=0.6, min=0, max=1, step=0.05),
            _setting("seed", 0, kind="number"),
            *(_field(k, "checkbox", k, EXPLANATIONS[k], checked=True) for k in ALL_KINDS),
        ]
        data = {"explorer": "corruption", "config": asdict(CorruptionConfig(all_masked=0.0))}
        data |= {"everyday": EVERYDAY, "note": NOTE}
        data |= {"draws": 400, "ends": 3}  # for the means; END tokens, which are corrupted too
        return _page(fields, data, "Draw again")


def _field(name: str, kind: str, label: str, title: str = "", **attributes: object) -> dict:
    given = {"name": name, "type": kind, "label": label, "title": title}
    return given | {"attributes": {"type": kind} | attributes}


def _setting(name: str, value: float, most: int | None = None, kind: str = "range") -> dict:
    """A control of a setting of `RefineConfig`, up to `most` or its highest value."""
    field, step = SETTINGS[name], SETTINGS[name].get("step", 1)
    least, high = step * math.ceil(field["low"] / step), min(field["high"], most or 2**31 - 1)
    attributes = {"value": value, "min": least, "max": high, "step": step}
    return _field(name, kind, field["label"], field["help"], **attributes)


def _page(fields: Sequence[dict], data: dict, button: str | None = None) -> str:
    return page_html(_VIEWS.explorer(fields, button, data, SCRIPT))


def _colors(kind: str) -> tuple[str, str]:
    light = ", ".join(str(round(255 * part)) for part in tint(COLORS[kind], 0.35))
    return COLORS[kind], f"rgb({light})"


_VIEWS = ENVIRONMENT.get_template(
    "noise.html", globals={"colors": {kind: _colors(kind) for kind in ALL_KINDS}}
).module
