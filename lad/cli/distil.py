"""`lad distil`: training pairs, written by the backbone itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import Device, Model, check_least, choose_device
from lad.utils import InvalidInput


def distil(
    out: Annotated[Path, typer.Option(help="File of pairs to write, .jsonl or .jsonl.gz.")],
    batches: Annotated[int, typer.Option(help="How many batches of prompts to try.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a batch.")] = 2048,
    minutes: Annotated[float | None, typer.Option(help="Stop making batches after this.")] = None,
    context: Annotated[int, typer.Option(help="Most tokens of a pair.")] = 256,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; all that fit by default.")
    ] = None,
    answer_temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, above it answers are drawn.")
    ] = 0.0,
    answer_top_k: Annotated[int, typer.Option(help="Likeliest tokens to draw from; 0: all.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts to answer, one a line, in place of invented ones.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option(help="Passages, one a line, that no pair may share text with.")
    ] = None,
    benchmarks: Annotated[
        bool,
        typer.Option(help="Drop what overlaps with a benchmark's test; add questions to choose."),
    ] = True,
    choices: Annotated[
        float | None,
        typer.Option(help="Share of multiple-choice questions, from train splits.  [default: 0.1]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and answers.")] = 0,
    model: Model = "smollm2-135m",
    device: Device = "auto",
) -> None:
    """Let the backbone write training pairs; under `torchrun`, on every GPU it is given.

    Batches are kept beside the file and not made twice: a killed run goes on where it stopped, and
    one whose batches are all there joins them anew.
    """
    from lad.evaluation import tasks
    from lad.training.distillation import DistilConfig, distil_pairs

    config = DistilConfig(
        batch_size=batch_size,
        context=context,
        answer_tokens=answer_tokens,
        answer_temperature=answer_temperature,
        answer_top_k=answer_top_k,
        seed=seed,
    )
    check_least(1, batches=batches)
    lines = {}
    for name, file in (("passage", exclude), ("prompt", prompts)):
        if file is not None and not file.is_file():
            raise InvalidInput(f"no {name}s at {file}: expected a text file, one {name} a line")
        lines[name] = file.read_text(encoding="utf-8").split("\n") if file is not None else []
    given = [line for line in lines["prompt"] if line.strip()]
    if prompts is not None and not given:
        raise InvalidInput(f"no prompts in {prompts}: expected one a line")
    if choices is not None and not benchmarks:
        raise InvalidInput(f"choices = {choices} without benchmarks: leave out --no-benchmarks")
    share = 0.1 if choices is None else choices
    if not 0 <= share < 1:
        raise InvalidInput(f"choices = {share}: expected a share of 0 to below 1")
    card = distil_pairs(
        *(out, model, choose_device(device), config, batches, minutes),
        prompts=given or None,
        exclude=lines["passage"],
        tasks=tasks if benchmarks else None,
        choices=share,
    )
    if card is not None:
        typer.echo(
            f"wrote {out}: {card['pairs']:,} pairs, {card['self-distilled']:,} out of "
            f"{card['counts']['tried']:,} prompts and "
            f"{card['pairs'] - card['self-distilled']:,} questions to choose"
        )
