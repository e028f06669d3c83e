"""`lad distil`: training pairs, written by the backbone itself."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import Device, Model, check_least, choose_device


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
    import torch.distributed as dist
    from tqdm import tqdm

    from lad.evaluation.tasks import TASKS, fetch_benchmarks
    from lad.models.registry import load_backbone
    from lad.training.contamination import Passages
    from lad.training.distillation import DistilConfig, collect, write_pairs
    from lad.training.distillation import distil as run_distillation
    from lad.training.multiple_choice import benchmark_passages, choices_for
    from lad.utils import InvalidInput

    config = DistilConfig(
        batch_size=batch_size,
        context=context,
        answer_tokens=answer_tokens,
        answer_temperature=answer_temperature,
        answer_top_k=answer_top_k,
        seed=seed,
    )
    check_least(1, batches=batches)
    for file, what in ((exclude, "passage"), (prompts, "prompt")):
        if file is not None and not file.is_file():
            raise InvalidInput(f"no {what}s at {file}: expected a text file, one {what} a line")
    given = None
    if prompts is not None:
        given = [line for line in prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
        batches = min(batches, -(-len(given) // batch_size))
        if not given:
            raise InvalidInput(f"no prompts in {prompts}: expected one a line")
    if choices is not None and not benchmarks:
        raise InvalidInput(f"choices = {choices} without benchmarks: leave out --no-benchmarks")
    share = 0.1 if choices is None else choices
    if not 0 <= share < 1:
        raise InvalidInput(f"choices = {share}: expected a share of 0 to below 1")
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = choose_device(device)
    if where.startswith("cuda") and "LOCAL_RANK" in os.environ:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    if benchmarks and rank == 0:
        fetch_benchmarks()  # before the work: without them it could not be ended
    backbone = load_backbone(model, where)
    started, kept = time.monotonic(), 0
    # A bar in a terminal, else a line for each batch; every process tells of its own.
    mine = len(range(rank, batches, processes))
    with tqdm(total=mine, desc=f"batches ({where})", disable=None, position=rank) as bar:

        def tell(number: int, counts: dict) -> None:
            nonlocal kept
            kept += counts["kept"]
            bar.update()
            bar.set_postfix_str(f"{kept:,} pairs kept")
            if bar.disable:
                took = f"{time.monotonic() - started:>7.1f} s"
                reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if n)
                typer.echo(f"batch {number + 1:>5} of {batches}  {took}  {reasons}", err=True)

        folder = out.with_name(out.name.split(".")[0] + "-batches")
        run_distillation(
            backbone,
            folder,
            batches,
            config,
            rank,
            processes,
            on_batch=tell,
            more=lambda: minutes is None or time.monotonic() - started < 60 * minutes,
            prompts=given,
        )
    if processes > 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
        dist.barrier()  # the first process joins the batches when the last has made its own
        dist.destroy_process_group()
        if rank != 0:
            return
    texts = exclude.read_text(encoding="utf-8").split("\n") if exclude is not None else []
    away = Passages([*texts, *(benchmark_passages() if benchmarks else ())])
    pairs, card = collect(folder, config, away)
    tested = {task.name: task.tested_on for task in TASKS.values()} if benchmarks else {}
    card |= {"backbone": model, "kept apart from": {"passages": len(texts), "benchmarks": tested}}
    added = []
    if benchmarks:
        added, card["choices"] = choices_for(backbone, len(pairs), share, context, seed, away)
    card = write_pairs(out, [*pairs, *added], card)
    typer.echo(
        f"wrote {out}: {card['pairs']:,} pairs, {len(pairs):,} out of "
        f"{card['counts']['tried']:,} prompts and {len(added):,} questions to choose"
    )
