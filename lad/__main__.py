"""The command line. Exit status 0 is success; 2 is bad input or something missing, told in one line
on stderr. With `--json` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import os
import sys

import typer

from lad.cli.ablate import ablate
from lad.cli.assets import fetch, figures, info
from lad.cli.bench import bench
from lad.cli.benchmark import app as benchmark
from lad.cli.demo import demo
from lad.cli.distil import distil
from lad.cli.evaluate import evaluate
from lad.cli.generate import refine
from lad.cli.import_checkpoint import import_checkpoint
from lad.cli.repair import infill, repair
from lad.cli.study import study
from lad.cli.train import train
from lad.utils import LADError

# typer carries a click of its own, so its errors are reached through the one it exports.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="LAD: a LLaMA that refines a whole answer at once, draft after draft.",
)
for command in (
    refine,
    repair,
    infill,
    distil,
    train,
    ablate,
    evaluate,
    bench,
    study,
    demo,
    fetch,
    figures,
    info,
):
    app.command()(command)
app.command("import-checkpoint")(import_checkpoint)
app.add_typer(benchmark, name="benchmark")


def main(arguments: list[str] | None = None) -> None:
    """Run a command; every error that is ours or the user's becomes one line and status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
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
    """One line on stderr, whatever the message holds, and exit status 2."""
    print(f"lad: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
