"""A real browser in tests: headless Chromium, spoken to through its DevTools protocol.

Only what is on the machine is used, so nothing is installed for it: `find_browser` says what there
is, and tests that need one are skipped, with that reason, where there is none.

Reference: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)
PATIENCE = 90  # seconds


def find_browser() -> str:
    """Path of a browser; skips the test, saying so, where there is none."""
    chosen = os.environ.get("LAD_BROWSER")
    found = chosen or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, LAD_BROWSER is not set")
    return found


class Browser:
    """A browser process with a profile of its own; a context manager."""

    def __init__(self) -> None:
        program = find_browser()
        self._folder = tempfile.TemporaryDirectory(
            prefix="lad-browser-", ignore_cleanup_errors=True
        )
        profile = Path(self._folder.name)
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (port.is_file() and port.read_text().count("\n") >= 1):
            assert self._process.poll() is None, "the browser ended at once"
            assert time.monotonic() < deadline, "the browser does not answer"
            time.sleep(0.05)
        self._address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def open(self, url: str, width: int = 1200, height: int = 1000, dark: bool = False) -> "Page":
        """A new tab at an address."""
        request = urllib.request.Request(f"{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            target = json.load(answer)
        page = Page(target["webSocketDebuggerUrl"])
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        # As if somebody looked at it, whatever other tabs there are.
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=url)
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
        """One command of the protocol, and its answer; events on the way are looked at."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            self._hear(message.get("method"), message.get("params", {}))

    def _hear(self, event: str | None, said: dict) -> None:
        if event == "Runtime.consoleAPICalled" and said["type"] == "error":
            words = (str(a.get("value", a.get("description", ""))) for a in said["args"])
            self.errors.append(" ".join(words))
        elif event == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        said = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, f"{script}: {said['exceptionDetails']}"
        return said["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"!!({script})"):
            assert time.monotonic() < deadline, f"in vain for {seconds} s: {script}"
            time.sleep(0.1)

    def click(self, text: str, tag: str = "button") -> None:
        """Press the first visible element of a kind that says this."""
        self.wait(
            f"(() => {{ const found = [...document.querySelectorAll({tag!r})].find((e) => "
            f"e.textContent.trim() === {text!r} && e.offsetParent !== null && !e.disabled);"
            "if (!found) return false; found.click(); return true; })()"
        )

    def press(self, key: str, code: int) -> None:
        """One key, as from a keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code,
            )  # fmt: skip

    def names(self) -> list[tuple[str, str]]:
        """What a screen reader is told: (role, name) of every control."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        controls = {
            "button", "checkbox", "combobox", "listbox", "progressbar", "radio", "slider",
            "spinbutton", "tab", "textbox",
        }  # fmt: skip
        return [
            (node["role"]["value"], node.get("name", {}).get("value", "").strip())
            for node in nodes
            if not node.get("ignored") and node.get("role", {}).get("value") in controls
        ]

    def screenshot(self, path: Path) -> Path:
        """The visible part as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return path

    def close(self) -> None:
        """Close the tab as a visitor does: the page may still say goodbye."""
        self.call("Page.navigate", url="about:blank")
        self._socket.close()
