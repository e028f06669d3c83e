"""`lad fetch`, `lad figures`, `lad info`: what is here, and getting the rest."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import AsJson, print_json


def fetch(
    model: Annotated[str, typer.Argument(help="Backbone to have at hand.")] = "smollm2-135m",
) -> None:
    """Download and convert a backbone, so that everything else works offline."""
    from lad.models.registry import describe, fetch_backbone

    started = time.monotonic()
    folder = fetch_backbone(model)
    size = describe(model)["bytes"]
    took = f"{time.monotonic() - started:.1f} s"
    typer.echo(f"{model}: {folder or 'made in memory'}, {size / 1e6:,.0f} MB, {took}")


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
) -> None:
    """Draw the figures again from what is recorded in figures/data; no model is needed."""
    from lad.viz.gallery import redraw, unrecorded

    for path in redraw(names or ()):
        typer.echo(str(path))
    if not names:
        for name, command in unrecorded().items():
            typer.echo(f"{name}: not drawn, its data comes with `{command}`", err=True)


def info(as_json: AsJson = False) -> None:
    """What is here: versions, cache, backbones with licence and digest, shipped adapters."""
    from importlib.metadata import PackageNotFoundError, version

    from lad import __version__
    from lad.models.download import cache_folder
    from lad.models.registry import BACKBONES, describe
    from lad.utils import sha256_file

    versions = {}
    for package in ("torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    adapters = {}
    for card in sorted((Path(__file__).parents[1] / "assets" / "adapters").glob("*/denoiser.json")):
        values = json.loads(card.read_text(encoding="utf-8"))
        weights = card.parent / "adapter_model.safetensors"
        found = sha256_file(weights) if weights.is_file() else None
        adapters[card.parent.name] = {
            "folder": str(card.parent),
            "sha256": values["adapter_sha256"],
            "intact": found == values["adapter_sha256"],
            "attention": values["attention"],
            "target": values["target"],
            "rank": values["rank"],
            "licence": "Apache-2.0",
        }
    everything = {
        "lad": __version__,
        "python": sys.version.split()[0],
        "versions": versions,
        "cache": str(cache_folder()),
        "backbones": {name: describe(name) for name in BACKBONES},
        "adapters": adapters,
    }
    if as_json:
        print_json(everything)
        return
    typer.echo(
        f"lad {__version__}, Python {everything['python']}, "
        + ", ".join(f"{package} {number or 'missing'}" for package, number in versions.items())
    )
    typer.echo(f"cache: {everything['cache']}")
    for name, values in everything["backbones"].items():
        state = f"cached, {values['bytes'] / 1e6:,.0f} MB" if values["cached"] else "not fetched"
        if values["folder"] is None and values["cached"]:
            state = "made in memory"
        digest = f", digest {values['digest'][:12]}" if values["digest"] else ""
        typer.echo(f"backbone {name}: {values['licence']}, {values['source']}{digest} ({state})")
    for name, values in adapters.items():
        state = "intact" if values["intact"] else "DAMAGED: restore its files"
        typer.echo(
            f"adapter {name}: {values['attention']}, target {values['target']}, rank "
            f"{values['rank']}, {values['licence']}, sha256 {values['sha256'][:12]} ({state})"
        )
