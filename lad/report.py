"""The report: every notebook executed in order, as pages that can be read without a network.

The report is built beside its place and swapped in when it is whole: a failing cell, or an error
inside a widget, leaves the previous report as it was. In a chapter images and styles are inside the
page, formulas are MathML, code is folded, and cells that serve only a running notebook are left
out. An explorer is a script, or menus over recorded runs, or else the run that it shows. The index
has the figures in the chapters' order and copies of their data. In the full profile the
notebooks' figures are copied to `lad.utils.figures_folder()`. Needs the `notebooks` extra.
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

from lad.diffusion.trace import Trace
from lad.utils import InvalidInput, LADError, figures_folder, profile, replace_folder
from lad.viz.gallery import CHECKOUT, COMMAND, DRAWN
from lad.viz.html import page_html, replay_html
from lad.widgets.recorded import recorded_html

GENERATOR = '<meta name="generator" content="lad.report">'  # tells a report from other folders
ALERT = 'role="alert"'  # how lad.widgets marks an error
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
IMAGES = (".png", ".svg", ".jpg")
PACKAGES = ("lad", "torch", "transformers", "peft", "numpy", "matplotlib", "ipywidgets")


class NotebookFailed(LADError):
    """A cell raised, ran out of time or lost its kernel, or a widget holds an error."""


def _output_errors(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for output in outputs:
        if output.get("output_type") == "error":
            yield f"{output.get('ename')}: {output.get('evalue')}"
        elif output.get("output_type") == "stream" and output.get("name") == "stderr":
            text = "".join(output.get("text", ""))
            if "Traceback (most recent call last)" in text:  # printed by a thread
                yield text.strip().splitlines()[-1]


def widget_errors(notebook: Mapping[str, Any]) -> list[str]:
    """Errors of callbacks and threads in a notebook whose cells passed, one line each."""
    found = []
    states = notebook.get("metadata", {}).get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for model, entry in states.items():
        state, name = entry.get("state", {}), f"{entry['model_name']} {model[:8]}"
        found += [f"{name}: {error}" for error in _output_errors(state.get("outputs", ()))]
        value = state.get("value")
        if isinstance(value, str) and ALERT in value:
            found.append(f"{name}: {re.sub('<[^>]*>', '', value).strip()}")
    for number, cell in enumerate(notebook.get("cells", ()), start=1):
        found += [f"cell {number}: {error}" for error in _output_errors(cell.get("outputs", ()))]
    return found


def execute(
    path: Path, figures: Path, timeout: float, on_cell: Callable[[], object] = lambda: None
) -> NotebookNode:
    """The notebook executed in a fresh kernel, in its folder, widget state included.

    Its figures go to `figures`, a cell may take `timeout` seconds, `on_cell` hears of each start.
    """
    notebook = nbformat.read(path, as_version=4)
    started = []

    def start(cell: NotebookNode, cell_index: int) -> None:
        started.append(cell_index)
        on_cell()

    client = NotebookClient(notebook, timeout=timeout, on_cell_start=start)
    client.kernel_name = "python3"  # of this environment, whatever the file says
    client.resources = {"metadata": {"path": str(path.parent)}}
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # the terminal shows progress
    environment = os.environ | {"LAD_FIGURES": str(figures), "LAD_PROFILE": profile()}
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # no debugger's warning in every kernel
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
        cell = started[-1]
        first = notebook.cells[cell].source.strip().partition("\n")[0]
        raise NotebookFailed(f"{path.name}, cell {cell + 1} (`{first}`): {reason}") from error
    except AssertionError as error:  # nbclient, when Ctrl-C comes between cells
        raise KeyboardInterrupt from error
    if errors := widget_errors(notebook):
        raise NotebookFailed(f"{path.name}: passed, but holds an error: " + "; ".join(errors))
    return notebook


class _Markdown(IPythonRenderer):
    """Markdown with formulas as MathML, which a browser shows without a script."""

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            return mathml(body.strip(), display=display)
        except Exception:  # the converter raises a dozen kinds: show what was written
            return f"<code>{html.escape(body)}</code>"

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def _markdown(source: str, folder: Path) -> str:
    options = {"escape": False, "embed_images": True}
    made = MarkdownWithMath(renderer=_Markdown(path=str(folder), **options)).render(source)
    return re.sub(r'(<a href="[^":]*)\.ipynb', r"\1.html", made)  # another chapter


def _without_widgets(notebook: NotebookNode) -> NotebookNode:
    notebook = nbformat.from_dict(notebook)
    notebook.metadata.pop("widgets", None)
    recorded = recorded_html() if "data-recorded=" in str(notebook.cells) else {}
    note = '<p class="lad-note">This works in Jupyter (<code>make lab</code>).</p>'
    for output in (o for cell in notebook.cells for o in cell.get("outputs", ())):
        data = output.get("data", {})  # of printed text there is none
        view = data.pop(WIDGET_VIEW, None)
        if view and set(data) <= {"text/plain"}:  # else it brings HTML for such a page
            data["text/html"] = note
        if (html := data.get("text/html")) in recorded:
            data["text/html"] = recorded[html]
    return notebook


def _is_bookkeeping(cell: NotebookNode) -> bool:
    """Whether a cell serves a running notebook only: how to run it, or imports and checks."""
    if cell.cell_type == "markdown":
        return cell.source.startswith("*In JupyterLab")
    if not re.match(r"\s*(import|from|assert)\b", cell.source):
        return False
    return not any("data" in output for output in cell.outputs)


def has_columns(text: str) -> bool:
    """Whether most lines of a text have parts that are set apart by two or more spaces."""
    lines = [line for line in text.splitlines() if line.strip()]
    return 2 * sum(bool(re.search(r"\S  +\S", line)) for line in lines) > len(lines)


def page(
    notebook: NotebookNode, title: str, folder: Path, links: Sequence[tuple[str, str]] = ()
) -> str:
    """An executed notebook as one self-contained HTML page; images in its prose are of `folder`.

    `links` has address and label of other pages. Code is folded; cells of bookkeeping are left out.
    """
    notebook = _without_widgets(notebook)
    notebook.cells = [cell for cell in notebook.cells if not _is_bookkeeping(cell)]
    prose = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    contents = re.findall(r'<h2 id="([^"]*)">(.*?)<a class="anchor', _markdown(prose, folder))
    exporter = HTMLExporter(raw_template=_asset("report_page.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_filter("markdown2html", lambda source: _markdown(source, folder))
    exporter.register_filter("has_columns", has_columns)
    resources = {"metadata": {"name": title}, "links": links, "contents": contents}
    resources["style"] = _asset("report.css")
    return exporter.from_notebook_node(notebook, resources)[0]


def _entry(path: Path, notebook: NotebookNode, seconds: float) -> dict:
    """An executed notebook in the index; title and summary come from its first lines."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    heading = re.search(r"^#+ +(.+)$", text, re.MULTILINE)
    blocks = re.split(r"\n\s*\n", text[heading.end() :] if heading else text)
    prose = (b for b in blocks if b.strip() and not b.lstrip().startswith(("#", "|", "!", "<")))
    return {
        "address": f"{path.stem}.html",
        "notebook": notebook,
        "seconds": seconds,
        "title": heading.group(1).strip() if heading else path.stem,
        "summary": _markdown(" ".join(next(prose, "").split()), path.parent),
    }


