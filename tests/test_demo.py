"""The demo page: a real Voila, real sessions, and what one of them may use."""

import contextlib
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import psutil
import pytest
from browser import Server, end
from traitlets.config import Config

from lad.models.registry import get_backbone
from lad.widgets import demo

pytest.importorskip("voila", reason="Voila comes with the notebooks extra")

TEXT = "document.body.textContent"
SENTENCE = f"{TEXT}.match(/After [\\w-]+\\.\\s*Iteration \\d+/g)"
READY = (
    "[...document.querySelectorAll('button')].some(e => e.offsetParent && "
    "e.textContent.trim() === 'Run')"
)
# Fonts and icons that Voila's own template asks for elsewhere; the page does without.
OUTSIDE = re.compile(r"ERR_(NAME_NOT_RESOLVED|INTERNET_DISCONNECTED|CONNECTION\w*).*https://")


@pytest.fixture(scope="module")
def server(adapter, tmp_path_factory):
    """`lad demo` with the tiny model, for two sessions at a time."""

    def command(port):
        own = ["--model=tiny", f"--adapter={adapter}", "--device=cpu", "--sessions=2"]
        return [sys.executable, "-m", "lad", "demo", *own, f"--port={port}"]

    server = Server(command, "running at", tmp_path_factory.mktemp("log") / "demo.log")
    yield server
    end(server.process)


@pytest.fixture(scope="module")
def page(server, chromium):
    page = chromium.open(server.url, height=1500)
    page.wait(READY)
    return page


def kernels(server):
    lines = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(child.cmdline()))
    return sum("ipykernel" in line for line in lines)


def test_a_session_runs_stops_scrubs_and_compares(page):
    assert not page.evaluate(f"/make_page|import |lad\\.demo/.test({TEXT})")
    page.click("Run")
    page.wait(f"/Ran all 32 iterations/.test({TEXT})")
    last = page.evaluate(SENTENCE)
    page.evaluate(
        "[...document.querySelectorAll('.noUi-handle')].find(e => e.getAttribute('aria-label') "
        "=== 'Step' && e.offsetParent).focus()"
    )
    page.press("ArrowLeft", 37)
    page.wait(f"JSON.stringify({SENTENCE}) !== {json.dumps(json.dumps(last))}")
    page.click("Run")
    page.wait(f"/iteration [2-9] of 32/.test({TEXT})")
    page.click("Stop")
    page.wait(f"/Cut off after \\d+ of 32 iterations/.test({TEXT})")
    page.click("Compare")
    page.wait("(e => e && e.offsetParent)(document.querySelector('.lad-costs'))")
    assert [error for error in page.errors if not OUTSIDE.search(error)] == []


def test_every_control_can_be_named_and_reached(page):
    page.evaluate("document.querySelector('.jupyter-widget-Collapse-header[role=button]').focus()")
    page.press("Enter", 13)
    page.wait("document.querySelector('[aria-expanded=true]')")
    page.wait(
        "[...document.querySelectorAll('.noUi-handle')].filter(e => e.offsetParent)"
        ".every(e => e.getAttribute('aria-label'))"
    )
    pairs = page.names()
    assert [pair for pair in pairs if not re.search(r"\w", pair[1])] == []
    names = {name for _, name in pairs}
    assert {"Prompt", "Iterations", "Pause (s)", "Temperature", "play", "one step back"} <= names
    assert len(names) > 25
    # Tab goes through all that can be pressed or moved.
    stops = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, .noUi-handle, "
        "[role=button]')].filter(e => e.offsetParent && !e.disabled && e.type !== 'file' && "
        "!e.closest('[disabled]') && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 90))"
    )
    assert stops == []
    # The tabs too: arrows move between them, Enter opens one.
    page.evaluate("document.querySelector('[role=tab][tabindex=\"0\"]').focus()")
    page.press("ArrowRight", 39)
    page.press("Enter", 13)
    page.click("duplicate")
    page.press("ArrowLeft", 37)
    page.evaluate("document.querySelectorAll('[role=tab]')[0].click()")


def test_two_sessions_do_not_disturb_one_another_and_leaving_ends_the_run(server, page, chromium):
    second = chromium.open(server.url)
    second.wait(READY)
    assert kernels(server) == 2
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url, timeout=90)  # by a third
    assert refused.value.code == 503
    page.click("Run")
    page.wait(f"/iteration \\d+ of 32/.test({TEXT})")
    assert not second.evaluate(f"/iteration \\d+ of 32/.test({TEXT})")
    second.click("Run")
    page.close()  # in the middle of its run
    server.until(lambda: kernels(server) == 1, "a session has ended, the kernel has not", 30)
    second.wait(f"/Ran all 32 iterations/.test({TEXT})")
    second.close()
    server.until(lambda: kernels(server) == 0, "the last kernel is still there", 30)


def test_it_listens_on_loopback_and_shows_no_code_and_no_traceback(monkeypatch):
    import voila.app

    seen = {}
    monkeypatch.setattr(voila.app.Voila, "launch_instance", lambda **given: seen.update(given))
    demo.serve("tiny", Path("somewhere"), "cpu")
    config = seen["config"]
    assert config["Voila"]["ip"] == "127.0.0.1"
    assert config["VoilaConfiguration"]["strip_sources"] is True
    assert config["VoilaConfiguration"]["show_tracebacks"] is False
    assert not Path(seen["argv"][0]).exists()  # the notebook goes with the server
    settings = demo.configuration("0.0.0.0", 80, idle=5, sessions=3)
    manager = demo.SessionManager(config=Config(settings))
    # An unused page is ended, a run is not.
    assert (manager.most, manager.cull_idle_timeout, manager.cull_busy) == (3, 5, False)
    assert manager.cull_connected


def test_what_a_session_may_use_is_bounded(adapter):
    page = demo.make_page("tiny", adapter, "cpu")

    def walk(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    found = {}
    for widget in walk(page):
        found.setdefault(getattr(widget, "description", ""), []).append(widget)
    assert [w.options[-1][1] for w in found["Iterations"]] == [demo.LIMITS.iterations] * 2
    assert [w.max for w in found["Answer length"]] == [demo.LIMITS.answer_length]
    assert demo.LIMITS.seconds is not None and demo.LIMITS.seconds <= 120


@pytest.mark.parametrize(
    ("name", "words", "sessions"),
    [
        ("smollm2-135m", "smollm2-135m, of 134.5 million parameters. That is small", 8),
        ("llama-3.1-8b:4bit", "llama-3.1-8b, of 8 billion parameters. Its mistakes", 1),
        ("someone/model", "someone/model. Its mistakes", 1),
    ],
)
def test_the_page_names_the_model_and_its_size_bounds_the_sessions(tmp_path, name, words, sessions):
    path = demo.write_notebook(tmp_path, name, Path("/some/adapter's"), "cpu")
    text, code = ("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
    assert words in text and demo.default_sessions(get_backbone(name)) == sessions
    assert f"make_page('{name}', \"/some/adapter's\", 'cpu')" in code


def test_what_another_model_did_is_not_in_the_gallery(adapter, monkeypatch):
    seen = {}

    def explorer(**given):
        seen.update(given)
        return SimpleNamespace(widget=widgets.Label())

    monkeypatch.setattr("lad.widgets.demo.RefinementExplorer", explorer)
    for name, expected in (("tiny", False), ("smollm2-135m", True)):
        demo.make_page(name, adapter, "cpu")
        assert bool(seen["gallery"]) is expected
