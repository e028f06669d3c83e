"""The demo page: the explorers alone, served by Voila, with no code shown.

Each browser session has a kernel. What it can use is bounded: iterations, window and seconds of a
run, characters of a text, and the number of sessions. Closing the page ends its kernel and with it
the run; a page that is not used for a while is ended too, since a browser that crashes does not
close its page. Needs the `notebooks` extra.

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
SESSIONS = 8  # each takes about a gigabyte: a kernel with the model in it
SMALL = 10**9  # parameters; one larger model may fill a GPU

# Of all that JupyterLab may have installed, the page needs the widgets.
EXTENSIONS = ["@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8"]
CODE = """from lad.widgets.accessibility import name_controls
from lad.widgets.demo import make_page
display(name_controls(), make_page({model!r}, {adapter!r}, {device!r}))"""


class SessionManager(AsyncMappingKernelManager):
    """Voila's kernel manager, which refuses a session when there are `most` already."""

    most = Int(SESSIONS, config=True)

    async def start_kernel(self, **kwargs: object) -> str:
        if len(self.list_kernel_ids()) >= self.most:
            raise HTTPError(503, "The demo is full: please come back in a few minutes.")
        return await super().start_kernel(**kwargs)


def make_page(model: str, adapter: str | None, device: str) -> Widget:
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
        "Refine": RefinementExplorer(models=models, pause=0.1, gallery=recorded, limits=LIMITS),
        "Repair a text": RepairExplorer(loader.get, limits=LIMITS),
        "Fill gaps": InfillExplorer(loader.get, limits=LIMITS),
    }
    return Tab([explorer.widget for explorer in explorers.values()], titles=list(explorers))


def about(backbone: Backbone) -> str:
    """A sentence or two for the page: which model this is, and what to expect of its size."""
    count = backbone.parameters
    if not count:
        return f"The model is {backbone.name}."
    if count >= SMALL:
        return f"The model is {backbone.name}, of {count / 1e9:.2g} billion parameters."
    size = f"{count / 1e6:.4g} million parameters"
    return f"The model is {backbone.name}, of {size}. That is small: short questions suit it."


def default_sessions(backbone: Backbone) -> int:
    """Most sessions at once by default: each has a model in memory."""
    return SESSIONS if 0 < backbone.parameters < SMALL else 1


def write_notebook(folder: Path, model: str, adapter: Path | None, device: str) -> Path:
    """The notebook that Voila shows: a welcome, and one cell whose source is not shown."""
    welcome = files("lad").joinpath("assets", "demo.md").read_text(encoding="utf-8")
    words = welcome.format(model=about(get_backbone(model)), **vars(LIMITS))
    path_of_adapter = None if adapter is None else str(adapter.absolute())
    code = CODE.format(model=model, adapter=path_of_adapter, device=device)
    cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "title": "LAD"}
    path = folder / "lad.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def configuration(host: str, port: int, idle: float, sessions: int) -> dict[str, dict]:
    """Voila's settings, as traitlets takes them: class -> trait -> value."""
    # A page that is closed sends a POST without a token; refused, its kernel would go on. All that
    # a POST can reach is the end of a kernel whose random id it names.
    posts = {"disable_check_xsrf": True}
    page = {"strip_sources": True, "show_tracebacks": False, "extension_allowlist": EXTENSIONS}
    page["multi_kernel_manager_class"] = "lad.widgets.demo.SessionManager"
    # A kernel is idle while no message passes; a run sends one with every iteration.
    unused = {"cull_idle_timeout": round(max(idle, 1)), "cull_interval": round(max(idle / 4, 1))}
    return {
        "Voila": {"ip": host, "port": port, "open_browser": False, "tornado_settings": posts},
        "VoilaConfiguration": page,
        "SessionManager": {"most": sessions},
        "MappingKernelManager": unused | {"cull_connected": True, "cull_busy": False},
    }


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

    An unused page is ended after `idle` seconds; at most `sessions` are served at once.
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
