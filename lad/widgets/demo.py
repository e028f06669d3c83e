"""The demo page: the explorers alone, and what one run on it may use.

`lad.widgets.demo_server` serves it; only the kernel of a session imports this.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from ipywidgets import Tab, Widget

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import PRESETS
from lad.models.registry import get_backbone
from lad.viz.gallery import gallery, recorded_race
from lad.widgets.controls import Limits
from lad.widgets.editing import InfillExplorer, RepairExplorer
from lad.widgets.lens import LensExplorer
from lad.widgets.race import RaceExplorer
from lad.widgets.refinement import RefinementExplorer
from lad.widgets.runner import Loader

LIMITS = Limits(iterations=128, answer_length=128, context=512, seconds=60, characters=2000)


def make_page(model: str, adapter: str | None, device: str) -> Widget:
    """The page's widget; the model is loaded in the background while the welcome is read."""
    loader = Loader(lambda: load_denoiser(model, adapter, device))

    def load() -> None:
        with suppress(Exception):  # the first run tries again, and shows the error
            loader.get()

    threading.Thread(target=load, daemon=True).start()
    name = get_backbone(model).name
    recorded, race = (
        {key: run for key, run in runs.items() if run.provenance.get("model") == name}
        for runs in (gallery(), recorded_race())
    )
    start = {"models": {model: loader.get}, "config": PRESETS["default"], "pause": 0.1}
    explorers = {
        "Refine": RefinementExplorer(gallery=recorded, limits=LIMITS, **start),
        "Repair a text": RepairExplorer(loader.get, limits=LIMITS),
        "Fill gaps": InfillExplorer(loader.get, limits=LIMITS),
        "Race": RaceExplorer(loader.get, race, limits=LIMITS),
        "Layers": LensExplorer(loader.get, limits=LIMITS),
    }
    return Tab([explorer.widget for explorer in explorers.values()], titles=list(explorers))
