"""The report: every notebook executed in order, as pages that can be read without a network.

`python -m lad.report` runs `notebooks/[0-9]*.ipynb` one after the other and writes

    build/report/index.html           what there is, in order, with versions and times
    build/report/<notebook>.html      the executed notebook; images, styles and formulas inside
    build/report/figures/*            what the notebooks saved

A notebook sees `LAD_FIGURES` (a folder inside the report) and the caller's `LAD_PROFILE`. In the
full profile its figures are copied to `lad.utils.figures_folder()` at the end. The report is built
beside its place and swapped in when it is whole: a failing cell, or an error inside a widget,
leaves the previous report as it was.

A page loads nothing from elsewhere: images and styles are inside, formulas are MathML. A recorded
run has the player of `lad.viz.html`, which works in the page; any other widget is shown as it
stood when its notebook ended. Pages are light or dark as the system is, and light on paper.

`python -m lad.report --check NOTEBOOK...` executes nothing: it searches notebooks that something
else has executed for errors inside widgets.

Needs the `notebooks` extra. References: nbclient; nbconvert's `lab` template and HTMLExporter; the
Jupyter widget state format (`application/vnd.jupyter.widget-state+json`, version 2); latex2mathml.
"""

from __future__ import annotations

import argparse
import html
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment
from latex2mathml.converter import convert as mathml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from tqdm import tqdm

from lad.utils import InvalidInput, LADError, figures_folder, profile

ASSETS = Path(__file__).parent / "assets"
GENERATOR = '<meta name="generator" content="lad.report">'  # tells a report from other folders
ALERT = 'role="alert"'  # how lad.widgets marks an error
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
IMAGES = (".png", ".svg", ".jpg")
PACKAGES = ("lad", "torch", "transformers", "peft", "numpy", "matplotlib", "ipywidgets")


class NotebookFailed(LADError):
    """A cell raised, ran out of time or lost its kernel, or a widget holds an error."""


# -- executing -------------------------------------------------------------------------------------


