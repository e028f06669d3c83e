"""The report, on notebooks of a few cells: what is written, and that nothing is when one fails."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from browser import until
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lad import report
from lad.report import build_report, execute, main, page, widget_errors
from lad.viz.gallery import CHECKOUT

TESTS = str(Path(__file__).parent)
IMPORTS = """import os, pathlib
from lad.viz.style import new_figure, save, show, titled
print("made")
"""
PLOT = """
save(new_figure()[0], "dot")
print("profile", os.environ["LAD_PROFILE"], "in", pathlib.Path.cwd().name)
"""
SHOWN = 'show(titled(new_figure()[0], "Nothing is drawn"), "Empty panels.", name="speed")'
WIDGET = """
import ipywidgets as widgets
widgets.IntSlider(description="sharpness", value=7)
"""
IN_OUTPUT = """
import ipywidgets as widgets
out = widgets.Output()
button = widgets.Button(description="run")
@button.on_click
def _(button):
    with out:
        raise ValueError("no such token")
display(out)
button.click()
"""
IN_THREAD = """
import threading
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
"""


def write(path, *cells):
    """A notebook of cells: a string headed by `#` or `*` is markdown, anything else code."""
    made = [(new_markdown_cell if c[:1] in ("#", "*") else new_code_cell)(c) for c in cells]
    nbformat.write(new_notebook(cells=made), path)
    return path


def loads_from_elsewhere(page):
    """What a browser would fetch from another host to show this page."""
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=.?https?://[^>]*", page)
    return tags + re.findall(r"@import[^;]*https?:|url\(.?https?:|import .*https?://", page)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report of two notebooks, made in the full profile; the pages are read by several tests."""
    root = tmp_path_factory.mktemp("report")
    notebooks = root / "notebooks"
    notebooks.mkdir()
    prose = "# Noise & <schedule>\n\nHow *noise* falls,\nin one figure.\n\n$$e^{-s x}$$ and $x$."
    prose += "\n\n## What falls?\n\nSee [the model](02_b.ipynb)."
    write(notebooks / "01_a.ipynb", prose, "*In JupyterLab: Run.*", IMPORTS, PLOT, SHOWN)
    write(notebooks / "02_b.ipynb", "# The model\n\nA second one.", WIDGET, "1 + 1")
    write(notebooks / "notes.ipynb", "raise SystemError('not a numbered notebook')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAD_PROFILE", "full")
        patch.setenv("LAD_FIGURES", str(root / "figures"))
        index = build_report(notebooks, root / "build" / "report", timeout=60)
    return root, index


def test_the_index_says_what_there_is_and_the_full_profile_publishes_figures(built):
    root, index = built
    text = index.read_text()
    assert text.index("01_a.html") < text.index("02_b.html")
    assert "Noise &amp; &lt;schedule&gt;" in text
    assert "How <em>noise</em> falls, in one figure." in text and "A second one." in text
    assert text.index('src="figures/speed.png"') < text.index('src="figures/dot.png"')
    assert "Profile full" in text and "torch 2." in text
    assert not loads_from_elsewhere(text)
    assert (index.parent / "figures" / "dot.png").is_file()
    assert (root / "figures" / "dot.png").is_file()
    assert [path.name for path in (root / "build").iterdir()] == ["report"]


def test_a_figure_of_the_index_leads_to_its_place_its_data_and_its_command(built):
    _root, index = built
    text = index.read_text()
    figure = re.search(r'<figure class="lad">.*?</figure>', text, re.DOTALL).group()
    page, place = re.search(r'href="(01_a\.html)#(cell-id=[^"]+)"', figure).groups()
    assert f'id="{place}"' in (index.parent / page).read_text()
    assert ">Nothing is drawn</a>" in figure and 'alt="Nothing is drawn. Empty panels."' in figure
    assert 'href="figures/data/bench.json"' in figure and "<code>lad bench</code>" in figure
    recorded = CHECKOUT / "figures" / "data" / "bench.json"
    assert (index.parent / "figures/data/bench.json").read_bytes() == recorded.read_bytes()
    assert '<article><a href="01_a.html"><img src="figures/speed.png"' in text
    assert "lad-opening" not in text.partition("</style>")[2], "no film strip, no run"


def test_a_chapter_has_contents_folded_code_and_no_bookkeeping(built):
    _root, index = built
    first, second = ((index.parent / name).read_text() for name in ("01_a.html", "02_b.html"))
    assert '<a href="#What-falls?">What falls?</a>' in first and 'id="What-falls?"' in first
    assert 'href="02_b.html">the model</a>' in first and ".ipynb" not in first
    assert "JupyterLab: Run" not in first and "<pre>made" not in first
    assert first.count("<summary>Show code</summary>") == 2
    assert "Next: The model" in first and "Previous:" not in first
    assert "Previous: Noise" in second and "Next:" not in second


