"""In a real browser: the player of a page without a kernel, and the explorers in JupyterLab."""

import re
import sys
import time

import nbformat
import pandas as pd
import pytest
from browser import SCROLLED, Server, contrast, end
from conftest import tiny_denoiser
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from traces import make_trace, words

from lad.diffusion.config import SETTINGS, RefineConfig
from lad.diffusion.sampler import record
from lad.report import _write_pages
from lad.report import page as make_page
from lad.viz.html import costs_html, gallery_html, page_html, replay_html
from lad.viz.style import new_figure, to_png

HOSTILE = (
    '<img src=x onerror="window.hacked=1"> <s>no</s> </script><script>window.hacked=2</script>'
)
TRACE = make_trace(
    words("Paris is is", 6),
    ["שלום".encode(), " עולם".encode(), "😀".encode()[:2], "😀".encode()[2:], b" Paris", 1],
    remask=[[1, 2], []],
    confidence=[[0.1] * 6, [0.9] * 6],
    prompt=HOSTILE,
)


@pytest.fixture(scope="module")
def replay(chromium, tmp_path_factory):
    """A page made from a notebook whose one output is two players, opened as a file."""
    output = nbformat.v4.new_output("display_data", {"text/html": gallery_html({HOSTILE: TRACE})})
    cells = [new_markdown_cell("# A run"), new_code_cell("run", outputs=[output])]
    folder = tmp_path_factory.mktemp("replay")
    made = make_page(new_notebook(cells=cells), "a run", folder)
    page = chromium.show(made, folder, offline=True)
    yield page
    page.close()


VISIBLE = "[...document.querySelectorAll('[data-frame]')].findIndex(e => !e.hidden)"


def test_the_player_of_a_page_plays_steps_and_scrubs(replay):
    assert replay.evaluate(VISIBLE) == 2  # the answer first
    replay.click("Back")
    assert replay.evaluate(VISIBLE) == 1
    slider = "document.querySelector('[data-part=slider]')"
    assert "After re-masking" in replay.evaluate(f"{slider}.getAttribute('aria-valuetext')")
    replay.evaluate(f"{slider}.focus()")
    replay.press("ArrowLeft", 37)
    assert replay.evaluate(VISIBLE) == 0
    replay.evaluate("document.querySelector('[data-part=pace]').value = '4'")
    replay.click("Play")
    replay.wait(f"{VISIBLE} === 2")
    replay.wait("document.querySelector('[data-part=play]').textContent === 'Play'")
    replay.click("Play")  # from the end it begins again
    assert replay.evaluate(VISIBLE) == 0
    replay.evaluate(f"{slider}.focus()")
    replay.press(" ", 32)  # as Pause does
    time.sleep(0.5)
    assert replay.evaluate(VISIBLE) == 0
    assert replay.evaluate("document.querySelector('[data-part=play]').textContent") == "Play"
    assert replay.errors == []


def test_a_box_colours_by_confidence_and_every_control_has_a_name(replay):
    token = "document.querySelector('[data-frame]:not([hidden]) .lad-token')"
    colour = f"getComputedStyle({token}).backgroundColor"
    before = replay.evaluate(colour)
    replay.evaluate("document.querySelector('[data-part=confidence]').click()")
    assert replay.evaluate(colour) != before
    key = "getComputedStyle(document.querySelector('.lad-key-state')).display"
    assert replay.evaluate(key) == "none"
    names = {name for _, name in replay.names()}
    expected = {"Play", "Back", "Next", "Step", "Pace", "colour by confidence", "Run"}
    assert expected <= names - {""} == names