def _output_errors(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each error among Jupyter outputs, tracebacks on stderr included."""
    for output in outputs:
        if output.get("output_type") == "error":
            yield f"{output.get('ename')}: {output.get('evalue')}"
        elif output.get("output_type") == "stream" and output.get("name") == "stderr":
            text = "".join(output.get("text", ""))
            if "Traceback (most recent call last)" in text:  # printed by a thread
                yield text.strip().splitlines()[-1]


def widget_errors(notebook: Mapping[str, Any]) -> list[str]:
    """Errors that an executed notebook holds although its cells passed, one line each.

    An exception in a callback is caught by the Output widget around it, or ends its thread; runners
    call such a notebook passed. Searches the stored widget state and the cells' outputs.
    """
    found = []
    for model, entry in _widget_state(notebook).items():
        state, name = entry.get("state", {}), f"{entry.get('model_name', 'widget')} {model[:8]}"
        found += [f"{name}: {error}" for error in _output_errors(state.get("outputs") or ())]
        value = state.get("value")
        if isinstance(value, str) and ALERT in value:
            found.append(f"{name}: {re.sub('<[^>]*>', '', value).strip()}")
    for number, cell in enumerate(notebook.get("cells", ()), start=1):
        found += [f"cell {number}: {error}" for error in _output_errors(cell.get("outputs", ()))]
    return found


def _widget_state(notebook: Mapping[str, Any]) -> dict[str, dict]:
    """Widget models by id, as a notebook stores them."""
    return notebook.get("metadata", {}).get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})


def execute(
    path: Path, figures: Path, timeout: float, on_cell: Callable[[], object] = lambda: None
) -> NotebookNode:
    """Execute one notebook in a fresh kernel, in the notebook's folder.

    Args:
        path: the notebook; the file itself is not changed.
        figures: where its figures go (`LAD_FIGURES`).
        timeout: seconds a cell may take.
        on_cell: called when a cell starts.

    Returns:
        The executed notebook, widget state included.

    Raises:
        NotebookFailed: naming notebook and cell.
    """
    notebook = nbformat.read(path, as_version=4)
    current = 0

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal current
        current = cell_index
        on_cell()

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",  # of this environment, whatever the file says
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=started,
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only: the terminal shows progress
    )
    environment = {
        **os.environ,
        "LAD_FIGURES": str(figures),
        "LAD_PROFILE": profile(),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences a debugger's warning in every kernel
    }
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # set on Ctrl-C: it ended the kernel
            raise KeyboardInterrupt from error
        if isinstance(error, CellExecutionError):
            print(error.traceback, file=sys.stderr)
            reason = f"{error.ename}: {error.evalue}"
        elif isinstance(error, CellTimeoutError):
            reason = f"not done after {timeout:g} s (--timeout)"
        else:
            reason = "its kernel died (out of memory?)"
        first = notebook.cells[current].source.strip().partition("\n")[0]
        raise NotebookFailed(f"{path.name}, cell {current + 1} (`{first}`): {reason}") from error
    except AssertionError as error:  # nbclient, when Ctrl-C comes between cells
        raise KeyboardInterrupt from error
    if errors := widget_errors(notebook):
        raise NotebookFailed(f"{path.name}: passed, but holds an error: " + "; ".join(errors))
    return notebook


# -- pages -----------------------------------------------------------------------------------------


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
        return values.get("value", "")  # the author's markup, as the live widget shows it
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


def _without_widgets(notebook: NotebookNode) -> NotebookNode:
    """A copy in which every widget is a snapshot, and nothing needs a widget renderer."""
    notebook = nbformat.from_dict(notebook)
    state = _widget_state(notebook)
    notebook.metadata.pop("widgets", None)
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        view = output.get("data", {}).pop(WIDGET_VIEW, None)
        if view and set(output.data) <= {"text/plain"}:  # else it brings HTML for such a page
            output.data["text/html"] = (
                f'<div class="lad-widget">{widget_snapshot(state, view["model_id"])}'
                '<p class="lad-note">A snapshot: the controls work in Jupyter '
                "(<code>make lab</code>).</p></div>"
            )
    return notebook


def page(
    notebook: NotebookNode, title: str, folder: Path, links: Sequence[tuple[str, str]] = ()
) -> str:
    """An executed notebook as one self-contained HTML page.

    Args:
        notebook: executed; not changed.
        title: the page's title.
        folder: what relative image paths in its prose are relative to.
        links: address and label of other pages; an empty address is shown without a link.
    """
    template = (ASSETS / "report_page.html.j2").read_text(encoding="utf-8")
    exporter = HTMLExporter(raw_template=template)
    exporter.register_filter("markdown2html", lambda source: _markdown(source, folder))
    style = (ASSETS / "report.css").read_text(encoding="utf-8")
    resources = {"metadata": {"name": title}, "links": links, "style": style}
    return exporter.from_notebook_node(_without_widgets(notebook), resources)[0]


@dataclass
class Entry:
    """An executed notebook in the index; title and summary come from its first lines."""

    path: Path
    notebook: NotebookNode
    seconds: float

    def __post_init__(self) -> None:
        self.address = f"{self.path.stem}.html"
        text = "\n\n".join(c.source for c in self.notebook.cells if c.cell_type == "markdown")
        heading = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
        self.title = heading.group(1).strip() if heading else self.path.stem
        blocks = re.split(r"\n\s*\n", text[heading.end() :] if heading else text)
        prose = (b for b in blocks if b.strip() and not b.lstrip().startswith(("#", "|", "!", "<")))
        self.summary = _markdown(" ".join(next(prose, "").split()), self.path.parent)


def _write_pages(entries: Sequence[Entry], folder: Path, seconds: float) -> None:
    """The pages and the index, beside the figures that are there already."""

    def link(at: int, label: str) -> tuple[str, str]:
        if not 0 <= at < len(entries):
            return "", label
        return entries[at].address, f"{label}: {entries[at].title}"

    for at, entry in enumerate(entries):
        links = [link(at - 1, "previous"), ("index.html", "index"), link(at + 1, "next")]
        text = page(entry.notebook, entry.title, entry.path.parent, links)
        (folder / entry.address).write_text(text, encoding="utf-8")
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    made = (
        f"Profile {profile()}, {seconds:.0f} s on {platform.system()} {platform.machine()} with "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d %H:%M')}; "
        f"Python {platform.python_version()}, {versions}."
    )
    template = (ASSETS / "report_index.html.j2").read_text(encoding="utf-8")
    text = (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            generator=GENERATOR,
            style=(ASSETS / "report.css").read_text(encoding="utf-8"),
            pages=entries,
            figures=sorted(f.relative_to(folder) for f in folder.rglob("*") if f.suffix in IMAGES),
            made=made,
        )
    )
    (folder / "index.html").write_text(text, encoding="utf-8")


# -- the report ------------------------------------------------------------------------------------


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes that name only when the block succeeds."""
    first = target / "index.html"
    report = first.is_file() and GENERATOR in first.read_text(encoding="utf-8", errors="replace")
    if target.exists() and not report and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidInput(f"{target} is not a report: name another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        fresh, previous = Path(work, "fresh"), Path(work, "previous")
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(previous)
        try:
            fresh.rename(target)
        except OSError:
            if previous.exists():
                previous.rename(target)
            raise


def build_report(notebooks: Path, output: Path, timeout: float = 900.0) -> Path:
    """Execute every numbered notebook in a folder and write the report.

    Args:
        notebooks: the folder; `[0-9]*.ipynb` in it, in the order of their names.
        output: the report's folder; a previous report there is replaced, anything else is not.
        timeout: seconds a cell may take.

    Returns:
        The index page.

    Raises:
        InvalidInput: no notebook there, or `output` holds something else.
        NotebookFailed: a notebook did not run clean; nothing was written.
    """
    paths = sorted(notebooks.resolve().glob("[0-9]*.ipynb"))
    if not paths:
        raise InvalidInput(f"no notebook ([0-9]*.ipynb) in {notebooks}: name their folder")
    published = figures_folder() if profile() == "full" else None
    output = output.absolute()
    started = time.perf_counter()
    entries: list[Entry] = []
    cells = sum(len(nbformat.read(path, as_version=4).cells) for path in paths)
    print(f"executing {len(paths)} notebook(s), profile {profile()}", flush=True)
    with _replacing(output) as folder, tqdm(total=cells, disable=None) as bar:
        (folder / "figures").mkdir()
        for path in paths:
            bar.set_description(path.stem)
            start = time.perf_counter()
            notebook = execute(path, folder / "figures", timeout, bar.update)
            entries.append(Entry(path, notebook, time.perf_counter() - start))
            bar.write(f"  {path.stem}: {entries[-1].seconds:.0f} s")
        _write_pages(entries, folder, time.perf_counter() - started)
    if published:
        shutil.copytree(output / "figures", published, dirs_exist_ok=True)
    return output / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Status 0; 1 a notebook failed; 2 bad input; 130 stopped by Ctrl-C."""
    checkout = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m lad.report", description="Make the report.")
    parser.add_argument("--notebooks", type=Path, default=checkout / "notebooks", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("build/report"), metavar="FOLDER")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a cell may take")
    parser.add_argument("--check", type=Path, nargs="+", metavar="NOTEBOOK", help="only search")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            books = [(path.name, nbformat.read(path, as_version=4)) for path in options.check]
            found = [f"{name}: {e}" for name, book in books for e in widget_errors(book)]
            if found:
                raise NotebookFailed("swallowed errors: " + "; ".join(found))
            print(f"{len(books)} executed notebook(s): no swallowed error in widgets or outputs")
        else:
            index = build_report(options.notebooks, options.output, options.timeout)
            print(f"The report is ready. Open {index}")
    except LADError as error:
        print(f"lad.report: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotebookFailed) else 2
    except (KeyboardInterrupt, CancelledError):
        print("lad.report: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