def test_pages_have_links_and_formulas_and_need_no_network(built):
    _root, index = built
    first, second = ((index.parent / name).read_text() for name in ("01_a.html", "02_b.html"))
    assert 'href="02_b.html"' in first and 'href="01_a.html"' in second
    assert 'href="index.html"' in first and 'href="index.html"' in second
    assert "<math" in first and "<msup>" in first and "$$" not in first
    assert not loads_from_elsewhere(first) and not loads_from_elsewhere(second)
    assert "profile full in notebooks" in first
    assert "This works in Jupyter" in second
    assert "widget-view+json" not in second and "widget-state+json" not in second


def test_a_recorded_run_has_a_player_that_works_in_the_page(tmp_path):
    recorded = """
from traces import make_trace, words
from lad.viz.html import gallery_html
gallery_html({"a": make_trace(words("Paris is is", 5), words("Paris is nice", 5), remask=[[1]])})
"""
    path = write(tmp_path / "1.ipynb", f"import sys; sys.path.insert(0, {TESTS!r})", recorded)
    before = path.read_bytes()
    made = page(execute(path, tmp_path, 60), "a run", tmp_path)
    assert path.read_bytes() == before
    assert made.count('class="lad-replay"') == 1
    frames = re.findall(r"<div [^>]*data-frame[^>]*>", made)
    assert ["hidden" in frame for frame in frames] == [True, True, False]
    assert "This works in Jupyter" not in made
    assert not loads_from_elsewhere(made)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("x = 1\nraise KeyError('lost')", r"02_bad\.ipynb, cell 2 \(`x = 1`\): KeyError: 'lost'"),
        (IN_OUTPUT + IN_THREAD, r"02_bad\.ipynb: .*ValueError: no such token.*ZeroDivisionError"),
        ("import time\ntime.sleep(30)", r"02_bad\.ipynb, cell 2 \(`import time`\): not done"),
    ],
    ids=["cell", "widget", "timeout"],
)
def test_a_failing_notebook_leaves_the_old_report(tmp_path, monkeypatch, capsys, cell, message):
    monkeypatch.setenv("LAD_PROFILE", "fast")
    old = tmp_path / "build" / "report"
    old.mkdir(parents=True)
    (old / "index.html").write_text(report.GENERATOR + "yesterday's")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write(notebooks / "02_bad.ipynb", "# Bad", cell)
    timeout = "3" if "sleep" in cell else "120"
    status = main(["--notebooks", str(notebooks), "--output", str(old), "--timeout", timeout])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 1
    assert re.search(message, last), last
    assert (old / "index.html").read_text().endswith("yesterday's")
    assert [p.name for p in old.parent.iterdir()] == ["report"]


def test_stopping_it_leaves_nothing(tmp_path):
    notebooks, running = tmp_path / "notebooks", tmp_path / "running"
    notebooks.mkdir()
    slow = f"import pathlib, time\npathlib.Path({str(running)!r}).touch()\ntime.sleep(60)"
    write(notebooks / "01_slow.ipynb", slow)
    folders = ["--notebooks", str(notebooks), "--output", str(tmp_path / "build" / "report")]
    command = [sys.executable, "-m", "lad.report", *folders]
    environment = os.environ | {"LAD_PROFILE": "fast"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until(running.exists, lambda: "the notebook does not start")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "stopped; nothing was written" in errors
    assert list((tmp_path / "build").iterdir()) == []


def test_a_second_report_replaces_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("LAD_PROFILE", "fast")
    monkeypatch.setenv("LAD_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(report, "execute", lambda path, *rest: nbformat.read(path, 4))
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write(notebooks / "01_a.ipynb", "# First")
    build_report(notebooks, tmp_path / "report")
    (tmp_path / "report" / "stale.html").write_text("")
    write(notebooks / "01_a.ipynb", "# Second")
    assert "Second" in build_report(notebooks, tmp_path / "report").read_text()
    assert not (tmp_path / "report" / "stale.html").exists()
    assert not (tmp_path / "figures").exists(), "a fast run publishes no figures"


def test_a_folder_that_is_no_report_is_not_replaced(tmp_path, capsys):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    arguments = ["--notebooks", str(tmp_path), "--output", str(precious)]
    assert main(arguments) == 2
    assert "no notebook" in capsys.readouterr().err
    write(tmp_path / "01_a.ipynb", "# First")
    assert main(arguments) == 2
    assert "is not a report" in capsys.readouterr().err
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_check_finds_what_other_runners_pass(tmp_path, capsys):
    path = write(tmp_path / "01_a.ipynb", "1 + 1")
    assert main(["--check", str(path)]) == 0
    notebook = json.loads(path.read_text())
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    model = {"model_name": "OutputModel", "state": {"outputs": [error]}}
    state = {"version_major": 2, "version_minor": 0, "state": {"abc": model}}
    notebook["metadata"]["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    assert widget_errors(notebook) == ["OutputModel abc: ValueError: no"]
    alert = {"value": '<div role="alert"><b>Error:</b> an empty prompt</div>'}
    state["state"]["def"] = {"model_name": "HTMLModel", "state": alert}
    assert widget_errors(notebook)[1] == "HTMLModel def: Error: an empty prompt"
    path.write_text(json.dumps(notebook))
    assert main(["--check", str(path)]) == 1
    assert "01_a.ipynb: OutputModel abc: ValueError: no" in capsys.readouterr().err
