"""`lad gallery`: the runs that the report's menus choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from lad.cli import common


def gallery(
    out: Annotated[Path | None, Option(help="By default figures/data/gallery.jsonl.gz.")] = None,
    n_prompts: Annotated[int, Option(help="Of the six prompts; texts likewise.", min=1)] = 6,
    presets: Annotated[str | None, Option(help="Separated by commas; all by default.")] = None,
    seeds: Annotated[int, Option(help="How many, from 0 up.", min=1)] = 3,
    model: common.Model = "smollm2-135m",
    adapter: common.Adapter = None,
    device: common.Device = "auto",
) -> None:
    """Record a run for every choice of the report's menus: prompts, presets, seeds, texts."""
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import PRESETS
    from lad.utils import check_writable, figures_folder

    with common.notebooks_extra():
        from lad.widgets import recorded

    path = out or figures_folder() / "data" / recorded.FILE
    check_writable(path)
    names = list(PRESETS) if presets is None else [name.strip() for name in presets.split(",")]
    wanted = list(recorded.choices(recorded.PROMPTS[:n_prompts], names, range(seeds)))
    denoiser, traces = load_denoiser(model, adapter, common.choose_device(device)), []
    with common.progress() as on_progress:
        for choice in wanted:
            traces.append(recorded.run_choice(denoiser, choice, common.command_line()))
            on_progress("runs", len(traces), len(wanted))
    recorded.save_runs(traces, path)
    print(f"{path}: {len(traces)} runs, {path.stat().st_size / 1e6:.1f} MB")
