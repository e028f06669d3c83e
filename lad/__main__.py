"""The command line. Status 0 is success; 2 is bad input or something missing, in one line."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

from lad.utils import LADError

# Command -> the module of `lad.cli` that holds it; only the module of the command is imported.
COMMANDS = dict.fromkeys(("refine", "repair", "infill"), "generate")
COMMANDS |= {n: n for n in ("distil", "train", "ablate", "evaluate", "bench", "benchmark", "study")}
COMMANDS |= dict.fromkeys(("demo", "fetch", "figures", "info", "import-checkpoint"), "assets")

# typer carries a click of its own, so its errors are reached through the one it exports.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def make_app(*names: str) -> typer.Typer:
    """The application with these commands; with all of them when none is named."""
    words = "LAD: a causal LLaMA that refines a whole answer at once, draft after draft."
    app = typer.Typer(add_completion=False, help=words)
    app.callback()(lambda: None)  # one command alone would otherwise take the place of the group
    for name in names or COMMANDS:
        module = import_module(f"lad.cli.{COMMANDS[name]}")
        command = getattr(module, "app", None) or getattr(module, name.replace("-", "_"))
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command; an error of this package or of the user becomes one line and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app = make_app(*(name for name in arguments[:1] if name in COMMANDS))
        status = app(arguments or ["--help"], prog_name="lad", standalone_mode=False)
    except LADError as error:
        fail(str(error))
    except ClickException as error:
        fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        print("lad: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    raise SystemExit(status if isinstance(status, int) else 0)


def fail(message: str) -> None:
    """Print one line on stderr, whatever the message holds, and exit with status 2."""
    print(f"lad: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
