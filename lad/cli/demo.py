"""`lad demo`: the explorers as a page of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from lad.cli.common import Adapter, Device, Model, choose_device


def demo(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if it is taken.")] = 8866,
    idle: Annotated[
        float, typer.Option(help="Seconds until a page that nobody touches is ended.")
    ] = 600,
    visitors: Annotated[
        int | None,
        typer.Option(help="Most at once, each with a model in memory: 8 of a small one, else 1."),
    ] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
) -> None:
    """Serve the explorers with Voila, no code shown; Ctrl-C ends it."""
    from lad.diffusion.adapter import shipped_adapter
    from lad.widgets.demo import serve

    if adapter is None:
        shipped_adapter(model)  # a missing adapter is told here, not on the page
    serve(model, adapter, choose_device(device), host, port, idle, visitors)
