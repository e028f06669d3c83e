"""What the commands share: common options, options made from settings, JSON output."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lad.utils import InvalidInput

Model = Annotated[
    str,
    typer.Option(
        help="Backbone: a name (see lad info), OWNER/NAME on the hub, or a folder; "
        "with :4bit or :8bit quantised."
    ),
]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder of an adapter; the shipped one by default.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
KeepTrace = Annotated[Path | None, typer.Option(help="Save the whole run in this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_least(least: int, **numbers: int | None) -> None:
    """Refuse a number below `least`; None is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InvalidInput(f"{name} = {number}: expected at least {least}")


def print_json(values: dict) -> None:
    """One object on stdout, in ASCII: what a terminal could not show is escaped."""
    typer.echo(json.dumps(values, ensure_ascii=True, indent=2))


def setting_options(fields: Mapping[str, dict]) -> list[inspect.Parameter]:
    """An option for each setting, with its range, values, help and group; None when not given.

    A value outside the range is refused by the settings themselves, which say more than typer does.

    Args:
        fields: settings by name, from `lad.utils.describe`.
    """
    options = []
    for name, field in fields.items():
        text = field["help"][0].upper() + field["help"][1:]
        if "used_by" in field:
            text += f"; with --remasking {' or '.join(field['used_by'])}"
        kind, values = field["type"], None
        if field["choices"]:
            kind, values = str, "|".join(field["choices"])
        elif field["low"] is not None:
            values = f"{field['low']} to {field['high']}"
        option = typer.Option(help=f"{text}.", metavar=values, rich_help_panel=field["group"])
        annotation = Annotated[kind | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(name, keyword, default=None, annotation=annotation))
    return options
