"""`lad distil`: training pairs, written by the backbone itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import Device, Model, choose_device, read_prompts, stopped


@stopped("batches made are kept; the same command goes on")
def distil(
    out: Annotated[Path, typer.Option(help="File of pairs to write, .jsonl or .jsonl.gz.")],
    batches: Annotated[int, typer.Option(help="Of prompts to try.", min=1, metavar="N")] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a batch.")] = 16_384,
    context: Annotated[int, typer.Option(help="Most tokens of a pair.")] = 256,
    answer_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    answer_temperature: Annotated[float, typer.Option(help="0: the likeliest token.")] = 0.0,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to answer, one a line.")] = None,
    exclude: Annotated[Path | None, typer.Option(help="Passages to avoid, one a line.")] = None,
    benchmarks: Annotated[bool, typer.Option(help="Avoid what they test; add choices.")] = True,
    shuffles: Annotated[int, typer.Option(help="Orders of a question's options; 0: none.")] = 3,
    repair: Annotated[
        float, typer.Option(help="Share of answers giving a sentence to correct.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of prompts and answers.")] = 0,
    model: Model = "smollm2-135m",
    device: Device = "auto",
) -> None:
    """Let the backbone write training pairs; under `torchrun`, on every GPU it is given.

    Batches are kept beside the file and not made twice: a killed run goes on where it stopped.
    """
    from lad.evaluation import tasks
    from lad.training.distillation import DistilConfig, distil_pairs

    sizes = {"batch_size": batch_size, "context": context, "answer_tokens": answer_tokens}
    sizes |= {"answer_temperature": answer_temperature, "seed": seed}
    sizes |= {"shuffles": shuffles, "repair": repair}
    card = distil_pairs(
        *(out, model, choose_device(device), DistilConfig(**sizes), batches),
        prompts=read_prompts(prompts) if prompts is not None else None,
        exclude=read_prompts(exclude) if exclude is not None else (),
        tasks=tasks if benchmarks else None,
    )
    if card is not None:
        typer.echo(
            f"wrote {out}: {card['pairs']:,} pairs, {card['self-distilled']:,} out of "
            f"{card['counts']['tried']:,} prompts and "
            f"{card['pairs'] - card['self-distilled']:,} sentences to correct and choices"
        )
