"""The demo page: the explorers alone, served by Voila, with no code shown.

Each visitor has a kernel of their own, so two at once do not disturb one another. What a visitor
can ask for is bounded: iterations, window and seconds of a run, characters of a text, and how many
visitors there may be. Closing the page ends its kernel and with it the run; a page that nobody
touches for a while is ended too, since a browser that crashes does not say goodbye.

It listens on the loopback address unless told otherwise. Needs the `notebooks` extra.

Reference: Voila, https://voila.readthedocs.io (configuration, kernel culling).
"""

from __future__ import annotations

import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import nbformat
from ipywidgets import Tab, Widget

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import RefineConfig
from lad.models.registry import Backbone, get_backbone
from lad.utils import InvalidInput
from lad.viz.gallery import gallery
from lad.widgets.controls import Limits
from lad.widgets.editing import InfillExplorer, RepairExplorer
from lad.widgets.refinement import RefinementExplorer
from lad.widgets.runner import Loader

__all__ = ["LIMITS", "configuration", "make_page", "serve", "write_notebook"]

LIMITS = Limits(iterations=128, answer_length=128, context=512, seconds=60, characters=2000)
IDLE = 600  # seconds until a page that nobody touches is ended
VISITORS = 8  # each takes about a gigabyte: a kernel with the model in it
SMALL = 10**9  # parameters; of larger models one visitor's may fill a GPU

WELCOME = """# LAD: a whole answer at once, draft after draft

A language model usually writes word by word. This one drafts the whole answer in one go and then
improves it: press **Run** and watch. Green and underlined is what changed, red and struck is what
is hidden again before the next draft. Afterwards the slider steps through all that happened.

{model} Its mistakes are shown as they are. One run may take
{iterations} iterations, {answer_length} positions and {seconds} seconds.
"""


def make_page(
    model: str = "smollm2-135m",
    adapter: str | None = None,
    device: str = "cpu",
    limits: Limits = LIMITS,
) -> Widget:
    """The page's widget; the model is loaded in the background while the visitor reads."""
    loader = Loader(lambda: load_denoiser(model, adapter, device))

    def load() -> None:
        with suppress(Exception):  # said at the first run, which tries again
            loader.get()

    threading.Thread(target=load, daemon=True).start()
    start = RefineConfig()
    own = get_backbone(model).name
    recorded = {name: x for name, x in gallery().items() if x.provenance.get("model") == own}
    explorers = {
        "Ask": RefinementExplorer(
            models={model: loader.get}, config=start, pause=0.1, gallery=recorded, limits=limits
        ),
        "Mend a text": RepairExplorer(loader.get, limits=limits),
        "Fill gaps": InfillExplorer(loader.get, limits=limits),
    }
    return Tab([explorer.widget for explorer in explorers.values()], titles=list(explorers))


def about(backbone: Backbone) -> str:
    """A sentence or two for visitors: which model this is, and what to expect of its size."""
    count = backbone.parameters
    if not count:
        return f"The model is {backbone.name}."
    size = f"{count / 1e9:.1f} billion" if count >= SMALL else f"{count / 1e6:.1f} million"
    size = size.replace(".0 ", " ")
    expect = " That is small: short questions suit it." if count < SMALL else ""
    return f"The model is {backbone.name}, of {size} parameters.{expect}"


def usual_visitors(backbone: Backbone) -> int:
    """Most visitors at once unless told otherwise: each has a model of their own in memory."""
    return VISITORS if 0 < backbone.parameters < SMALL else 1


def write_notebook(
    folder: Path, model: str, adapter: Path | None, device: str, limits: Limits = LIMITS
) -> Path:
    """The notebook that Voila shows: a welcome, and one cell whose source nobody sees."""
    chosen = None if adapter is None else str(adapter.absolute())
    code = (
        "from lad.widgets.demo import make_page\nfrom lad.widgets.accessibility import name_controls\n"
        f"display(name_controls(), make_page({model!r}, {chosen!r}, {device!r}))"
    )
    words = WELCOME.format(
        model=about(get_backbone(model)),
        iterations=limits.iterations,
        answer_length=limits.answer_length,
        seconds=limits.seconds,
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(code)],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "title": "LAD",
        },
    )
    path = folder / "lad.ipynb"
    nbformat.write(notebook, path)
    return path


def configuration(
    host: str, port: int, idle: float = IDLE, visitors: int = VISITORS
) -> dict[str, dict]:
    """Voila's settings, as traitlets takes them: class -> trait -> value."""
    return {
        "Voila": {
            "ip": host,
            "port": port,
            "open_browser": False,
            # A page says goodbye by a POST without a token, which would be refused, and the kernel
            # of a visitor who has left would go on. All that a POST can reach here is the end of a
            # kernel whose random id one knows.
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
            "multi_kernel_manager_class": "lad.widgets.visitors.Visitors",
        },
        "Visitors": {"most": visitors},
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
    visitors: int | None = None,
) -> None:
    """Serve the page until interrupted.

    Args:
        visitors: most at once; `usual_visitors` by default.

    Raises:
        InvalidInput: Voila is not installed, an unknown model, or a number out of range.
    """
    visitors = usual_visitors(get_backbone(model)) if visitors is None else visitors
    if not 1 <= port <= 65535:
        raise InvalidInput(f"port = {port}: expected a whole number from 1 to 65535")
    if visitors < 1:
        raise InvalidInput(f"visitors = {visitors}: expected a whole number from 1 up")
    try:
        from traitlets.config import Config
        from voila.app import Voila
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"no Voila in {sys.executable}: expected the notebooks extra; "
            "install it with `pip install lad[notebooks]`, or use `make demo`"
        ) from error
    with tempfile.TemporaryDirectory(prefix="lad-demo-") as folder:
        notebook = write_notebook(Path(folder), model, adapter, device)
        print(f"The demo page will be at http://{host}:{port}/ (Ctrl-C ends it)", flush=True)
        settings = Config(configuration(host, port, idle, visitors))
        Voila.launch_instance(argv=[str(notebook)], config=settings)