def _figures(entries: Sequence[dict], folder: Path) -> list[dict]:
    """The saved figures, first those that a cell shows, in its order; recorded data is copied."""
    saved = {f.stem: f.relative_to(folder) for f in sorted(folder.rglob("*")) if f.suffix in IMAGES}
    found: dict[str, dict] = {}
    for entry, cell in ((e, c) for e in entries for c in e["notebook"].cells):
        data = [output.get("data", {}) for output in cell.get("outputs", ())]
        alt = next((d["text/plain"] for d in data if "image/png" in d), "")
        shown = {"alt": alt, "title": alt.partition(". ")[0], "page": entry["address"]}
        for name in re.findall(r'"(\w[\w.-]*)"', cell.source) if alt else ():
            found.setdefault(name, shown | {"cell": cell.get("id")})
    for name in (found := {n: found.get(n, {}) for n in [*found, *saved] if n in saved}):
        file, _, command = DRAWN.get(name, (None, None, COMMAND))
        data, source = (root / f"figures/data/{file}" for root in (folder, CHECKOUT))
        if source.is_file() and not data.is_file():
            data.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, data)
        found[name] |= {"name": name, "image": saved[name].as_posix(), "command": command}
        found[name]["data"] = data.relative_to(folder).as_posix() if data.is_file() else None
    return list(found.values())


