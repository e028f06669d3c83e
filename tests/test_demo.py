"""The demo page: a real Voila, real sessions, and what one of them may use."""

import contextlib
import json
import re
import struct
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import ipywidgets as widgets
import psutil
import pytest
from browser import SCROLLED, Server, end

from lad.diffusion.config import preset
from lad.widgets import demo
from lad.widgets.sharing import as_command, as_query

pytest.importorskip("voila", reason="Voila comes with the notebooks extra")
websocket = pytest.importorskip("websocket", reason="it comes with jupyter_server")
from lad.widgets import demo_server  # noqa: E402

TEXT = "document.body.textContent"
SENTENCE = "document.querySelector('[data-frame]:not([hidden])')?.innerText"
HOSTILE = "<i>hi</i><img src=x onerror='window.hacked=1'>"
READY = (
    "[...document.querySelectorAll('button')].some(e => e.offsetParent && "
    "e.textContent.trim() === 'Run')"
)
RUN = "[...document.querySelectorAll('button')].find(e => e.textContent.trim() === 'Run')"
OPTION = "[...document.querySelectorAll('option')].find((e) => e.text.startsWith('guided'))"
PRESET = f"{OPTION}.parentElement"
KERNEL = "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"


@pytest.fixture(scope="module")
def server(adapter, tmp_path_factory):
    """`lad demo` with the tiny model, for two sessions at a time."""

    def command(port):
        own = ["--model=tiny", f"--adapter={adapter}", "--device=cpu", "--sessions=2"]
        return [sys.executable, "-m", "lad", "demo", *own, f"--port={port}"]

    server = Server(command, "running at", tmp_path_factory.mktemp("log") / "demo.log")
    yield server
    end(server.process)


def choose_guided(page) -> None:
    """Its runs take all iterations, so that there is something to stop."""
    change = "new Event('change', {bubbles: true})"
    page.evaluate(f"{OPTION}.selected = true; {PRESET}.dispatchEvent({change})")
    page.wait(f"/Iterations\\s*32\\D/.test({TEXT})")


def open_tab(page, number: int) -> None:
    tab = f"document.querySelectorAll('[role=tab]')[{number}]"
    page.evaluate(f"{tab}.focus()")
    page.press("Enter", 13)
    page.wait(f"{tab}.getAttribute('aria-selected') === 'true' && {READY}")


@pytest.fixture(scope="module")
def page(server, chromium):
    page = chromium.open(server.url + as_query(HOSTILE, preset("guided")), height=1500)
    page.wait(READY)
    page.wait(f"{PRESET}.selectedOptions[0].text.startsWith('guided')")
    page.wait(f"/Iterations\\s*32\\D/.test({TEXT})")
    return page


def kernels(server) -> set[str]:
    """The ids of all kernels, the warm one included."""
    lines = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(child.cmdline()))
    return {found[1] for line in lines if (found := re.search(r"kernel-([\w-]+)\.json", line))}


def get(server) -> tuple[int, str, str]:
    """Status, kernel id and text of the page, for one who opens no websocket."""
    try:
        with urllib.request.urlopen(server.url, timeout=90) as answer:
            text = answer.read().decode()
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            return answer.status, re.search(r'"kernelId": "([\w-]+)"', text)[1], text
    except urllib.error.HTTPError as refused:
        return refused.code, "", refused.read().decode()


def connect(server, kernel: str, *protocols: str):
    url = server.url.replace("http", "ws") + f"api/kernels/{kernel}/channels?session_id=test"
    return websocket.create_connection(url, subprotocols=protocols, timeout=60)


def test_places_are_taken_one_by_one_and_free_when_a_connection_is_lost(server):
    server.until(lambda: kernels(server), "no kernel is warm")
    warm = kernels(server)
    with ThreadPoolExecutor(5) as pool:
        answers = sorted(pool.map(lambda _: get(server), range(5)))
    assert [status for status, _, _ in answers] == [200, 200, 503, 503, 503]
    ids = {kernel for _, kernel, _ in answers[:2]}
    assert warm < ids == kernels(server)
    assert answers[0][2].index("The page is loading") < answers[0][2].index("kernelId")
    assert "2 of 2 sessions are in use. Try again in 10 minutes" in answers[2][2]
    for kernel in ids:
        connect(server, kernel, demo_server.PROTOCOL).shutdown()  # no farewell
    lost = time.monotonic()
    server.until(lambda: not ids & kernels(server), "a place is kept", 30)
    assert time.monotonic() - lost > demo_server.TO_RETURN / 2  # it may come back


COUNT = struct.pack("<Q", 2**40)


