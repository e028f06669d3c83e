"""The report: every notebook executed in order, as pages that can be read without a network.

`python -m lad.report` runs `notebooks/[0-9]*.ipynb` one after the other and writes

    build/report/index.html           what there is, in order, with versions and times
    build/report/<notebook>.html      the executed notebook; images, styles and formulas inside
    build/report/figures/*            what the notebooks saved

A notebook sees `LAD_FIGURES` (a folder inside the report) and the caller's `LAD_PROFILE`. In the
full profile its figures are copied to `lad.utils.figures_folder()` at the end; a fast run keeps
them to itself. The report is built beside its place and swapped in when it is whole: a failing
cell, or an error that a widget swallowed, leaves the previous report as it was.

`python -m lad.report --check NOTEBOOK...` executes nothing: it looks for swallowed errors in
notebooks that something else has executed.

Needs the `notebooks` extra. Reference: nbclient.
"""

from __future__ import annotations

import argparse
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from lad.pages import GENERATOR, WIDGET_STATE, Entry, index, navigation, page
from lad.utils import InvalidInput, LADError, figures_folder, profile

__all__ = ["NotebookFailed", "build_report", "execute", "main", "widget_errors"]

ALERT = 'role="alert"'  # how lad.widgets marks the place where it shows an error
IMAGES = (".png", ".svg", ".jpg")
PACKAGES = ("lad", "torch", "transformers", "peft", "numpy", "matplotlib", "ipywidgets")


class NotebookFailed(LADError):
    """A cell raised, ran out of time or lost its kernel, or a widget holds an error."""