def test_a_token_shows_what_else_was_likely_and_its_history(show_page):
    config = RefineConfig(iterations=4, answer_length=6, remasking="random", patience=0)
    run = record(tiny_denoiser(), HOSTILE, config)
    plain = make_trace(words("city", 2), words("vibrant", 2), confidence=[[0.21] * 2, [0.34] * 2])
    page = show_page(replay_html(run) + replay_html(plain))
    first, second = (f"document.querySelectorAll('.lad-replay')[{n}]" for n in (0, 1))
    box = f"{first}.querySelector('[data-inside]')"
    token = 'querySelector(`[data-frame]:not([hidden]) [data-at="${at}"]`)'
    took = f"""(async (times) => {{ for (const at of [0, 1, 2]) {{
        const start = performance.now();
        {first}.{token}.click();
        while (!{box}.textContent.startsWith(`Position ${{at}}`))
            await new Promise((done) => setTimeout(done));
        times.push(performance.now() - start); }} return times; }})([])"""
    assert min(page.evaluate(took)) < 100  # milliseconds
    rows = f"[...{first}.querySelectorAll('.lad-likely li')].map((row) => row.textContent)"
    shown = page.evaluate(rows)
    numbers = [float(row.split("0.")[1].split(" ")[0]) for row in shown]
    expected = run.probabilities[-1, 2]
    assert [n / 100 for n in numbers] == pytest.approx(expected.tolist(), abs=0.006)
    assert [row.endswith("drawn") for row in shown] == [True, *[False] * 4]
    assert "Position 2, iteration 3" in page.evaluate(f"{box}.textContent")
    assert f"Entropy {run.entropy[-1, 2]:.2f} nats" in page.evaluate(f"{box}.textContent")
    assert page.evaluate(f"{first}.querySelectorAll('.lad-chosen').length") == 1

    page.evaluate(f"{box}.focus()")  # from here on the keyboard alone, and another iteration
    page.press("ArrowRight", 39)
    page.wait(f"{box}.textContent.includes('Position 3, iteration 3')")
    page.click("Back", first)
    page.click("Back", first)
    page.wait(f"{box}.textContent.includes('Position 3, iteration 2')")
    page.evaluate(f"{box}.focus()")
    page.press("Escape", 27)
    page.wait(f"{box}.textContent.startsWith('Click a token')")
    assert page.evaluate(f"{first}.querySelectorAll('.lad-chosen').length") == 0

    page.evaluate(f"{second}.querySelector('[data-inside]').focus()")
    page.press("Home", 36)
    page.wait(f"{second}.textContent.includes('History: city 0.21 (0), vibrant 0.34 (1).')")
    assert "recorded without alternatives" in page.evaluate(f"{second}.textContent")


def test_what_a_prompt_holds_is_never_run(replay):
    assert replay.evaluate("window.hacked === undefined")
    assert replay.evaluate("document.body.textContent").count('<img src=x onerror="') >= 2
    shown = replay.evaluate("[...document.querySelectorAll('[data-frame]')].at(-1).textContent")
    assert "😀" in shown and "שלום עולם" in shown


def test_a_draft_reads_in_the_direction_of_its_text(replay):
    spans = "[...[...document.querySelectorAll('.lad-draft')].at(-1).children]"
    places = replay.evaluate(f"{spans}.map(e => e.getBoundingClientRect().left)")
    assert places == sorted(places, reverse=True)  # from right to left, EOS last


def test_the_costs_of_two_runs_fit_a_phone(show_page):
    runs = {"these settings": TRACE, "without re-masking": TRACE}
    page = show_page(page_html(costs_html(runs)), width=390)
    wide = "[...document.querySelectorAll('table, html')].map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(wide) == [0, 0]


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_a_light_page_and_on_a_dark_one(show_page, tmp_path, dark):
    notebook = new_notebook(cells=[new_markdown_cell("# Words")])
    page = show_page(make_page(notebook, "words", tmp_path, [("#", "go")]), dark=dark)

    def color(selector, name):
        value = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")
        return [int(n) for n in re.findall(r"\d+", value)[:3]]

    paper = color("body", "backgroundColor")
    assert (sum(paper) < 200) == dark
    assert contrast(color("h1", "color"), paper) >= 4.5
    assert contrast(color(".lad-nav a", "color"), paper) >= 4.5