def test_messages_in_another_format_do_not_reach_the_server_s_loops(server):
    server.until(lambda: get(server)[0] == 200, "full", 60)
    kernel = min(kernels(server))
    for protocols in ([], ["other"], [f"x{demo_server.PROTOCOL}"]):
        with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
            connect(server, kernel, *protocols)
    for message in (COUNT, COUNT + bytes(800), b"", bytes(8), bytes(80), "{}"):
        socket = connect(server, kernel, demo_server.PROTOCOL)
        send = socket.send if isinstance(message, str) else socket.send_binary
        send(message)
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            while True:  # what the kernel says meanwhile
                code, data = socket.recv_data()
                if code == websocket.ABNF.OPCODE_CLOSE:
                    raise websocket.WebSocketConnectionClosedException(data)
    with urllib.request.urlopen(f"{server.url}voila/static/voila.js", timeout=10) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("offsets", "length", "expected"),
    [
        ([56, 61, 63, 65, 67, 69], 69, True),
        ([56, 61, 63, 65, 67, 70], 69, False),  # beyond the end
        ([56, 61, 60, 65, 67, 69], 69, False),  # one part over another
        ([16], 69, False),
        ([528 + 8] * 65, 536, False),  # more parts than a page sends
    ],
)
def test_the_parts_of_a_message_lie_in_it_one_behind_the_other(offsets, length, expected):
    head = struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets)
    assert demo_server.is_v1(head.ljust(length, b"x")) is expected


def test_nothing_scrolls_sideways_on_a_phone(page):
    page.resize(390, 1500)
    for tab in range(3):
        open_tab(page, tab)
        page.wait(f"!{SCROLLED}.length")
    open_tab(page, 0)
    page.resize(1200, 1500)


def test_a_session_runs_stops_scrubs_and_compares(page):
    assert not page.evaluate(f"/make_page|import |lad\\.demo/.test({TEXT})")
    page.click("Run")
    page.wait(f"/Ran all 32 iterations/.test({TEXT})")
    last = page.evaluate(SENTENCE)
    page.wait("document.querySelector('[data-inside]')")
    page.evaluate("document.querySelector('.lad-draft [data-at]').click()")
    page.wait("document.querySelectorAll('.lad-likely li').length >= 5")
    page.evaluate("document.querySelector('[data-part=slider]').focus()")
    page.press("ArrowLeft", 37)
    page.wait(f"{SENTENCE} !== {json.dumps(last)}")
    page.click("Run")
    page.wait(f"/\\D[2-9] of 32 iterations,/.test({TEXT})")
    page.click("Stop")
    page.wait(f"/Cut off after \\d+ of 32 iterations/.test({TEXT})")
    page.click("Compare")
    page.wait("(e => e && e.offsetParent)(document.querySelector('.lad-costs'))")
    assert page.errors == []


def test_a_draft_is_edited_by_keyboard_and_the_run_goes_on(page):
    header = "[...document.querySelectorAll('.jupyter-widget-Collapse-header')]"
    page.evaluate(f"{header}.find(e => /^Edit a draft/.test(e.textContent.trim())).focus()")
    page.press("Enter", 13)
    tokens = "[...document.querySelectorAll('select[multiple]')].find(e => e.offsetParent)"
    page.wait(f"{tokens}?.options.length > 1")
    page.evaluate(f"{tokens}.focus()")
    page.press("ArrowDown", 40)
    first = page.evaluate(f"[...{tokens}.options].findIndex((e) => !/MASK/.test(e.text))")
    for _ in range(first):
        page.press("ArrowDown", 40)
    time.sleep(1)  # the page sends the choice when the kernel is idle, a click at once
    page.click("Mask")
    page.wait(f"/MASK.+changed/.test([...{tokens}.options].map((e) => e.text))")
    page.click("Which others move?")
    page.wait(f"/Hiding position \\d+ /.test({TEXT})")
    page.click("Go on")
    page.wait(f"/edited after iteration \\d+/.test({TEXT})")
    page.wait(f"!{RUN}.disabled")
    assert page.evaluate("document.querySelector('[role=alert]') === null")
    assert page.errors == []


