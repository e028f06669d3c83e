"""The command line, with an error in one line.

Status 0 is success, 1 a stdout that cannot be written, 2 bad input or something missing, 130 and
143 Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module
from typing import Annotated

import typer

from lad import __version__
from lad.utils import LADError, disk_reason

# Command -> the module of `lad.cli` that holds it; only the module of the command is imported.
COMMANDS = dict.fromkeys(("refine", "repair", "infill"), "generate")
COMMANDS |= dict.fromkeys(("distil", "train", "average"), "train")
COMMANDS |= {"ablate": "study", "evaluate": "evaluate"}
COMMANDS |= {"bench": "bench", "benchmark": "benchmark", "study": "study", "frontier": "study"}
COMMANDS |= {"gallery": "study"}
COMMANDS |= dict.fromkeys(("demo", "fetch", "figures", "info", "import-checkpoint"), "assets")

# typer carries a click of its own, so its errors are reached through the one it exports.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def make_app(*names: str) -> typer.Typer:
    """The application with these commands; with all of them when none is named."""
    words = "LAD: a causal LLaMA that refines a whole answer at once, draft after draft."
    app = typer.Typer(add_completion=False, help=words)
    # One command alone would otherwise take the place of the group.
    app.callback(invoke_without_command=True)(options)
    for name in names or COMMANDS:
        module = import_module(f"lad.cli.{COMMANDS[name]}")
        command = getattr(module, "app", None) or getattr(module, name.replace("-", "_"))
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            words = [" ".join(part.split()) for part in command.__doc__.split("\n\n")]
            examples = getattr(command, "examples", ())
            epilog = "\n\n".join(["Examples:", *examples]) if examples else None
            app.command(name, help="\n\n".join(words), epilog=epilog)(command)
    return app


def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"lad {__version__}")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what goes wrong on purpose becomes one line and a status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A stream that the shell closed is None.
    sys.stdout, sys.stderr = (stream or io.StringIO() for stream in (sys.stdout, sys.stderr))
    if hasattr(sys.stdout, "reconfigure"):  # what the terminal's encoding lacks becomes "?"
        sys.stdout.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    loads = COMMANDS.get(next(iter(arguments), ""), "assets") != "assets"
    try:
        if loads and "--help" not in arguments and sys.stderr.isatty():
            print("lad: loading ...", file=sys.stderr)  # importing torch alone takes seconds
        app = make_app(*(name for name in arguments[:1] if name in COMMANDS))
        status = app(arguments or ["--help"], prog_name="lad", standalone_mode=False)
    except LADError as error:
        fail(str(error))
    except ClickException as error:
        hyphen = "; before a text that begins with a hyphen put --"
        message = error.format_message().strip()
        names = getattr(getattr(error, "param", None), "opts", ())
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
            name, _, value = argument.partition("=")
            if name in names:
                message = f"{message}, got {(value or following)[:80]!r}"
        fail(message + hyphen * message.startswith("No such option"))
    except OSError as error:  # typer ends with status 1 when a pipe is closed
        if (reason := disk_reason(error)) is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again
        fail(f"cannot write to {error.filename or 'stdout'} ({reason}): free space there", 1)
    except KeyboardInterrupt:
        status = 130  # as typer has it
    if status == 130:
        fail("stopped; what was not finished is not kept", status)
    raise SystemExit(status if isinstance(status, int) else 0)


def fail(message: str, status: int = 2) -> None:
    """Print one line on stderr, whatever the message holds, and exit."""
    print(f"lad: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status) from None


if __name__ == "__main__":
    main()
