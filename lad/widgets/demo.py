"""The demo page: the explorers alone, and what one run on it may use.

`lad.widgets.demo_server` serves it; only the kernel of a session imports this.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from ipywidgets import Tab, Text, VBox, Widget

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS
from lad.models.registry import get_backbone
from lad.utils import LADError
from lad.viz.gallery import gallery, recorded_race, recorded_runs
from lad.widgets.controls import Limits, error_html
from lad.widgets.editing import InfillExplorer, RepairExplorer
from lad.widgets.lens import LensExplorer
from lad.widgets.race import RaceExplorer
from lad.widgets.refinement import RefinementExplorer
from lad.widgets.runner import Loader
from lad.widgets.sharing import from_query

LIMITS = Limits(iterations=128, answer_length=128, context=512, seconds=60, characters=2000)


def make_page(model: str, adapter: str | None, device: str) -> Widget:
    """The page's widget; the model is loaded in the background while the welcome is read."""
    loader = Loader(lambda: load_denoiser(model, adapter, device))

    def load() -> None:
        with suppress(Exception):  # the first run tries again, and shows the error
            loader.get()

    threading.Thread(target=load, daemon=True).start()
    name = get_backbone(model).name
    runs, race = (
        {key: run for key, run in all_runs.items() if run.provenance.get("model") == name}
        for all_runs in (recorded_runs(), recorded_race())
    )
    start = {"denoiser": loader.get, "model": model, "config": PRESETS["default"], "pause": 0.1}
    start |= {"prompt": "What do you know about Amsterdam?", "gallery": gallery(runs)}
    texts = {"denoiser": loader.get, "limits": LIMITS}
    explorers = {
        "Refine": RefinementExplorer(limits=LIMITS, demo="", **start),  # links are to this page
        "Repair a text": RepairExplorer(**texts, recorded=runs.get("paris_repair")),
        "Fill gaps": InfillExplorer(**texts, recorded=runs.get("capitals_infill")),
        "Race": RaceExplorer(loader.get, race, limits=LIMITS),
        "Layers": LensExplorer(loader.get, limits=LIMITS),
    }
    query = Text(layout={"display": "none"}).add_class("lad-query")  # the page's script fills it
    query.observe(lambda change: open_link(explorers["Refine"], change["new"]), "value")
    tabs = Tab([explorer.widget for explorer in explorers.values()], titles=list(explorers))
    return VBox([query, tabs])


def open_link(explorer: RefinementExplorer, query: str) -> None:
    """Set an explorer to what follows the page's address in a link; nothing is run."""
    try:
        prompt, config = from_query(query)
    except LADError as error:
        explorer.message.value = error_html(f"in the link, {error}")
        return
    explorer.prompt.value = prompt or explorer.prompt.value
    explorer.settings.load(config)