def _output_errors(outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each error among Jupyter outputs, tracebacks on stderr included.

    A callback that raises in a thread prints its traceback instead of making an error output.
    """
    for output in outputs:
        if output.get("output_type") == "error":
            yield f"{output.get('ename')}: {output.get('evalue')}"
        elif output.get("output_type") == "stream" and output.get("name") == "stderr":
            text = "".join(output.get("text", ""))
            if "Traceback (most recent call last)" in text:
                yield text.strip().splitlines()[-1]


def widget_errors(notebook: Mapping[str, Any]) -> list[str]:
    """Errors that an executed notebook holds although its cells passed.

    An exception in a callback is caught by the Output widget around it, or dies with its thread:
    every runner calls the notebook sound. Looks into the stored widget state and the cells'
    outputs.

    Args:
        notebook: an executed notebook, as read by nbformat or json.

    Returns:
        One line an error; empty when there is none.
    """
    found = []
    stored = notebook.get("metadata", {}).get("widgets", {}).get(WIDGET_STATE, {})
    for model, entry in stored.get("state", {}).items():
        outputs = entry.get("state", {}).get("outputs") or ()
        name = entry.get("model_name", "widget")
        found += [f"{name} {model[:8]}: {error}" for error in _output_errors(outputs)]
        value = entry.get("state", {}).get("value")
        if isinstance(value, str) and ALERT in value:
            found.append(f"{name} {model[:8]}: {re.sub('<[^>]*>', '', value).strip()}")
    for number, cell in enumerate(notebook.get("cells", ()), start=1):
        found += [f"cell {number}: {error}" for error in _output_errors(cell.get("outputs", ()))]
    return found


def execute(
    path: Path,
    figures: Path,
    timeout: float,
    on_cell: Callable[[int], None] = lambda number: None,
) -> NotebookNode:
    """Execute one notebook in a fresh kernel, in the notebook's own folder.

    Args:
        path: the notebook; the file itself is not changed.
        figures: where its figures go (`LAD_FIGURES`).
        timeout: seconds a cell may take.
        on_cell: called with a cell's number, from 1, when that cell starts.

    Returns:
        The executed notebook, widget state included.

    Raises:
        NotebookFailed: naming notebook and cell.
    """
    notebook = nbformat.read(path, as_version=4)
    current = 1

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal current
        current = cell_index + 1
        on_cell(current)

    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",  # of this environment, whatever the file says
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=started,
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
        if isinstance(error, CellExecutionError):
            print(error.traceback, file=sys.stderr)
            reason = f"{error.ename}: {error.evalue}"
        elif isinstance(error, CellTimeoutError):
            reason = f"not done after {timeout:g} s (--timeout)"
        else:
            reason = "its kernel died (out of memory?)"
        source = notebook.cells[current - 1].source.strip().splitlines()
        first = source[0] if source else ""
        raise NotebookFailed(f"{path.name}, cell {current} (`{first}`): {reason}") from error
    except AssertionError as error:  # nbclient on Ctrl-C: it ends the kernel, then misses it
        raise KeyboardInterrupt from error
    if errors := widget_errors(notebook):
        raise NotebookFailed(f"{path.name}: passed, but holds an error: " + "; ".join(errors))
    return notebook


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes that name only when the block succeeds."""
    first = target / "index.html"
    ours = first.is_file() and GENERATOR in first.read_text(encoding="utf-8", errors="replace")
    if target.exists() and not ours and not (target.is_dir() and not any(target.iterdir())):
        raise InvalidInput(f"{target} is not a report: name another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fresh, previous = work / "fresh", work / "previous"
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
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _made(seconds: float) -> str:
    """How, when and with what: the index's last sentence."""
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"Profile {profile()}, {seconds:.0f} s on {platform.system()} {platform.machine()} with "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d %H:%M')}; {', '.join(versions)}."
    )


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
    began = time.perf_counter()
    entries: list[Entry] = []
    cells = {p: len(nbformat.read(p, as_version=4).cells) for p in paths}
    print(f"executing {len(paths)} notebook(s), profile {profile()}", flush=True)
    with _replacing(output) as fresh, tqdm(total=sum(cells.values()), disable=None) as bar:
        figures = fresh / "figures"
        figures.mkdir()
        done = 0
        for path in paths:
            start = time.perf_counter()

            def on_cell(number: int, path: Path = path, done: int = done) -> None:
                bar.set_description(f"{path.stem} cell {number}/{cells[path]}")
                bar.update(done + number - 1 - bar.n)

            notebook = execute(path, figures, timeout, on_cell)
            entries.append(Entry(path, notebook, time.perf_counter() - start))
            done += cells[path]
            bar.update(done - bar.n)
            bar.write(f"  {path.stem}: {cells[path]} cells, {entries[-1].seconds:.0f} s")
        for at, entry in enumerate(entries):
            text = page(entry.notebook, entry.title, entry.path.parent, navigation(entries, at))
            (fresh / f"{entry.path.stem}.html").write_text(text, encoding="utf-8")
        saved = sorted(f.relative_to(fresh) for f in figures.rglob("*") if f.suffix in IMAGES)
        text = index(entries, saved, _made(time.perf_counter() - began))
        (fresh / "index.html").write_text(text, encoding="utf-8")
    if published:
        shutil.copytree(output / "figures", published, dirs_exist_ok=True)
    return output / "index.html"


def _check(paths: Sequence[Path]) -> None:
    found = [f"{p.name}: {e}" for p in paths for e in widget_errors(nbformat.read(p, as_version=4))]
    if found:
        raise NotebookFailed("swallowed errors: " + "; ".join(found))
    print(f"{len(paths)} executed notebook(s): no swallowed error in widgets or outputs")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Status 0; 1 a notebook failed; 2 bad input; 130 stopped by Ctrl-C."""
    checkout = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m lad.report", description="Make the report.")
    parser.add_argument("--notebooks", type=Path, default=checkout / "notebooks", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("build/report"), metavar="FOLDER")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a cell may take")
    parser.add_argument("--check", type=Path, nargs="+", metavar="NOTEBOOK", help="only look")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            _check(options.check)
        else:
            first = build_report(options.notebooks, options.output, options.timeout)
            print(f"The report is ready. Open {first}")
    except LADError as error:
        print(f"lad.report: {error}", file=sys.stderr)
        return 1 if isinstance(error, NotebookFailed) else 2
    except (KeyboardInterrupt, CancelledError):
        print("lad.report: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
