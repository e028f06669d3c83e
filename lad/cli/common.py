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

from lad.utils import CacheError, InvalidInput, check_writable, checked, disk_errors, write_json

if TYPE_CHECKING:
    from lad.diffusion.config import RefineConfig

BACKBONE = "A name (see lad info), OWNER/NAME on the hub or a folder; :4bit or :8bit quantises it."
Model = Annotated[str, typer.Option(help=BACKBONE)]
Adapter = Annotated[Path | None, typer.Option(help="An adapter's folder; the shipped one if none.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if any.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device


def check_least(least: int, **numbers: int | None) -> None:
    """Refuse a number below `least`; None is a number that was not given."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InvalidInput(f"{name} = {number}: expected at least {least}")


def print_json(values: dict) -> None:
    """One object on stdout, in ASCII: what a terminal could not show is escaped."""
    text = json.dumps(values, ensure_ascii=True, indent=2)
    with or_on_stderr(text):
        typer.echo(text)


@contextmanager
def or_on_stderr(result: str | dict):
    """While a result is printed: where stdout refuses it, it goes to stderr and is not lost."""
    try:
        yield
    except BrokenPipeError:  # the reader has enough
        raise
    except OSError:
        typer.echo(result if isinstance(result, str) else json.dumps(result), err=True)
        raise


@contextmanager
def stopped(kept: str):
    """While this is in force, Ctrl-C and SIGTERM are answered with what is kept, how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        typer.echo(f"lad: stopped; {kept}", err=True)
        raise SystemExit(getattr(stop, "code", 130)) from None


def command_line() -> str:
    """The command that is running, for the record of what it measured."""
    return shlex.join(["lad", *sys.argv[1:]])


def save_json(path: Path, values: dict) -> None:
    """Write plain values to a file; print them if the disk refuses, so that they are not lost."""
    try:
        check_writable(path)
        with disk_errors(path):
            write_json(path, values)
    except CacheError:
        print_json(values)
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
    """Names of presets and of JSON files, separated by commas, as settings by name."""
    from lad.diffusion.config import RefineConfig, preset

    chosen = {}
    for name in map(str.strip, text.split(",")):
        if not name.endswith(".json"):
            chosen[name] = preset(name)
            continue
        try:
            values = checked(Path(name).read_bytes(), dict)
        except (OSError, ValueError) as error:
            expected = 'expected a JSON file such as {"iterations": 16, "remasking": "none"}'
            raise InvalidInput(f"settings = {name!r}: {error}; {expected}") from error
        chosen[Path(name).stem] = RefineConfig.from_dict(values)
    return chosen


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"no prompts at {path} ({error}): expected one a line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidInput(f"{path} holds 0 prompts: expected at least one line")
    return prompts


def evenly_spaced(items: list, n: int | None) -> list:
    """At most n of the items, evenly spaced; all if n is None."""
    n = min(n or len(items), len(items))
    return [items[i * len(items) // n] for i in range(n)]


def load_with_baseline(model: str, adapter: Path | None, device: str):
    """A denoiser and its `LoadedBackbone`; None where switching the adapter off is exact."""
    import torch

    from lad.diffusion.adapter import load_denoiser
    from lad.models.registry import load_backbone

    where = choose_device(device)
    denoiser = load_denoiser(model, adapter, where)
    exact = denoiser.causal_lm.dtype == torch.float32
    return denoiser, None if exact else load_backbone(model, where)


@contextmanager
def progress():
    """A bar on stderr, where that is a terminal; yields a callback of stage, done, total."""
    from rich.console import Console
    from rich.progress import Progress

    tasks, console = {}, Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bars:

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield on_progress


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """A table on stdout, as wide as the terminal; in a file or a pipe, as wide as it needs."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 140)
    columns = [Column(Text(heading)) for heading in headings]
    table = Table(*columns, title=Text(title) if title else None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def origin_line(provenance: dict) -> str:
    """Model, adapter, device and dtype that made a result, in one line."""
    digest = (provenance["adapter_sha256"] or "unsaved")[:12]
    device = f"{provenance['device']} ({provenance['processor']})"
    return f"{provenance['model']}, adapter {digest}, {device}, {provenance['dtype']}"
