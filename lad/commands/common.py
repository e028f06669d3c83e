"""What the commands share: their common options, and how they speak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="Backbone: smollm2-135m, llama-3.1-8b or tiny.")]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder of an adapter; the shipped one by default.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def print_json(values: dict) -> None:
    """One object on stdout, in ASCII: what a terminal could not show is escaped."""
    typer.echo(json.dumps(values, ensure_ascii=True, indent=2))
