"""A real browser in tests: headless Chromium, spoken to through its DevTools protocol.

Nothing is installed for it: tests that need one are skipped where there is none.

Reference: https://chromedevtools.github.io/devtools-protocol/
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = """
headless=new no-sandbox disable-gpu disable-quic no-first-run hide-scrollbars disable-sync
disable-background-networking disable-component-update disable-dev-shm-usage
force-color-profile=srgb remote-debugging-port=0 remote-allow-origins=*
"""
CONTROLS = "button checkbox combobox listbox progressbar radio slider spinbutton tab textbox"
PATIENCE = 180  # seconds
# What has a horizontal scrollbar, and how wide it is; a table may have one.
SCROLLED = """[...document.querySelectorAll('html, body, .jupyter-widgets, .jupyter-widgets *')]
.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth && e.tagName !== 'TABLE'
&& /auto|scroll/.test(getComputedStyle(e).overflowX))
.map(e => `${e.textContent.slice(0, 40)}: ${e.scrollWidth} > ${e.clientWidth}`)"""


def until(done, otherwise, seconds: float = PATIENCE) -> None:
    """Wait until a function returns something true; fail with the other's words if it does not."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


def contrast(*colors) -> float:
    """WCAG's ratio of two colours of three channels, 0 to 255."""

    def luminance(color) -> float:
        parts = [c / 255 for c in color]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


def end(process: subprocess.Popen) -> None:
    """End a process, the hard way if it must be."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """A web server as a process of its own, started by a function from a free port to a command."""

    def __init__(self, command, ready: str, log: Path, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command(port), stdout=file, stderr=file, env=environment
            )
        self.until(lambda: ready in log.read_text(), "the server does not start")

    def until(self, done, otherwise: str, seconds: float = PATIENCE) -> None:
        """Wait until something is true, as long as the server runs."""

        def checked():
            assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
            return done()

        until(checked, lambda: f"{otherwise}: {self.log.read_text()}", seconds)


class Browser:
    """A browser process with a profile of its own; a context manager."""

    def __init__(self) -> None:
        program = os.environ.get("LAD_BROWSER")
        program = program or next(filter(None, map(shutil.which, NAMES)), None)
        if not program:
            pytest.skip(f"no browser: none of {', '.join(NAMES)}, and LAD_BROWSER is not set")
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        profile = Path(self._folder.name)
        flags = [f"--{flag}" for flag in FLAGS.split()]
        command = [program, *flags, f"--user-data-dir={profile}", "about:blank"]
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        port = profile / "DevToolsActivePort"
        until(lambda: port.is_file() and "\n" in port.read_text(), lambda: "no answer")
        self._address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)
        self._folder.cleanup()

    def open(self, url: str, height: int = 1000, dark: bool = False, width=1200) -> "Page":
        """A new tab at an address."""
        request = urllib.request.Request(f"{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            page = Page(json.load(answer)["webSocketDebuggerUrl"])
        page.resize(width, height)
        # As if somebody looked at it, whatever other tabs there are.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=url)
        return page

    def show(self, html: str, folder: Path, offline: bool = False, **options: object) -> "Page":
        """A new tab with this HTML, as a file in a folder."""
        file = folder / "page.html"
        file.write_text("<!DOCTYPE html><meta charset=utf-8>" + html, encoding="utf-8")
        page = self.open(file.as_uri(), **options)
        page.call("Network.enable")
        speed = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        page.call("Network.emulateNetworkConditions", offline=offline, **speed)
        page.wait("document.readyState === 'complete'")
        return page


class Page:
    """A tab. `errors` are what the console said and the scripts raised."""

    def __init__(self, address: str) -> None:
        import websocket  # comes with jupyter_server

        self._socket = websocket.create_connection(address, timeout=PATIENCE)
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict:
        """One command of the protocol, and its answer; errors on the way are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            event, values = message.get("method"), message.get("params", {})
            is_error = "error" in (values.get("type"), values.get("entry", {}).get("level"))
            if is_error or event == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(values))

    def resize(self, width: int, height: int) -> None:
        """The size of the tab, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        got = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in got, f"{script}: {got['exceptionDetails']}"
        return got["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        until(lambda: self.evaluate(f"!!({script})"), lambda: f"in vain: {script}")

    def click(self, text: str, within: str = "document") -> None:
        """Press the first visible button that says this."""
        self.wait(
            f"(() => {{ const found = [...{within}.querySelectorAll('button')].find((e) => "
            f"e.textContent.trim() === {text!r} && e.offsetParent !== null && !e.disabled);"
            "if (!found) return false; found.click(); return true; })()"
        )

    def press(self, key: str, code: int, control: bool = False) -> None:
        """One key, as from a keyboard."""
        names = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 2 * control}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **names)

    def names(self) -> list[tuple[str, str]]:
        """What a screen reader gets: (role, name) of every control."""
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "").strip())
            for node in self.call("Accessibility.getFullAXTree")["nodes"]
            if not node.get("ignored") and node.get("role", {}).get("value") in CONTROLS.split()
        ]

    def close(self) -> None:
        """Close the tab as a visitor does: the page may still say goodbye."""
        self.call("Page.navigate", url="about:blank")
        self._socket.close()
