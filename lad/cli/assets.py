"""`lad fetch`, `figures`, `info`, `demo`, `import-checkpoint`: what is here, and getting more."""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from lad import __version__
from lad.cli.common import Adapter, AsJson, Device, Model, choose_device, print_json
from lad.utils import InvalidInput, sha256_file


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
    from lad.models.download import cache_folder
    from lad.models.registry import BACKBONES, describe

    packages = ("torch", "transformers", "peft", "safetensors", "numpy")
    values = {
        "lad": __version__,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
        "cache": str(cache_folder()),
        "backbones": {name: describe(name) for name in BACKBONES},
        "adapters": _adapters(),
    }
    if as_json:
        print_json(values)
        return
    versions = [f"{name} {number}" for name, number in values["versions"].items()]
    typer.echo(f"lad {values['lad']}, Python {values['python']}, {', '.join(versions)}")
    typer.echo(f"cache: {values['cache']}")
    for name, row in values["backbones"].items():
        state = f"cached, {row['bytes'] / 1e6:,.0f} MB" if row["cached"] else "not fetched"
        if row["folder"] is None and row["cached"]:
            state = "made in memory"
        digest = f", digest {row['digest'][:12]}" if row["digest"] else ""
        typer.echo(f"backbone {name}: {row['licence']}, {row['source']}{digest} ({state})")
    for name, row in values["adapters"].items():
        state = "intact" if row["intact"] else "DAMAGED: restore its files"
        typer.echo(
            f"adapter {name}: {row['attention']}, target {row['target']}, rank {row['rank']}, "
            f"{row['licence']}, sha256 {row['sha256'][:12]} ({state})"
        )


def _adapters() -> dict[str, dict]:
    """The shipped adapters by name; `intact` is False when the weights' digest is another."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "assets" / "adapters").glob("*/denoiser.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        weights = path.parent / "adapter_model.safetensors"
        intact = weights.is_file() and sha256_file(weights) == card["adapter_sha256"]
        found[path.parent.name] = {
            "folder": str(path.parent),
            "sha256": card["adapter_sha256"],
            "intact": intact,
            "attention": card["attention"],
            "target": card["target"],
            "rank": card["rank"],
            "licence": "Apache-2.0",
        }
    return found


def demo(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if it is taken.")] = 8866,
    idle: Annotated[float, typer.Option(help="Seconds until an unused page is ended.")] = 600,
    sessions: Annotated[
        int | None,
        typer.Option(help="Most at once, each with a model in memory: 8 of a small one, else 1."),
    ] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
) -> None:
    """Serve the explorers with Voila, no code shown; Ctrl-C ends it."""
    from lad.diffusion.adapter import shipped_adapter

    try:
        import_module("voila")
        from lad.widgets.demo import serve
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"no {error.name} in {sys.executable}: expected the notebooks extra; "
            "install it with `pip install lad[notebooks]`, or use `make demo`"
        ) from error
    if adapter is None:
        shipped_adapter(model)  # a missing adapter is an error here, not on the page
    serve(model, adapter, choose_device(device), host, port, idle, sessions)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="What torch.save wrote, such as model.pth.")],
    out: Annotated[Path, typer.Option(help="New folder for backbone and adapter.")],
    tokenizer: Annotated[
        str, typer.Option(help="Whose tokenizer: a backbone's name, or a folder.")
    ] = "llama-3.1-8b",
    module: Annotated[
        list[str] | None,
        typer.Option(help="Where the pickled class is from; admitted as inert stubs. Repeatable."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Chat template, in Jinja; the authors' by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a pickled checkpoint to safetensors: only its tensors are read, none of its code."""
    from tqdm import tqdm

    from lad.models import lad_checkpoint

    layout = lad_checkpoint.LAYOUT
    if template is not None:
        try:
            layout = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"template {template} cannot be read ({error})") from error
    with tqdm(desc=file.name, unit="B", unit_scale=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = lad_checkpoint.import_checkpoint(
            file, out, tokenizer, module or (), layout, progress
        )
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{made['parameters']:,} weights and LoRA of rank {made['rank']} on "
        f"{', '.join(made['layers'])}: lad refine --model {made['backbone']} "
        f"--adapter {made['adapter']}"
    )
