"""In a real browser: the player of a page without a kernel, and the explorers in JupyterLab."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import tiny_denoiser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from traces import make_trace, words

from lad.report import page as make_page
from lad.viz.html import replays_html

SCREENS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
PATIENCE = 90
HOSTILE = (
    '<img src=x onerror="window.hacked=1"> <s>no</s> </script><script>window.hacked=2</script>'
)


# -- without a kernel ------------------------------------------------------------------------------

TRACE = make_trace(
    words("Paris is is", 6),
    [b"Paris", b" is", "😀".encode()[:2], "😀".encode()[2:], "שלום".encode(), 1],
    remask=[[1, 2], []],
    confidence=[[0.1] * 6, [0.9] * 6],
    prompt=HOSTILE,
)


@pytest.fixture(scope="module")
def replay(chromium, tmp_path_factory):
    """A page made from a notebook whose one output is two players, opened as a file."""
    output = nbformat.v4.new_output("display_data", {"text/html": replays_html({HOSTILE: TRACE})})
    notebook = new_notebook(
        cells=[new_markdown_cell("# A run"), new_code_cell("run", outputs=[output])]
    )
    folder = tmp_path_factory.mktemp("replay")
    file = folder / "run.html"
    file.write_text(make_page(notebook, "a run", folder), encoding="utf-8")
    page = chromium.open(file.as_uri())
    page.call("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.call("Network.emulateNetworkConditions", **offline)
    page.wait("document.readyState === 'complete'")
    yield page
    page.close()


VISIBLE = "[...document.querySelectorAll('[data-frame]')].findIndex(e => !e.hidden)"


def test_the_player_of_a_page_plays_steps_and_scrubs(replay):
    assert replay.evaluate(VISIBLE) == 2  # the answer first
    replay.click("Back")
    assert replay.evaluate(VISIBLE) == 1
    assert "After re-masking" in replay.evaluate(
        "document.querySelector('[data-part=slider]').getAttribute('aria-valuetext')"
    )
    replay.evaluate("document.querySelector('[data-part=slider]').focus()")
    replay.press("ArrowLeft", 37)
    assert replay.evaluate(VISIBLE) == 0
    replay.evaluate("document.querySelector('[data-part=pace]').value = '0.2'")
    replay.click("Play")
    replay.wait(f"{VISIBLE} === 2")
    replay.wait("document.querySelector('[data-part=play]').textContent === 'Play'")
    replay.click("Play")  # from the end it begins again
    assert replay.evaluate(VISIBLE) == 0
    replay.click("Pause")
    time.sleep(0.5)
    assert replay.evaluate(VISIBLE) == 0
    replay.screenshot(SCREENS / "replay.png")
    assert replay.errors == []


def test_colour_by_confidence_is_a_box_away(replay):
    colour = (
        "getComputedStyle(document.querySelector('[data-frame]:not([hidden]) .lad-token'))"
        ".backgroundColor"
    )
    before = replay.evaluate(colour)
    replay.evaluate("document.querySelector('[data-part=confidence]').click()")
    assert replay.evaluate(colour) != before
    assert replay.evaluate(
        "getComputedStyle(document.querySelector('.lad-key-state')).display"
    ) == ("none")


def test_what_a_prompt_holds_is_never_run(replay):
    assert replay.evaluate("window.hacked === undefined")
    assert replay.evaluate("document.body.textContent").count('<img src=x onerror="') >= 2
    shown = replay.evaluate("[...document.querySelectorAll('[data-frame]')].at(-1).textContent")
    assert "😀" in shown and "שלום" in shown


def test_every_control_of_the_player_has_a_name(replay):
    names = replay.names()
    assert [pair for pair in names if not pair[1]] == []
    assert {"Play", "Back", "Next", "Step", "Pace", "colour by confidence"} <= {n for _, n in names}


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_a_light_page_and_on_a_dark_one(chromium, tmp_path, dark):
    notebook = new_notebook(cells=[new_markdown_cell("# Words")])
    file = tmp_path / "words.html"
    file.write_text(make_page(notebook, "words", tmp_path, [("#", "go")]))
    page = chromium.open(file.as_uri(), dark=dark)
    page.wait("document.readyState === 'complete'")
    ink, paper, link = (
        [int(n) for n in re.findall(r"\d+", page.evaluate(f"getComputedStyle({what})"))[:3]]
        for what in (
            "document.querySelector('h1')).color || (0",
            "document.body).backgroundColor || (0",
            "document.querySelector('.lad-nav a')).color || (0",
        )
    )
    assert (sum(paper) < 200) == dark
    assert contrast(ink, paper) >= 4.5
    assert contrast(link, paper) >= 4.5
    page.close()


def contrast(one, other):
    """WCAG's ratio of two colours."""

    def luminance(color):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (channel / 255 for channel in color)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# -- JupyterLab ------------------------------------------------------------------------------------

