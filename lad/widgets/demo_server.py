"""The demo page as Voila serves it: no code shown, a bounded number of sessions, a warm kernel.

Each browser session has a kernel. One kernel is started ahead, so that a page is there in seconds.
A session's kernel ends when its page is closed, when its connection stays lost, or when the page is
not used for a while. Needs the `notebooks` extra.

Reference: Voila, https://voila.readthedocs.io (configuration, kernel culling).
"""

from __future__ import annotations

import asyncio
import math
import struct
import tempfile
import time
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import nbformat
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.ioloop import IOLoop
from tornado.web import HTTPError
from traitlets import Int, Unicode
from traitlets.config import Config
from voila.app import Voila
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

from lad.models.registry import Backbone, get_backbone
from lad.utils import InvalidInput
from lad.widgets.demo import LIMITS

SESSIONS = 8  # each takes about a gigabyte: a kernel with the model in it
SMALL = 10**9  # parameters; one larger model may fill a GPU
ASSETS = files("lad").joinpath("assets", "demo")

# Seconds that a kernel is kept for: a new page to connect, a lost connection to come back. Lost
# connections are looked for, and a warm kernel is started, every so many seconds.
TO_CONNECT, TO_RETURN, INTERVAL = 30, 8, 2
PING = {"ws_ping_interval": 5_000, "ws_ping_timeout": 15_000}  # milliseconds

# Of all that JupyterLab may have installed, the page needs the widgets.
EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8"]
# Nothing is loaded from elsewhere. Voila's page has inline scripts, its front end compiles some.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
PROTOCOL = "v1.kernel.websocket.jupyter.org"
MOST_PARTS = 64  # of a message; an uploaded file is one

# What a kernel runs at its start, and the cell that shows it.
PREPARE = "from lad.widgets import demo; page = demo.make_page({model!r}, {adapter!r}, {device!r})"
SHOW = "from lad.widgets.accessibility import name_controls\ndisplay(name_controls(), page)"


class SessionManager(AsyncMappingKernelManager):
    """Voila's kernel manager with at most `most` kernels, one of which waits for a session."""

    most = Int(config=True)
    prepare = Unicode(config=True)  # what every kernel runs at its start

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self._lock = asyncio.Lock()  # a kernel is listed only after its start
        self._warm: str | None = None

    async def _start(self) -> str:
        prepare = [f"--IPKernelApp.exec_lines={self.prepare}"]
        return await super().start_kernel(kernel_name="python3", path="", extra_arguments=prepare)

    async def warm_up(self) -> None:
        """Start the kernel of the next session, if there is a place for it."""
        async with self._lock:
            if self._warm not in self and len(self) < self.most:
                self._warm = await self._start()

    async def start_kernel(self, **_kwargs: object) -> str:
        """A session's kernel, the warm one if there is one; raises HTTPError when it is full."""
        async with self._lock:
            kernel_id, self._warm = self._warm, None
            if kernel_id not in self:
                if len(self) >= self.most:
                    raise HTTPError(503, self.full())
                kernel_id = await self._start()
            kernel = self.get_kernel(kernel_id)
            kernel.last_activity = datetime.now(UTC)
            kernel.until = time.monotonic() + TO_CONNECT  # without a connection it ends then
            return kernel_id

    def full(self) -> str:
        """What the page says when every place is taken."""
        used = min(kernel.last_activity for kernel in self._kernels.values())
        idle = (datetime.now(UTC) - used).total_seconds()
        minutes = max(1, math.ceil((self.cull_idle_timeout - idle) / 60))
        return (
            f"The demo is full: {self.most} of {self.most} sessions are in use. Try again in "
            f"{minutes} minute{'s' * (minutes > 1)}, or leave this page open: it tries by itself."
        )

    async def cull_kernels(self) -> None:
        """End what is not used; this runs every `cull_interval` seconds."""
        await super().cull_kernels()
        await self.warm_up()

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """End a kernel whose page is gone, or is not used for `cull_idle_timeout` seconds."""
        if kernel_id == self._warm:
            return
        kernel, now = self.get_kernel(kernel_id), time.monotonic()
        if self._kernel_connections.get(kernel_id):
            await super().cull_kernel_if_idle(kernel_id)
        elif kernel.execution_state in ("starting", "busy"):  # its page is being made
            kernel.until = now + TO_CONNECT
        elif now > kernel.until:
            await self.shutdown_kernel(kernel_id, now=True)

    def notify_disconnect(self, kernel_id: str) -> None:
        """A connection to a kernel is lost or closed: it may come back for a while."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self:
            self.get_kernel(kernel_id).until = time.monotonic() + TO_RETURN

    async def shutdown_all(self, now: bool = False) -> None:
        """End all kernels, and start no more."""
        async with self._lock:
            self.most = 0
        await super().shutdown_all(now=now)


class SessionSocket(VoilaKernelWebsocketHandler):
    """Voila's websocket, for messages in the v1 format only.

    Voila and Jupyter loop over a message's number of parts unchecked; in a message of another
    format that number is arbitrary.
    """

    async def pre_get(self) -> None:
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        if PROTOCOL not in map(str.strip, offered):
            raise HTTPError(400, f"expected the websocket subprotocol {PROTOCOL}")
        await super().pre_get()

    def on_message(self, message: str | bytes) -> None:
        if is_v1(message):
            super().on_message(message)
        else:
            self.close(1003, "not in the v1 format")


def is_v1(message: str | bytes) -> bool:
    """Whether a message has the v1 format: the number of offsets, the offsets, the parts."""
    try:
        (count,) = struct.unpack_from("<Q", message)
        ends = struct.unpack_from(f"<{min(count, MOST_PARTS)}Q", message, 8)
    except (TypeError, struct.error):  # text, or shorter than it says
        return False
    return 6 <= count <= MOST_PARTS and list(ends) == sorted(ends) and ends[-1] <= len(message)


class DemoServer(Voila):
    """Voila with the page's own templates, websocket and warm kernel."""

    def setup_template_dirs(self) -> None:
        super().setup_template_dirs()
        self.template_paths.insert(0, str(ASSETS))

    def init_handlers(self) -> list:
        own = {VoilaKernelWebsocketHandler: SessionSocket}
        return [(path, own.get(kind, kind), *rest) for path, kind, *rest in super().init_handlers()]

    def listen(self) -> None:
        IOLoop.current().add_callback(self.kernel_manager.warm_up)
        super().listen()


