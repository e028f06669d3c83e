"""The demo page: a real Voila, real sessions, and what one of them may use."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import psutil
import pytest
from traitlets.config import Config

from lad.models.registry import get_backbone
from lad.utils import InvalidInput
from lad.widgets.demo import (
    LIMITS,
    SessionManager,
    configuration,
    default_sessions,
    make_page,
    serve,
    write_notebook,
)

pytest.importorskip("voila", reason="Voila comes with the notebooks extra")

SCREENS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
PATIENCE = 90
READY = (
    "[...document.querySelectorAll('button')].some(e => e.offsetParent && "
    "e.textContent.trim() === 'Run')"
)
# Fonts and icons that Voila's own template asks for elsewhere; the page does without.
OUTSIDE = re.compile(r"ERR_(NAME_NOT_RESOLVED|INTERNET_DISCONNECTED|CONNECTION\w*).*https://")


class Server:
    """`lad demo` as a process of its own, with the tiny model."""

    def __init__(self, adapter, log, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = log
        command = [sys.executable, "-m", "lad", "demo", "--model", "tiny", "--device", "cpu"]
        command += ["--adapter", str(adapter), "--port", str(self.port), *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        self.until(lambda: "running at" in log.read_text(), "the server does not start")

    def until(self, done, otherwise, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while not done():
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"{otherwise}: {self.log.read_text()}"
            time.sleep(0.1)

    def kernels(self):
        children = psutil.Process(self.process.pid).children(recursive=True)
        lines = []
        for child in children:
            with contextlib.suppress(psutil.Error):
                lines.append(" ".join(child.cmdline()))
        return sum("ipykernel" in line for line in lines)

    def get(self):
        with urllib.request.urlopen(self.url, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(adapter, tmp_path_factory):
    server = Server(adapter, tmp_path_factory.mktemp("log") / "demo.log", "--sessions", "2")
    yield server
    server.close()


def only_outside_hosts(page):
    return [error for error in page.errors if not OUTSIDE.search(error)]


SENTENCE = "document.body.textContent.match(/After \\w+\\.\\s*Iteration \\d+/g)"


def test_a_session_runs_stops_scrubs_and_compares(server, chromium):
    page = chromium.open(server.url, height=1500)
    page.wait(READY)
    assert not page.evaluate("/make_page|import |lad\\.demo/.test(document.body.textContent)")
    page.click("Run")
    page.wait("/Ran all 32 iterations/.test(document.body.textContent)")
    page.screenshot(SCREENS / "demo-run.png")

    last = page.evaluate(SENTENCE)
    page.evaluate("[...document.querySelectorAll('.noUi-handle')].find(e => e.getAttribute("
                  "'aria-label') === 'Step' && e.offsetParent).focus()")  # fmt: skip
    page.press("ArrowLeft", 37)
    page.wait(f"JSON.stringify({SENTENCE}) !== {json.dumps(json.dumps(last))}")

    page.click("Run")
    page.wait("/iteration [2-9] of 32/.test(document.body.textContent)")
    page.click("Stop")
    page.wait("/Cut off after \\d+ of 32 iterations/.test(document.body.textContent)")

    page.click("Compare")
    page.wait("document.querySelectorAll('.lad-costs').length === 1 && "
              "document.querySelector('.lad-costs').offsetParent !== null")  # fmt: skip
    page.screenshot(SCREENS / "demo-compare.png")
    assert only_outside_hosts(page) == []
    page.close()


def test_every_control_can_be_named_and_reached(server, chromium):
    page = chromium.open(server.url, height=1500)
    page.wait(READY)
    page.wait("document.querySelector('.jupyter-widget-Collapse-header[role=button]')")
    page.evaluate("document.querySelector('.jupyter-widget-Collapse-header').focus()")
    page.press("Enter", 13)
    page.wait("document.querySelector('[aria-expanded=true]')")
    page.wait("[...document.querySelectorAll('.noUi-handle')].filter(e => e.offsetParent)"
              ".every(e => e.getAttribute('aria-label'))")  # fmt: skip
    names = page.names()
    assert [pair for pair in names if not re.search(r"\w", pair[1])] == []
    said = {name for _, name in names}
    assert {"Prompt", "Iterations", "Pause (s)", "Temperature", "play", "one step back"} <= said
    assert len(said) > 25
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
    page.wait("[...document.querySelectorAll('button')].some(e => e.offsetParent && "
              "e.textContent.trim() === 'duplicate')")  # fmt: skip
    page.close()


def test_two_sessions_do_not_disturb_one_another_and_leaving_ends_the_run(server, chromium):
    server.until(lambda: server.kernels() == 0, "an earlier session's kernel is still there")
    first, second = (chromium.open(server.url) for _ in range(2))
    for page in (first, second):
        page.wait(READY)
    assert server.kernels() == 2
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get()  # by a third
    assert refused.value.code == 503
    first.click("Run")
    first.wait("/iteration \\d+ of 32/.test(document.body.textContent)")
    assert not second.evaluate("/iteration \\d+ of 32/.test(document.body.textContent)")
    second.click("Run")
    first.close()  # in the middle of its run
    server.until(lambda: server.kernels() == 1, "a session has ended, the kernel has not", 30)
    second.wait("/Ran all 32 iterations/.test(document.body.textContent)")
    second.close()
    server.until(lambda: server.kernels() == 0, "the last kernel is still there", 30)


# -- without a server ------------------------------------------------------------------------------


def test_it_listens_on_loopback_and_shows_no_code_and_no_traceback(monkeypatch):
    import voila.app

    seen = {}
    monkeypatch.setattr(voila.app.Voila, "launch_instance", lambda **given: seen.update(given))
    serve("tiny", Path("somewhere"))
    config = seen["config"]
    assert config["Voila"]["ip"] == "127.0.0.1"
    assert config["VoilaConfiguration"]["strip_sources"] is True
    assert config["VoilaConfiguration"]["show_tracebacks"] is False
    assert not Path(seen["argv"][0]).exists()  # the notebook goes with the server
    other = Config(configuration("0.0.0.0", 80, idle=5, sessions=3))
    assert other.Voila.ip == "0.0.0.0"
    manager = SessionManager(config=other)  # an unused page is ended, a run is not
    assert (manager.most, manager.cull_idle_timeout, manager.cull_busy) == (3, 5, False)
    assert manager.cull_connected


@pytest.mark.parametrize(("name", "value"), [("port", 0), ("port", 70000), ("sessions", 0)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(InvalidInput, match=f"{name} = {value}"):
        serve("tiny", **{name: value})


def test_what_a_session_may_use_is_bounded(adapter):
    page = make_page("tiny", str(adapter))
    assert isinstance(page, widgets.Tab) and len(page.children) == 3

    def walk(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from walk(child)

    sliders = [w for w in walk(page) if getattr(w, "description", "") == "Iterations"]
    assert [slider.options[-1][1] for slider in sliders] == [LIMITS.iterations] * 2
    (length,) = (w for w in walk(page) if getattr(w, "description", "") == "Answer length")
    assert length.max == LIMITS.answer_length
    assert LIMITS.seconds is not None and LIMITS.seconds <= 120


@pytest.mark.parametrize(
    ("name", "words", "sessions"),
    [
        ("smollm2-135m", "smollm2-135m, of 134.5 million parameters. That is small", 8),
        ("llama-3.1-8b:4bit", "llama-3.1-8b, of 8 billion parameters. Its mistakes", 1),
        ("someone/model", "someone/model. Its mistakes", 1),
    ],
)
def test_the_page_names_the_model_and_its_size_bounds_the_sessions(tmp_path, name, words, sessions):
    path = write_notebook(tmp_path, name, None, "cpu")
    assert words in "".join(json.loads(path.read_text())["cells"][0]["source"])
    assert default_sessions(get_backbone(name)) == sessions


def test_what_another_model_did_is_not_in_the_gallery(adapter, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "lad.widgets.demo.RefinementExplorer",
        lambda **given: shown.update(given) or widgets_of_one(),
    )
    make_page("tiny", str(adapter))
    assert shown["gallery"] == {}
    make_page("smollm2-135m", str(adapter))
    assert shown["gallery"]


def widgets_of_one():
    """Something that has a widget."""
    return SimpleNamespace(widget=widgets.Label())


def test_the_notebook_holds_the_choice_of_model(tmp_path):
    path = write_notebook(tmp_path, "tiny", Path("/some/adapter's"), "cpu")
    code = json.loads(path.read_text())["cells"][1]["source"]
    assert "make_page('tiny', \"/some/adapter's\", 'cpu')" in "".join(code)
