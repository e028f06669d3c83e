"""What the commands share."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lad.utils import CacheError, InvalidInput, checked, damaged_file, write_json

if TYPE_CHECKING:
    from lad.diffusion.config import RefineConfig

BACKBONE = "A name (see lad info), OWNER/NAME on the hub or a folder; :4bit or :8bit quantises it."
IN_MODEL = {"rich_help_panel": "Model"}
Model = Annotated[str, typer.Option(help=BACKBONE, **IN_MODEL)]
AN_ADAPTER = "A folder, or a shipped one's name (see lad info); by default the backbone's"
Adapter = Annotated[Path | None, typer.Option(help=f"{AN_ADAPTER}.", **IN_MODEL)]
DEVICES = "cpu, cuda, cuda:1, ...; auto takes a GPU if any."
Device = Annotated[str, typer.Option(help=DEVICES, **IN_MODEL)]
BatchSize = Annotated[int | None, typer.Option(help="Answers at once.", min=1)]
ONE_OBJECT = "One JSON object on stdout, nothing else."
AsJson = Annotated[bool, typer.Option("--json", help=ONE_OBJECT, rich_help_panel="Output")]


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device


def print_result(values: dict, as_json: bool, text: str) -> None:
    """One JSON object or a text on stdout; where that refuses it, on stderr, so it is not lost."""
    text = json.dumps(values, indent=2) if as_json else text
    try:
        typer.echo(text)
    except BrokenPipeError:  # the reader has enough
        raise
    except OSError:
        typer.echo(text, err=True)
        raise


@contextmanager
def stopped(kept: str):
    """While this is in force, Ctrl-C and SIGTERM are answered with what is kept, how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        typer.echo(f"lad: stopped; {kept}", err=True)
        raise SystemExit(getattr(stop, "code", 130)) from None


@contextmanager
def notebooks_extra():
    """Imports in here need it: a package that is missing becomes InvalidInput."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"no {error.name} in {sys.executable}: expected the notebooks extra; "
            "install it with `pip install lad[notebooks]`, or use `make`"
        ) from error


def command_line() -> str:
    """The command that is running, for the record of what it measured.

    Of an absolute path to write to, the folder is left out: it is of this machine.
    """
    words = list(sys.argv[1:])
    for n, word in enumerate(words):
        option, equals, path = word.partition("=") if word.startswith("--") else ("", "", word)
        if (option or words[n - 1]) in ("--out", "--record") and Path(path).is_absolute():
            words[n] = option + equals + Path(path).name
    return shlex.join(["lad", *words])


def save_json(path: Path, values: dict) -> None:
    """Write plain values to a file; print them if the disk refuses, so that they are not lost."""
    try:
        write_json(path, values)
    except CacheError:
        print_result(values, True, "")
        raise


# -- what is measured, and on what -----------------------------------------------------------------

PROMPTS = Path(__file__).parents[1] / "assets" / "held-out.txt"
PAIRS = PROMPTS.with_name("held-out-pairs.jsonl.gz")


def parse_numbers(name: str, text: str) -> list[int]:
    """Whole numbers from 1 up, separated by commas."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(numbers):
        raise InvalidInput(f"{name} = {text!r}: expected whole numbers from 1 up, such as 64,128")
    return numbers


def read_settings(text: str) -> dict[str, RefineConfig]:
    """Names of presets and of JSON files, separated by commas, as settings by name.

    A file's settings are named as the file is, without folder and ending; no two may have one name.
    """
    from lad.diffusion.config import RefineConfig, preset

    chosen: dict[str, RefineConfig] = {}
    for given in map(str.strip, text.split(",")):
        name, config = given, None
        if given.endswith(".json"):
            expected = 'expected a JSON file such as {"iterations": 16, "remasking": "none"}'
            with damaged_file(given, expected):
                values = checked(Path(given).read_text(encoding="utf-8-sig"), dict)
                name, config = Path(given).stem, RefineConfig.from_dict(values)
        if name in chosen or name == "backbone":
            expected = "expected names of their own; leave one out, or rename a file"
            raise InvalidInput(f"{given!r}: there are settings {name!r} already: {expected}")
        chosen[name] = config or preset(name)
    return chosen


def read_setting(text: str) -> tuple[str, RefineConfig]:
    """The name and settings of one preset or JSON file."""
    [setting, *more] = read_settings(text).items()
    if more:
        raise InvalidInput(f"{1 + len(more)} settings in {text!r}: expected one preset or file")
    return setting


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines are skipped."""
    with damaged_file(path, "expected one prompt a line"):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidInput(f"{path} holds 0 prompts: expected at least one line")
    return prompts


def evenly_spaced(items: list, n: int | None) -> list:
    """At most n of the items, evenly spaced; all if n is None."""
    n = min(n or len(items), len(items))
    return [items[i * len(items) // n] for i in range(n)]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> str:
    """A table as wide as the terminal; in a file or a pipe, as wide as it needs."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = [Column(Text(heading)) for heading in headings]
    made = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        made.add_row(*row)
    with console.capture() as capture:
        console.print(made)
    return capture.get().removesuffix("\n")


def origin_line(provenance: dict) -> str:
    """Model, adapter, device and dtype that made a result, in one line."""
    digest = (provenance["adapter_sha256"] or "unsaved")[:12]
    device = f"{provenance['device']} ({provenance['processor']})"
    return f"{provenance['model']}, adapter {digest}, {device}, {provenance['dtype']}"