def is_small(backbone: Backbone) -> bool:
    """Whether every session can have a model of its own."""
    return 0 < backbone.parameters < SMALL


def about(backbone: Backbone) -> str:
    """A sentence or two for the page: which model this is, and what to expect of its size."""
    count, words = backbone.parameters, f"The model is {backbone.name}"
    if is_small(backbone):
        size = f"{count / 1e6:.4g} million parameters"
        return f"{words}, of {size}. That is small: short questions suit it."
    return f"{words}, of {count / 1e9:.2g} billion parameters." if count else f"{words}."


def write_notebook(folder: Path, model: str) -> Path:
    """The notebook that Voila shows: a welcome, and one cell whose source is not shown."""
    welcome = ASSETS.joinpath("welcome.md").read_text(encoding="utf-8")
    words = welcome.format(model=about(get_backbone(model)), **vars(LIMITS))
    cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(SHOW)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "title": "LAD"}
    path = folder / "lad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def serve(
    model: str,
    adapter: Path | None,
    device: str,
    host: str = "127.0.0.1",
    port: int = 8866,
    idle: float = 600,
    sessions: int | None = None,
) -> None:
    """Serve the page until interrupted; raises InvalidInput for a number out of range.

    An unused page is ended after `idle` seconds. At most `sessions` are served at once; by default
    8, or 1 if the model is large or of unknown size.
    """
    if sessions is None:
        sessions = SESSIONS if is_small(get_backbone(model)) else 1
    if not 1 <= port <= 65535:
        raise InvalidInput(f"port = {port}: expected a whole number from 1 to 65535")
    if sessions < 1:
        raise InvalidInput(f"sessions = {sessions}: expected a whole number from 1 up")
    folder_of_adapter = None if adapter is None else str(adapter.absolute())
    prepare = PREPARE.format(model=model, adapter=folder_of_adapter, device=device)
    # A page that is closed sends a POST without a token; refused, its kernel would go on. All that
    # a POST can reach is the end of a kernel whose random id it names.
    web = {"disable_check_xsrf": True, "headers": {"Content-Security-Policy": POLICY}} | PING
    page = {"strip_sources": True, "show_tracebacks": False, "extension_allowlist": EXTENSIONS}
    page["multi_kernel_manager_class"] = "lad.widgets.demo_server.SessionManager"
    # A kernel is idle while no message passes; a run sends one with every iteration.
    unused = {"cull_idle_timeout": round(max(idle, 1)), "cull_interval": INTERVAL}
    unused |= {"cull_connected": True, "cull_busy": False}
    config = {
        "Voila": {"ip": host, "port": port, "open_browser": False, "tornado_settings": web},
        "VoilaConfiguration": page,
        "SessionManager": {"most": sessions, "prepare": prepare} | unused,
    }
    with tempfile.TemporaryDirectory(prefix="lad-demo-") as folder:
        notebook = write_notebook(Path(folder), model)
        print(f"The demo page will be at http://{host}:{port}/ (Ctrl-C ends it)", flush=True)
        DemoServer.launch_instance(argv=[str(notebook)], config=Config(config))
