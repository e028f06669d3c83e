"""`lad import-checkpoint`: the authors' pickled model, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import AsJson, print_json


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

    from lad.models.lad_checkpoint import LAYOUT
    from lad.models.lad_checkpoint import import_checkpoint as run_import
    from lad.utils import InvalidInput

    layout = LAYOUT
    if template is not None:
        try:
            layout = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"template {template} cannot be read ({error})") from error
    with tqdm(desc=file.name, unit="B", unit_scale=True, disable=None) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = run_import(file, out, tokenizer, module or (), layout, tell)
    if as_json:
        print_json(made)
        return
    typer.echo(
        f"{made['parameters']:,} weights and LoRA of rank {made['rank']} on "
        f"{', '.join(made['layers'])}: lad refine --model {made['backbone']} "
        f"--adapter {made['adapter']}"
    )