CELLS = """
from lad.diffusion.adapter import (load_denoiser)
from lad.widgets import InfillExplorer, RefinementExplorer, RepairExplorer
from lad.widgets.accessibility import name_controls
denoiser = load_denoiser("tiny", {adapter!r})
display(name_controls())
RefinementExplorer(denoiser, prompt="hello", pause=0.1).widget
---
RepairExplorer(denoiser, text="one two three", question="", pause=0).widget
---
InfillExplorer(denoiser, text="one ___ three", pause=0).widget
"""


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab with a notebook of three explorers on the tiny model, all cells run."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    tiny_denoiser().save(folder / "adapter")
    source = CELLS.format(adapter=str(folder / "adapter"))
    cells = [new_code_cell(cell.strip()) for cell in source.split("---")]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, folder / "w.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--IdentityProvider.token=", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }
    log = folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + PATIENCE
        while "is running at" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        page = chromium.open(f"http://127.0.0.1:{port}/lab/tree/w.ipynb", height=2400)
        page.wait("document.querySelectorAll('.jp-CodeCell').length === 3")
        page.wait(
            "(() => { document.querySelector('.jp-Dialog .jp-mod-accept')?.click();"  # which kernel
            "const shell = window.jupyterapp?.shell;"
            "const open = shell && [...shell.widgets('main')].find(one => one.sessionContext);"
            "const kernel = open?.sessionContext.session?.kernel;"
            "if (open && shell.currentWidget !== open) return void shell.activateById(open.id);"
            "return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'; })()"
        )
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait(f"{BUTTONS}.length === 3")
        yield page
        page.close()
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


BUTTONS = (
    "[...document.querySelectorAll('.jp-OutputArea button')].filter(e => e.textContent.trim() "
    "=== 'Run')"
)


def cell(number):
    return f"document.querySelectorAll('.jp-CodeCell')[{number}]"


def press(page, number, text):
    page.wait(
        f"(() => {{ const b = [...{cell(number)}.querySelectorAll('button')].find(e => "
        f"e.textContent.trim() === {text!r} && !e.disabled); if (b) b.click(); return !!b; }})()"
    )


def test_the_explorer_runs_stops_scrubs_and_compares_in_jupyterlab(lab):
    press(lab, 0, "Run")
    lab.wait(f"/iteration [2-9] of 32/.test({cell(0)}.textContent)")
    press(lab, 0, "Stop")
    lab.wait(f"/Cut off after \\d+ of 32 iterations/.test({cell(0)}.textContent)")
    before = lab.evaluate(f"{cell(0)}.textContent.match(/After \\w+\\.\\s*Iteration \\d+/)[0]")
    lab.wait(f"{cell(0)}.querySelector('button[title=\"one step back\"]')")
    lab.evaluate(f"{cell(0)}.querySelector('button[title=\"one step back\"]').click()")
    lab.wait(f"{cell(0)}.textContent.match(/After \\w+\\.\\s*Iteration \\d+/)[0] !== {before!r}")
    press(lab, 0, "Compare")
    lab.wait(f"(e => e && e.offsetParent)({cell(0)}.querySelector('.lad-costs'))")
    lab.screenshot(SCREENS / "lab-explorer.png")
    assert lab.errors == []


def test_a_text_is_corrupted_and_repaired_and_gaps_are_filled_in_jupyterlab(lab):
    text = f"{cell(1)}.querySelector('textarea').value"
    press(lab, 1, "swap")
    lab.wait(f"{text} !== 'one two three' && {text}.length === 13")
    press(lab, 1, "Run")
    lab.wait(f"/forward pass/.test({cell(1)}.textContent)")
    press(lab, 1, "undo")
    lab.wait(f"{text} === 'one two three'")
    press(lab, 2, "Run")
    lab.wait(f"/forward pass/.test({cell(2)}.textContent)")
    assert lab.evaluate(f"{cell(2)}.querySelector('[role=alert]') === null")
    lab.screenshot(SCREENS / "lab-editing.png")
    assert lab.errors == []
