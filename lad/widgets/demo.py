"""The demo page: the explorers alone, served by Voila, with no code shown.

Each browser session has a kernel, so two at once do not disturb one another. What a session can
use is bounded: iterations, window and seconds of a run, characters of a text, and the number of
sessions. Closing the page ends its kernel and with it the run; a page that is not used for a while
is ended too, since a browser that crashes does not close its page.

It listens on the loopback address by default. Needs the `notebooks` extra.

Reference: Voila, https://voila.readthedocs.io (configuration, kernel culling).
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import nbformat
from ipywidgets import Tab, Widget
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Int
from traitlets.config import Config

from lad.diffusion.adapter import load_denoiser
from lad.models.registry import Backbone, get_backbone
from lad.utils import InvalidInput
from lad.viz.gallery import gallery
from lad.widgets.controls import Limits
from lad.widgets.editing import InfillExplorer, RepairExplorer
from lad.widgets.refinement import RefinementExplorer
from lad.widgets.runner import Loader

LIMITS = Limits(iterations=128, answer_length=128, context=512, seconds=60, characters=2000)
IDLE = 600  # seconds until an unused page is ended
SESSIONS = 8  # each takes about a gigabyte: a kernel with the model in it
SMALL = 10**9  # parameters; one larger model may fill a GPU

CODE = """from lad.widgets.accessibility import name_controls
from lad.widgets.demo import make_page
display(name_controls(), make_page({model!r}, {adapter!r}, {device!r}))"""


class SessionManager(AsyncMappingKernelManager):
    """Voila's kernel manager, which refuses a session when there are `most` already."""

    most = Int(SESSIONS, config=True, help="kernels at a time")

    async def start_kernel(self, **kwargs: object) -> str:
        """Start a kernel, unless there are `most`."""
        if len(self.list_kernel_ids()) >= self.most:
            raise HTTPError(503, "The demo is full: please come back in a few minutes.")
        return await super().start_kernel(**kwargs)


def make_page(
    model: str = "smollm2-135m",
    adapter: str | None = None,
    device: str = "cpu",
    limits: Limits = LIMITS,
) -> Widget:
    """The page's widget; the model is loaded in the background while the welcome is read."""
    loader = Loader(lambda: load_denoiser(model, adapter, device))

    def load() -> None:
        with suppress(Exception):  # the first run tries again, and shows the error
            loader.get()

    threading.Thread(target=load, daemon=True).start()
    name = get_backbone(model).name
    recorded = {key: run for key, run in gallery().items() if run.provenance.get("model") == name}
    models = {model: loader.get}
    explorers = {
        "Refine": RefinementExplorer(models=models, pause=0.1, gallery=recorded, limits=limits),
        "Repair a text": RepairExplorer(loader.get, limits=limits),
        "Fill gaps": InfillExplorer(loader.get, limits=limits),
    }
    return Tab([explorer.widget for explorer in explorers.values()], titles=list(explorers))


def about(backbone: Backbone) -> str:
    """A sentence or two for the page: which model this is, and what to expect of its size."""
    count = backbone.parameters
    if not count:
        return f"The model is {backbone.name}."
    size = f"{count / 1e9:.1f} billion" if count >= SMALL else f"{count / 1e6:.1f} million"
    size = size.replace(".0 ", " ")
    expect = " That is small: short questions suit it." if count < SMALL else ""
    return f"The model is {backbone.name}, of {size} parameters.{expect}"


def default_sessions(backbone: Backbone) -> int:
    """Most sessions at once by default: each has a model in memory."""
    return SESSIONS if 0 < backbone.parameters < SMALL else 1


def write_notebook(
    folder: Path, model: str, adapter: Path | None, device: str, limits: Limits = LIMITS
) -> Path:
    """The notebook that Voila shows: a welcome, and one cell whose source is not shown."""
    path_of_adapter = None if adapter is None else str(adapter.absolute())
    welcome = files("lad").joinpath("assets", "demo.md").read_text(encoding="utf-8")
    words = welcome.format(model=about(get_backbone(model)), **vars(limits))
    code = CODE.format(model=model, adapter=path_of_adapter, device=device)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(code)],
        metadata={"kernelspec": kernel, "title": "LAD"},
    )
    path = folder / "lad.ipynb"
    nbformat.write(notebook, path)
    return path


def configuration(
    host: str, port: int, idle: float = IDLE, sessions: int = SESSIONS
) -> dict[str, dict]:
    """Voila's settings, as traitlets takes them: class -> trait -> value."""
    return {
        "Voila": {
            "ip": host,
            "port": port,
            "open_browser": False,
            # A page that is closed sends a POST without a token, which would be refused, and its
            # kernel would go on. All that a POST can reach here is the end of a kernel whose random
            # id one knows.
            "tornado_settings": {"disable_check_xsrf": True},
        },
        "VoilaConfiguration": {
            "strip_sources": True,
            "show_tracebacks": False,
            # Of all that JupyterLab may have installed, the page needs the widgets.
            "extension_allowlist": [
                "@jupyter-widgets/jupyterlab-manager",
                "@voila-dashboards/widgets-manager8",
            ],
            "multi_kernel_manager_class": "lad.widgets.demo.SessionManager",
        },
        "SessionManager": {"most": sessions},
        # A kernel is idle while no message passes; a run sends one with every iteration.
        "MappingKernelManager": {
            "cull_idle_timeout": round(max(idle, 1)),
            "cull_interval": round(max(idle / 4, 1)),
            "cull_connected": True,
            "cull_busy": False,
        },
    }


def serve(
    model: str = "smollm2-135m",
    adapter: Path | None = None,
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 8866,
    idle: float = IDLE,
    sessions: int | None = None,
) -> None:
    """Serve the page until interrupted.

    Args:
        sessions: most at once; `default_sessions` by default.

    Raises:
        InvalidInput: an unknown model, or a number out of range.
    """
    sessions = default_sessions(get_backbone(model)) if sessions is None else sessions
    if not 1 <= port <= 65535:
        raise InvalidInput(f"port = {port}: expected a whole number from 1 to 65535")
    if sessions < 1:
        raise InvalidInput(f"sessions = {sessions}: expected a whole number from 1 up")
    from voila.app import Voila  # here, because a page's kernel does not need it

    with tempfile.TemporaryDirectory(prefix="lad-demo-") as folder:
        notebook = write_notebook(Path(folder), model, adapter, device)
        print(f"The demo page will be at http://{host}:{port}/ (Ctrl-C ends it)", flush=True)
        settings = Config(configuration(host, port, idle, sessions))
        Voila.launch_instance(argv=[str(notebook)], config=settings)