def test_copy_gives_the_page_s_link_and_keys_run_and_play(page):
    prompt = "document.querySelector('textarea')"
    assert page.evaluate(f"{prompt}.value") == HOSTILE
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    heads = "[...document.querySelectorAll('.jupyter-widget-Collapse-header')]"
    page.evaluate(f"{heads}.find((e) => e.textContent.includes('Copy')).click()")
    page.wait("[...document.querySelectorAll('[data-copy]')].length === 3")
    assert not page.evaluate("document.querySelector('.lad-copy i') || window.hacked")
    command = as_command(HOSTILE, preset("guided"), "tiny")
    for number, expected in ((0, command), (2, page.evaluate("location.href"))):
        button = f"document.querySelectorAll('[data-copy]')[{number}]"
        page.evaluate(f"{button}.focus()")
        page.press(" ", 32)
        page.wait(f"{button}.textContent === 'Copied'")
        assert page.evaluate("navigator.clipboard.readText()") == expected
    page.evaluate(f"{prompt}.focus()")
    page.press("Enter", 13, control=True)
    page.wait(f"/\\D[2-9] of 32 iterations,/.test({TEXT})")
    page.click("Stop")
    page.wait(f"/Cut off after \\d+ of 32 iterations/.test({TEXT})")
    last = page.evaluate(SENTENCE)
    page.evaluate("document.activeElement.blur()")
    page.press(" ", 32)
    page.wait(f"{SENTENCE} !== {json.dumps(last)}")
    page.press(" ", 32)
    page.wait("document.querySelector('[data-part=play]').textContent === 'Play'")
    page.click("What is the capital of France?")
    page.wait(f"{prompt}.value === 'What is the capital of France?'")
    assert page.errors == []


def test_a_link_with_other_settings_is_an_error_in_the_page(adapter):
    page = demo.make_page("tiny", adapter, "cpu")
    page.children[0].value = "?sharpness=99"
    shown = page.children[1].children[0].children
    assert any("in the link, sharpness = 99" in getattr(one, "value", "") for one in shown)


def test_nothing_is_loaded_from_elsewhere(server, page):
    urls = page.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    assert len(urls) > 3
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []
    elsewhere = "https://elsewhere.invalid/x"
    for load in (f"new Image().src = '{elsewhere}'", f"fetch('{elsewhere}').catch(() => 0)"):
        blocked = page.evaluate(
            "new Promise((done) => { addEventListener('securitypolicyviolation', "
            f"(e) => done(e.blockedURI), {{once: true}}); {load}; }})"
        )
        assert blocked == elsewhere


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
    assert {"Prompt", "Iterations", "Pause (s)", "Temperature", "Play", "Back", "Step"} <= names
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
    open_tab(page, 0)


def test_two_sessions_do_not_disturb_one_another_and_leaving_ends_the_run(server, page, chromium):
    second = chromium.open(server.url)
    second.wait(READY)
    choose_guided(second)
    first, other = page.evaluate(KERNEL), second.evaluate(KERNEL)
    assert {first, other} == kernels(server)
    assert get(server)[0] == 503  # a third
    page.click("Run")
    page.wait(f"/\\D[2-9] of 32 iterations,/.test({TEXT})")
    assert not second.evaluate(f"/\\D[2-9] of 32 iterations,/.test({TEXT})")
    second.click("Run")
    page.close()  # in the middle of its run
    server.until(lambda: first not in kernels(server), "a session has ended, not its kernel", 30)
    second.wait(f"/Ran all 32 iterations/.test({TEXT})")
    second.close()
    server.until(lambda: other not in kernels(server), "the last kernel is still there", 30)


def test_it_listens_on_loopback_and_shows_no_code_and_no_traceback(monkeypatch):
    launch = Mock()
    monkeypatch.setattr(demo_server.DemoServer, "launch_instance", launch)
    demo_server.serve("tiny", Path("somewhere"), "cpu", idle=5, sessions=3)
    argv, config = launch.call_args.kwargs.values()
    assert config["Voila"]["ip"] == "127.0.0.1"
    assert config["VoilaConfiguration"]["strip_sources"] is True
    assert config["VoilaConfiguration"]["show_tracebacks"] is False
    assert not Path(argv[0]).exists()  # the notebook goes with the server
    manager = demo_server.SessionManager(config=config)
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
def test_the_page_names_the_model_and_its_size_bounds_the_sessions(
    monkeypatch, name, words, sessions
):
    def launch(argv, config):
        text, _ = ("".join(c["source"]) for c in json.loads(Path(argv[0]).read_text())["cells"])
        assert words in text and config["SessionManager"]["most"] == sessions

    monkeypatch.setattr(demo_server.DemoServer, "launch_instance", launch)
    demo_server.serve(name, None, "cpu")


def test_what_another_model_did_is_not_in_the_gallery(adapter, monkeypatch):
    explorer = Mock(return_value=SimpleNamespace(widget=widgets.Label()))
    monkeypatch.setattr(demo, "RefinementExplorer", explorer)
    for name, expected in (("tiny", False), ("smollm2-135m", True)):
        demo.make_page(name, adapter, "cpu")
        given = explorer.call_args.kwargs
        assert bool(given["gallery"]) is expected and given["config"] == preset("default")
