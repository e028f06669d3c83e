"""Executed notebooks as self-contained HTML: pure functions, nothing is run or written here.

A page made here loads nothing from elsewhere: images and styles are inside, formulas are MathML.
A recorded run has the player of `lad.viz.html`, which works in the page; any other widget is shown as
it stood when its notebook ended, its controls named but not movable. That is what a reader without
a kernel (and without a network) can be given honestly. Pages are light or dark as the reader's
system is, and light on paper.

Needs the `notebooks` extra. References: nbconvert's `lab` template and HTMLExporter; the Jupyter
widget state format (`application/vnd.jupyter.widget-state+json`, version 2); latex2mathml.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

__all__ = [
    "GENERATOR",
    "WIDGET_STATE",
    "Entry",
    "index",
    "navigation",
    "page",
    "widget_snapshot",
]

GENERATOR = '<meta name="generator" content="lad.report">'
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
DARK_THEME = "static/theme-dark.css"  # nbconvert's own, all variables
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

STYLE = """
body.lad {max-width: 60rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5;
          font-family: system-ui, sans-serif; color: #111; background: #fff}
.lad-nav {display: flex; gap: 2rem; padding: .75rem 1rem; border-block: 1px solid #ccc;
          font-family: system-ui, sans-serif}
.lad-nav a {color: #0b57d0; text-decoration: underline}
.lad-nav span, .lad-note {color: #595959}
.lad-widget {border: 1px solid #ccc; padding: .25rem 1rem}
.lad-widget img, figure.lad img {max-width: 100%}
.lad-row {display: flex; flex-wrap: wrap; gap: 0 1.5rem}
figure.lad {margin: 1rem 0 2rem}
main math[display=block] {margin: 1em 0}
@media screen and (prefers-color-scheme: dark) {
  :root {color-scheme: dark}
  body.lad {color: #e6e6e6; background: #111}
  .lad-nav a, body.lad a {color: #8ab4f8}
  .lad-nav span, .lad-note {color: #b0b0b0}
}
@media print {
  .lad-nav {display: none}
  .lad-row, figure.lad, .jp-Cell img {break-inside: avoid}
}
"""

# nbconvert's own page, less everything it would load from elsewhere (RequireJS, MathJax, Mermaid,
# the widget renderer), plus links to the neighbouring pages.
TEMPLATE = """{% extends 'index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_css %}<style>{{ resources.lad_style }}</style>{% endblock %}
{% block notebook_css %}{{ super() }}<style>{{ resources.lad_dark }}</style>{% endblock %}
{% block body_header %}{{ super() }}{{ resources.lad_nav }}{% endblock %}
{% block body_footer %}{{ resources.lad_nav }}{{ super() }}{% endblock %}
"""


class _Markdown(IPythonRenderer):
    """Markdown with formulas as MathML, which a browser shows without a script."""

    def _math(self, body: str, display: str) -> str:
        try:
            return mathml(body.strip(), display=display)
        except Exception:  # the converter raises a dozen kinds: show what was written
            return f"<code>{html.escape(body)}</code>"

    def inline_math(self, body: str) -> str:
        return self._math(body, "inline")

    def block_math(self, body: str) -> str:
        return self._math(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self._math(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def _markdown(source: str, folder: Path) -> str:
    """Markdown to HTML; images in files below `folder` are embedded."""
    renderer = _Markdown(
        escape=False, embed_images=True, path=str(folder), exclude_anchor_links=True
    )
    return MarkdownWithMath(renderer=renderer).render(source)


class _Page(HTMLExporter):
    """nbconvert's exporter with this module's markdown."""

    folder = Path()

    def default_filters(self) -> Iterator[tuple[str, Callable]]:
        yield from super().default_filters()
        yield "markdown2html", lambda source: _markdown(source, self.folder)


def widget_snapshot(state: Mapping[str, Any], model: str) -> str:
    """A widget tree as plain HTML: what it showed, and for each control its label and value.

    Args:
        state: widget models by id, as a notebook stores them.
        model: id of the root.

    Returns:
        HTML; empty for a widget that shows nothing (a layout, a hidden box).
    """
    entry = state.get(model, {})
    values, kind = entry.get("state", {}), entry.get("model_name", "")
    layout = state.get(str(values.get("layout")).removeprefix("IPY_MODEL_"), {}).get("state", {})
    if layout.get("display") == "none" or layout.get("visibility") == "hidden":
        return ""
    if children := list(values.get("children", ())):
        if kind in ("AccordionModel", "TabModel"):  # one page is open, or none
            opened = values.get("selected_index")
            children = [] if opened is None else [children[opened]]
        parts = [widget_snapshot(state, c.removeprefix("IPY_MODEL_")) for c in children]
        inside = "".join(f"<div>{part}</div>" for part in parts if part)
        return f'<div class="lad-row">{inside}</div>' if kind == "HBoxModel" else inside
    if kind in ("PlayModel", "IntProgressModel", "FloatProgressModel"):
        return ""
    if kind in ("HTMLModel", "HTMLMathModel"):
        return values.get("value", "")  # the author's own markup, as the live widget shows it
    if kind == "ImageModel":
        data = next((b["data"] for b in entry.get("buffers", ()) if b["path"] == ["value"]), "")
        form = html.escape(values.get("format", "png"))
        return f'<img alt="widget image" src="data:image/{form};base64,{data}">' if data else ""
    if kind == "OutputModel":
        return "".join(_output_snapshot(state, output) for output in values.get("outputs", ()))
    label = values.get("description") or values.get("tooltip") or ""
    if kind in ("ButtonModel", "FileUploadModel"):
        return f'<span class="lad-note">[{html.escape(label)}]</span>'
    value = values.get("value")
    if options := values.get("_options_labels"):
        value = options[values["index"]] if isinstance(values.get("index"), int) else None
    if isinstance(value, bool):
        value = "on" if value else "off"
    shown = ": ".join(str(part) for part in (label, value) if part not in (None, ""))
    return f'<span class="lad-note">{html.escape(shown)}</span>' if shown else ""


def _output_snapshot(state: Mapping[str, Any], output: Mapping[str, Any]) -> str:
    data = output.get("data", {})
    if WIDGET_VIEW in data:
        return widget_snapshot(state, data[WIDGET_VIEW]["model_id"])
    if "text/html" in data:
        return "".join(data["text/html"])
    if "image/png" in data:
        return f'<img alt="widget output" src="data:image/png;base64,{data["image/png"]}">'
    text = "".join(output.get("text") or data.get("text/plain") or "")
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def _static(notebook: NotebookNode) -> NotebookNode:
    """A copy in which every widget is a snapshot, and nothing asks for a widget renderer."""
    notebook = nbformat.from_dict(notebook)
    state = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        view = output.get("data", {}).pop(WIDGET_VIEW, None)
        if view and set(output.data) <= {"text/plain"}:  # else it brings a fallback of its own
            output.data["text/html"] = (
                f'<div class="lad-widget">{widget_snapshot(state, view["model_id"])}'
                '<p class="lad-note">A snapshot: the controls work in Jupyter '
                "(<code>make lab</code>).</p></div>"
            )
    return notebook


def page(notebook: NotebookNode, name: str, folder: Path, nav: str = "") -> str:
    """An executed notebook as one self-contained HTML page.

    Args:
        notebook: executed; not changed.
        name: the page's title.
        folder: what relative image paths in its prose are relative to.
        nav: HTML shown at the top and the bottom.
    """
    exporter = _Page(raw_template=TEMPLATE)
    exporter.folder = folder
    dark = exporter.environment.loader.get_source(exporter.environment, DARK_THEME)[0]
    resources = {
        "metadata": {"name": name},
        "lad_nav": nav,
        "lad_style": STYLE,
        "lad_dark": f"@media screen and (prefers-color-scheme: dark) {{{dark}}}",
    }
    return exporter.from_notebook_node(_static(notebook), resources)[0]


@dataclass
class Entry:
    """An executed notebook as the index knows it; title and summary come from its first lines."""

    path: Path
    notebook: NotebookNode
    seconds: float
    title: str = ""
    summary: str = ""

    def __post_init__(self) -> None:
        text = "\n\n".join(c.source for c in self.notebook.cells if c.cell_type == "markdown")
        heading = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
        self.title = heading.group(1).strip() if heading else self.path.stem
        blocks = re.split(r"\n\s*\n", text[heading.end() :] if heading else text)
        prose = (b for b in blocks if b.strip() and not b.lstrip().startswith(("#", "|", "!", "<")))
        self.summary = " ".join(next(prose, "").split())


def navigation(entries: Sequence[Entry], at: int) -> str:
    """Links to the page before, the index and the page after."""

    def link(position: int, label: str) -> str:
        if not 0 <= position < len(entries):
            return f"<span>{label}</span>"
        entry = entries[position]
        return f'<a href="{entry.path.stem}.html">{label}: {html.escape(entry.title)}</a>'

    return (
        f'<nav class="lad-nav" aria-label="pages">{link(at - 1, "previous")}'
        f'<a href="index.html">index</a>{link(at + 1, "next")}</nav>'
    )


def index(entries: Sequence[Entry], figures: Sequence[Path], made: str) -> str:
    """The report's first page.

    Args:
        entries: the notebooks, in order.
        figures: image files, relative to the page.
        made: one sentence in plain text on how, when and with what this was made.
    """
    rows = "".join(
        f'<li><p><a href="{e.path.stem}.html"><strong>{html.escape(e.title)}</strong></a> '
        f"({e.seconds:.0f} s)</p>{_markdown(e.summary, e.path.parent)}</li>"
        for e in entries
    )
    shown = "".join(
        f'<figure class="lad"><a href="{html.escape(f.as_posix())}">'
        f'<img src="{html.escape(f.as_posix())}" alt="{html.escape(f.stem)}"></a>'
        f"<figcaption>{html.escape(f.name)}</figcaption></figure>"
        for f in figures
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LAD: an explorable report</title><style>{STYLE}</style></head>
<body class="lad"><main><h1>LAD: an explorable report</h1>
<p>LoRA-Adapted Diffusion, step by step. These pages are the notebooks as they ran here; their
controls work in Jupyter: <code>make lab</code>.</p>
<h2>Notebooks</h2><ul>{rows}</ul>
<h2>Figures</h2>{shown or "<p>The notebooks saved none.</p>"}
<h2>How this was made</h2><p>{html.escape(made)}</p>
</main></body></html>
"""
