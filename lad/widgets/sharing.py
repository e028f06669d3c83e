"""What a reader takes along: the current prompt and settings as a command, as Python, as a link.

All three hold what differs from a preset or the defaults, and give the same settings again.
"""

from __future__ import annotations

import html
import shlex
from urllib.parse import parse_qsl, urlencode

import ipywidgets as widgets

from lad.diffusion.config import RefineConfig, from_texts, nearest_preset, preset, to_text
from lad.utils import LADError
from lad.widgets.controls import WIDE, Controls

DEMO = "http://127.0.0.1:8866/"  # where `lad demo` is by default
DEFAULT_MODEL = "smollm2-135m"


def as_command(prompt: str, config: RefineConfig, model: str = DEFAULT_MODEL) -> str:
    """A command for a POSIX shell that answers the prompt with these settings."""
    name, changes = nearest_preset(config)
    options = {"preset": name} if name != "default" else {}
    options |= changes | ({"model": model} if model != DEFAULT_MODEL else {})
    words = [f"--{option.replace('_', '-')}={to_text(value)}" for option, value in options.items()]
    words = [*words, "--", prompt] if prompt.startswith("-") else [prompt, *words]
    return shlex.join(["lad", "refine", *words])


def as_python(prompt: str, config: RefineConfig, model: str = DEFAULT_MODEL) -> str:
    """The same in Python."""
    start = RefineConfig().to_dict()
    changes = {name: v for name, v in config.to_dict().items() if v != start[name]}
    lines = "".join(f"    {name}={value!r},\n" for name, value in changes.items())
    arguments = f"\n{lines}" if lines else ""
    return (
        f"import lad\n\ndenoiser = lad.load_denoiser({model!r})\n"
        f"config = lad.RefineConfig({arguments})\n"
        f"trace = lad.record(denoiser, {prompt!r}, config)\nprint(trace.answer)"
    )


def as_query(prompt: str, config: RefineConfig) -> str:
    """What follows the demo page's address in a link that carries prompt, preset and settings."""
    name, changes = nearest_preset(config)
    texts = {option: to_text(value) for option, value in changes.items()}
    return "?" + urlencode({"prompt": prompt, "preset": name} | texts)


def from_query(query: str) -> tuple[str, RefineConfig]:
    """Prompt ("" if there is none) and settings of a link; raises InvalidInput for others."""
    values = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
    prompt, start = values.pop("prompt", ""), preset(values.pop("preset", "default"))
    return prompt, RefineConfig.from_dict(start.to_dict() | from_texts(values))


class Sharing:
    """A fold that shows the three and follows its controls: those of prompt, settings and model.

    `demo` is the address of the page that the link opens.
    """

    def __init__(
        self,
        prompt: widgets.ValueWidget,
        settings: Controls,
        model: widgets.ValueWidget,
        demo: str = DEMO,
    ) -> None:
        self._prompt, self._settings, self._model, self._demo = prompt, settings, model, demo
        self.text = widgets.HTML(layout=WIDE)
        self.widget = widgets.Accordion([self.text], titles=["Copy: command, Python, link"])
        self.widget.observe(self._update, "selected_index")
        for control in (prompt, model, *settings.controls.values()):
            control.observe(self._update, "value")

    def _update(self, _change: object = None) -> None:
        if self.widget.selected_index is None:
            return
        prompt = self._prompt.value
        try:
            config = self._settings.config
        except LADError as error:
            self.text.value = html.escape(str(error))
            return
        command, code = (f(prompt, config, self._model.value) for f in (as_command, as_python))
        link = html.escape(self._demo + as_query(prompt, config))
        link = f'<a href="{link}" target="_blank">the demo page, with these settings</a>'
        parts = [f"<pre>{html.escape(text)}</pre>" for text in (command, code)]
        # The buttons copy what stands before them: lad/assets/accessibility.js.
        button = '<button type="button" class="jupyter-button" data-copy>Copy</button>'
        lines = [f"<div class='lad-copy'>{part}{button}</div>" for part in [*parts, link]]
        self.text.value = "".join(lines)