def _write_pages(entries: Sequence[dict], notebooks: Path, folder: Path, seconds: float) -> None:
    around = zip([None, *entries], entries, [*entries[1:], None], strict=False)
    for previous, entry, following in around:
        near = {"Previous": previous, "Next": following}
        links = [(e["address"], f"{word}: {e['title']}") for word, e in near.items() if e]
        links.insert(bool(previous), ("index.html", "Index"))
        text = page(entry["notebook"], entry["title"], notebooks, links)
        (folder / entry["address"]).write_text(text, encoding="utf-8")
    index = Environment(autoescape=True).from_string(_asset("report_index.html.j2"))
    text = index.render(
        generator=GENERATOR,
        style=_asset("report.css"),
        pages=entries,
        figures=_figures(entries, folder),
        replay=lambda trace: page_html(replay_html(Trace.load(folder / trace))),
        made=f"Profile {profile()}, {seconds:.0f} s, {time.strftime('%Y-%m-%d %H:%M')}",
        machine=f"{platform.system()} {platform.machine()} with {os.cpu_count()} cores",
        versions=[f"{package} {version(package)}" for package in PACKAGES],
        python=platform.python_version(),
    )
    (folder / "index.html").write_text(text, encoding="utf-8")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes that name only when the block succeeds."""
    first = target / "index.html"
    report = first.is_file() and GENERATOR in first.read_text(encoding="utf-8", errors="replace")
    if target.exists() and not report and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidInput(f"{target} is not a report: name another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        fresh = Path(work, "fresh")
        fresh.mkdir()
        yield fresh
        replace_folder(fresh, target)


def build_report(notebooks: Path, output: Path, timeout: float = 900.0) -> Path:
    """Execute every `[0-9]*.ipynb` in a folder and write the report; returns its index page.

    A previous report at `output` is replaced, anything else there is InvalidInput. A notebook that
    does not run clean, or has a cell of more than `timeout` seconds, is NotebookFailed.
    """
    notebooks = notebooks.resolve()
    paths = sorted(notebooks.glob("[0-9]*.ipynb"))
    if not paths:
        raise InvalidInput(f"no notebook ([0-9]*.ipynb) in {notebooks}: name their folder")
    published = figures_folder() if profile() == "full" else None
    output, started = output.absolute(), time.perf_counter()
    entries = []
    cells = sum(len(nbformat.read(path, as_version=4).cells) for path in paths)
    print(f"executing {len(paths)} notebook(s), profile {profile()}", flush=True)
    with _replacing(output) as folder, tqdm(total=cells, disable=None) as bar:
        (folder / "figures").mkdir()
        for path in paths:
            bar.set_description(path.stem)
            start = time.perf_counter()
            notebook = execute(path, folder / "figures", timeout, bar.update)
            seconds = time.perf_counter() - start
            entries.append(_entry(path, notebook, seconds))
            bar.write(f"  {path.stem}: {seconds:.0f} s")
        _write_pages(entries, notebooks, folder, time.perf_counter() - started)
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
            books = {path.name: nbformat.read(path, as_version=4) for path in options.check}
            found = [f"{name}: {e}" for name, book in books.items() for e in widget_errors(book)]
            if found:
                raise NotebookFailed("swallowed errors: " + "; ".join(found))
            print(f"{len(books)} executed notebook(s): no swallowed error")
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
