"""`lad fetch`, `figures`, `info`, `demo`, `import-checkpoint`: what is here, and getting more."""

from __future__ import annotations

import json
import platform
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from lad import __version__
from lad.cli import common
from lad.cli.common import Adapter, AsJson, Device, Model, print_result
from lad.utils import damaged_file, profile, sha256_file


@common.stopped("files done are kept; the same command goes on")
def fetch(
    model: Annotated[str, typer.Argument(help="Backbone to have at hand.")] = "smollm2-135m",
) -> None:
    """Download and convert a backbone, so that everything else works offline."""
    from lad.models.registry import describe, fetch_backbone

    started = time.monotonic()
    folder = fetch_backbone(model)
    size, took = describe(model)["bytes"] / 1e6, time.monotonic() - started
    typer.echo(f"{model}: {folder or 'made in memory'}, {size:,.0f} MB, {took:.1f} s")


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
) -> None:
    """Draw the figures again from what is recorded in figures/data; no model is needed."""
    from lad.viz.gallery import redraw, unrecorded

    profile()  # an unknown one is refused, here too
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
    versions = [f"{name} {number}" for name, number in values["versions"].items()]
    lines = [f"lad {values['lad']}, Python {values['python']}, {', '.join(versions)}"]
    lines.append(f"cache: {values['cache']}")
    for name, it in values["backbones"].items():
        state = f"cached, {it['bytes'] / 1e6:,.0f} MB" if it["cached"] else "not fetched"
        if it["folder"] is None and it["cached"]:
            state = "made in memory"
        digest = f", digest {it['digest'][:12]}" if it["digest"] else ""
        lines.append(f"backbone {name}: {it['licence']}, {it['source']}{digest} ({state})")
    for name, it in values["adapters"].items():
        state = "intact" if it["intact"] else "DAMAGED: restore its files"
        made = f"{it['attention']}, target {it['target']}, rank {it['rank']}, {it['licence']}"
        lines.append(f"adapter {name}: {made}, sha256 {it['sha256'][:12]} ({state})")
    print_result(values, as_json, "\n".join(lines))


def _adapters() -> dict[str, dict]:
    """The shipped adapters by name; `intact` is False when the weights' digest is another."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "assets" / "adapters").glob("*/denoiser.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        digest, weights = card["adapter_sha256"], path.parent / "adapter_model.safetensors"
        intact = weights.is_file() and sha256_file(weights) == digest
        values = {key: card[key] for key in ("attention", "target", "rank")}
        values |= {"folder": str(path.parent), "sha256": digest, "intact": intact}
        found[path.parent.name] = values | {"licence": "Apache-2.0"}
    return found


def demo(
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if it is taken.")] = 8866,
    idle: Annotated[float, typer.Option(help="Seconds until an unused page is ended.")] = 600,
    sessions: Annotated[int | None, typer.Option(help="Most at once: 8, or 1 if large.")] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
) -> None:
    """Serve the explorers with Voila, no code shown; Ctrl-C ends it."""
    from lad.diffusion.adapter import find_adapter, shipped_adapter

    with common.notebooks_extra():
        import_module("voila")
        from lad.widgets.demo_server import serve
    # A missing adapter is an error here, not on the page.
    adapter = shipped_adapter(model) if adapter is None else find_adapter(adapter)
    serve(model, adapter, common.choose_device(device), host, port, idle, sessions)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="What torch.save wrote, such as model.pth.")],
    out: Annotated[Path, typer.Option(help="New folder for backbone and adapter.")],
    tokenizer: Annotated[str, typer.Option(help="A backbone or a folder.")] = "llama-3.1-8b",
    module: Annotated[
        list[str] | None,
        typer.Option(help="Where the pickled class is from; admitted as inert stubs. Repeatable."),
    ] = None,
    template: Annotated[Path | None, typer.Option(help="Your own chat template, in Jinja.")] = None,
    eos: Annotated[str | None, typer.Option(help="Token that ends an answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a pickled checkpoint to safetensors: only its tensors are read, none of its code."""
    from lad.models import lad_checkpoint

    layout = lad_checkpoint.LAYOUT
    if template is not None:
        with damaged_file(template, "expected a chat template in Jinja"):
            layout = template.read_text(encoding="utf-8")
    made = lad_checkpoint.import_checkpoint(file, out, tokenizer, module or (), layout, eos)
    adapter = f"LoRA of rank {made['rank']} on {', '.join(made['layers'])}"
    use = f"lad refine --model {made['backbone']} --adapter {made['adapter']}"
    shares = [f"{token} at {share:.0%} of positions" for token, share in made["eos_shares"].items()]
    text = f"{made['parameters']:,} weights and {adapter}: {use}\n"
    text += f"end of answer: {made['eos']} (all masked: {', '.join(shares) or 'not asked'})"
    if made["ignored"]:
        text += f"\n{', '.join(made['ignored'])} ignored: no code is loaded"
    print_result(made, as_json, text)