def test_the_index_plays_one_run_once_and_shows_a_still_on_paper(chromium, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/filmstrip_renoised.png").write_bytes(to_png(new_figure()[0]))
    _write_pages([], tmp_path, tmp_path, 1.0)
    page = chromium.open((tmp_path / "index.html").as_uri())
    button = "document.querySelector('[data-part=play]').textContent"
    page.wait(f"{VISIBLE} > 0 && {button} === 'Pause'")
    page.wait(f"{button} === 'Play'")
    assert page.evaluate(f"{VISIBLE} === document.querySelectorAll('[data-frame]').length - 1")
    shown = "['.lad-opening', '.lad-still'].map(e => !!document.querySelector(e).offsetParent)"
    assert page.evaluate(shown) == [True, False]
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate(shown) == [False, True]
    assert page.errors == []
    page.close()


@pytest.mark.parametrize(("width", "beside"), [(1400, True), (390, False)])
def test_prose_is_narrow_and_contents_stand_where_there_is_room(show_page, tmp_path, width, beside):
    cells = [new_markdown_cell("# Words\n\n## One\n\n" + "word " * 200)]
    page = show_page(make_page(new_notebook(cells=cells), "words", tmp_path), width=width)
    box = "document.querySelector('{}').getBoundingClientRect().{}"
    assert page.evaluate(box.format("p", "width")) <= 46 * 16
    contents, prose = (page.evaluate(box.format(e, "left")) for e in (".lad-contents", "p"))
    assert (contents + 200 < prose) == beside
    page.evaluate("document.querySelector('.lad-contents a').click()")
    assert page.evaluate("document.querySelector(':target').textContent.startsWith('One')")


TEXT = "The word that ends this line is not broken anywhere at all: " + "unbreakable " * 9
COLUMNS = "task      questions   chance\n" + f"{'ARC-Easy':<40}2,376   25.0   26.6   30\n" * 3


@pytest.mark.parametrize("width", [390, 1400])
def test_outputs_wrap_between_words_or_scroll_and_are_whole_on_paper(show_page, tmp_path, width):
    outputs = [nbformat.v4.new_output("stream", text=text) for text in (TEXT, COLUMNS)]
    table = {"text/html": pd.DataFrame({"a wide column": ["0.1 (0.0 to 0.2)"] * 2}).to_html()}
    outputs += [nbformat.v4.new_output("display_data", table)]
    notebook = new_notebook(cells=[new_code_cell("x = " + "1 + " * 60 + "1", outputs=outputs)])
    page = show_page(make_page(notebook, "outputs", tmp_path), width=width)
    page.evaluate("document.querySelector('details').open = true")
    prose, columns, code = ".jp-RenderedText pre", ".lad-columns pre", ".jp-InputArea-editor"

    def too_wide(selector):
        one = f"document.querySelector('{selector}')"
        return page.evaluate(f"{one}.scrollWidth > {one}.clientWidth")

    def style(selector, name):
        return page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")

    assert not too_wide("html") and not too_wide(prose)
    assert style(prose, "wordBreak") == "normal"
    assert (style(columns, "whiteSpace"), style(columns, "overflowX")) == ("pre", "auto")
    assert too_wide(columns) == (width == 390)
    assert too_wide(code) and style(code, "overflowX") == "auto"
    page.call("Emulation.setEmulatedMedia", media="print")
    assert not any(map(too_wide, ("html", prose, columns, code)))


CELLS = """
from lad.diffusion.adapter import (load_denoiser)
from lad.widgets import InfillExplorer, RefinementExplorer, RepairExplorer
from lad.widgets.accessibility import name_controls
display(name_controls())
denoiser = load_denoiser("tiny", {adapter!r})
RefinementExplorer(denoiser, prompt="hello", pause=0.1).widget
---
RepairExplorer(denoiser, text="one two three", question="", pause=0).widget
---
InfillExplorer(denoiser, text="one ___ three", pause=0).widget
---
from lad.widgets import AttentionExplorer, CorruptionExplorer, ScheduleExplorer
display(AttentionExplorer(denoiser, "ask:reply"), CorruptionExplorer(), ScheduleExplorer())
---
from lad.widgets import LensExplorer, RaceExplorer
display(RaceExplorer(denoiser).widget, LensExplorer(denoiser).widget)
"""
OPEN = """(() => { document.querySelector('.jp-Dialog .jp-mod-accept')?.click();
const shell = window.jupyterapp?.shell;
const open = shell && [...shell.widgets('main')].find(one => one.sessionContext);
const kernel = open?.sessionContext.session?.kernel;
if (open && shell.currentWidget !== open) return void shell.activateById(open.id);
return kernel?.connectionStatus === 'connected' && kernel.status === 'idle'; })()"""
BUTTONS = (
    "[...document.querySelectorAll('.jp-OutputArea button')].filter(e => e.textContent.trim() "
    "=== 'Run')"
)


@pytest.fixture(scope="module")
def lab(chromium, adapter, tmp_path_factory):
    """JupyterLab with a notebook of the explorers on the tiny model, all cells run."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    cells = [new_code_cell(c.strip()) for c in CELLS.format(adapter=adapter).split("---")]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(notebook, folder / "w.ipynb")

    def command(port):
        own = ["--no-browser", "--allow-root", f"--ServerApp.port={port}"]
        own += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}"]
        own += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
        return [sys.executable, "-m", "jupyterlab", *own]

    environment = {
        f"JUPYTERLAB_{name.upper()}_DIR": str(folder / name) for name in ("workspaces", "settings")
    }
    server = Server(command, "is running at", folder / "lab.log", **environment)
    try:
        page = chromium.open(f"{server.url}lab/tree/w.ipynb", height=2400)
        page.wait("document.querySelectorAll('.jp-CodeCell').length === 5")
        page.wait(OPEN)
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait(f"{BUTTONS}.length === 5")
        yield page
        # Of what is not saved the browser would ask, since a key was pressed.
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => 0)")
        page.close()
    finally:
        end(server.process)


def test_the_explorers_work_in_jupyterlab(lab):
    cell = "document.querySelectorAll('.jp-CodeCell')"
    refinement, repair, infill = (f"{cell}[{n}]" for n in range(3))
    lab.click("Compare", refinement)  # what else it does, test_demo.py tries
    lab.wait(f"(e => e && e.offsetParent)({refinement}.querySelector('.lad-costs'))")
    box = f"{refinement}.querySelector('[data-inside]')"
    lab.evaluate(f"{box}.focus()")
    # Not a key of the browser's: after one the page would ask before it is closed.
    key = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
    lab.evaluate(f"{box}.dispatchEvent({key})")
    lab.wait(f"{box}.textContent.startsWith('Position 0') && {box}.querySelector('.lad-likely')")
    assert lab.evaluate(f"document.activeElement === {box}")
    second = f"{refinement}.querySelectorAll('[data-lane]')[1]"
    lab.evaluate(f"{second}.querySelector('[data-at]').click()")
    lab.wait(f"{refinement}.querySelectorAll('.lad-likely').length === 2")

    text = f"{repair}.querySelector('textarea').value"
    lab.click("swap", repair)
    lab.wait(f"{text} !== 'one two three' && {text}.length === 13")
    lab.click("Run", repair)
    lab.wait(f"/forward pass/.test({repair}.textContent)")
    lab.click("undo", repair)
    lab.wait(f"{text} === 'one two three'")
    lab.click("Run", infill)
    lab.wait(f"/forward pass/.test({infill}.textContent)")
    assert lab.evaluate(f"{infill}.querySelector('[role=alert]') === null")
    assert lab.errors == []


def test_a_race_plays_in_jupyterlab_and_the_lens_follows_its_token(lab):
    cell = "document.querySelectorAll('.jp-CodeCell')[4]"
    lab.click("Run", cell)
    standing = f"{cell}.querySelector('[data-part=standing]')?.textContent"
    lab.wait(f"/^Done: /.test({standing})")
    lab.click("Back", cell)
    lab.wait(f"/^Running: /.test({standing})")
    lab.evaluate(f"{BUTTONS}[4].click()")
    lens = f"{cell}.querySelector('[data-lane]:has(.lad-lens)')"
    lab.wait(f"{lens}?.innerText.includes('at iteration 0')")
    slider = f"{lens}.closest('.lad-replay').querySelector('[type=range]')"
    lab.evaluate(f"{slider}.value = 0, void {slider}.dispatchEvent(new Event('input'))")
    assert lab.evaluate(f"{lens}.innerText").startswith("Token 0: ")
    assert lab.errors == []


def test_ctrl_enter_runs_the_explorer_and_not_the_cell(lab):
    cell = "document.querySelectorAll('.jp-CodeCell')[0]"
    count = lab.evaluate(f"{cell}.querySelector('.jp-InputPrompt').textContent")
    lab.click("Name three fruits.", cell)
    lab.evaluate(f"{cell}.querySelector('.noUi-handle').focus()")
    lab.press("Enter", 13, control=True)
    lab.wait(f"/Name three fruits[^]*forward pass/.test({cell}.textContent)")
    assert lab.evaluate(f"{cell}.querySelector('.jp-InputPrompt').textContent") == count


def test_a_list_set_to_none_says_so(lab):
    lab.wait("document.querySelector('.jupyter-widget-Collapse-header')")
    lab.evaluate("document.querySelector('.jupyter-widget-Collapse-header').click()")
    lists = "[...document.querySelectorAll('.jp-CodeCell')[0].querySelectorAll('.widget-dropdown')]"
    one = f"{lists}.find(e => e.textContent.startsWith('{{}}')).querySelector('select')"
    label = f"{one}.selectedOptions[0]?.text.replaceAll('\u00a0', ' ')"

    def choose(name, text):
        select = one.format(name)
        index = f"[...{select}.options].findIndex(o => o.text.startsWith('{text}'))"
        lab.evaluate(f"{select}.selectedIndex = {index}")
        lab.evaluate(f"{select}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    choose("Preset", "default")
    choose("Added tokens", "8")
    choose("Context", "64")
    for name, number in {"Added": "8", "Context": "64", "Window": "16"}.items():
        lab.wait(f"{label.format(name)} === '{number}'")
    choose("Added tokens", "none")  # by hand
    time.sleep(1)  # what the kernel sends back
    choose("Preset", "guided")  # and by preset
    lab.wait(f"{label.format('Preset')}.startsWith('guided: ')")
    time.sleep(1)  # what the kernel sends back
    shown = {name: lab.evaluate(label.format(name)) for name in ("Added", "Context", "Window")}
    assert shown == dict.fromkeys(shown, "none")


@pytest.mark.parametrize("width", [1400, 390])
def test_no_explorer_has_a_scrollbar_and_sliders_have_a_pixel_for_every_value(lab, width):
    lab.evaluate(
        "document.querySelector('#jp-left-stack').offsetParent && void "
        "window.jupyterapp.commands.execute('application:toggle-left-area')"
    )
    fold = "document.querySelector('.jupyter-widget-Collapse')"
    closed = f"!{fold}.classList.contains('jupyter-widget-Collapse-open')"
    lab.evaluate(f"{closed} && {fold}.querySelector('.jupyter-widget-Collapse-header').click()")
    lab.resize(width, 2400)
    time.sleep(1)  # what the page lays out again
    assert lab.evaluate(SCROLLED) == []
    tracks = lab.evaluate(
        "[...document.querySelectorAll('.lad-settings .noUi-target')].map(e => [e.closest("
        "'.jupyter-widgets').querySelector('.widget-label').textContent, e.clientWidth])"
    )
    steps = {
        f["label"]: (f["high"] - f["low"]) / f["step"] for f in SETTINGS.values() if "step" in f
    }
    assert {label for label, _ in tracks} >= {*steps}
    assert [label for label, pixels in tracks if pixels < steps.get(label, 1)] == []
