"""`lad distil`, `train`, `average`: pairs that the backbone writes, an adapter, a mean of some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import AsJson, Device, Model, choose_device, print_result, read_prompts, stopped
from lad.utils import InvalidInput, check_writable


@stopped("batches made are kept; the same command goes on")
def distil(
    out: Annotated[Path, typer.Option(help="File of pairs to write, .jsonl or .jsonl.gz.")],
    batches: Annotated[int, typer.Option(help="Of prompts to try.", min=1, metavar="N")] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a batch.")] = 16_384,
    context: Annotated[int, typer.Option(help="Most tokens of a pair.")] = 256,
    answer_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    answer_temperature: Annotated[float, typer.Option(help="0: the likeliest token.")] = 0.0,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to answer, one a line.")] = None,
    openings: Annotated[Path | None, typer.Option(help="Of invented prompts, one a line.")] = None,
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

    check_writable(out)
    sizes = {"batch_size": batch_size, "context": context, "answer_tokens": answer_tokens}
    sizes |= {"answer_temperature": answer_temperature, "seed": seed}
    sizes |= {"shuffles": shuffles, "repair": repair}
    card = distil_pairs(
        *(out, model, choose_device(device), DistilConfig(**sizes), batches),
        prompts=read_prompts(prompts) if prompts is not None else None,
        exclude=read_prompts(exclude) if exclude is not None else (),
        tasks=tasks if benchmarks else None,
        openings=read_prompts(openings) if openings is not None else None,
    )
    if card is not None:
        typer.echo(
            f"wrote {out}: {card['pairs']:,} pairs, {card['self-distilled']:,} out of "
            f"{card['counts']['tried']:,} prompts and "
            f"{card['pairs'] - card['self-distilled']:,} sentences to correct and choices"
        )


@stopped("a checkpoint that --out has is kept; the same command and --resume go on")
def train(
    pairs: Annotated[Path | None, typer.Option(help="JSON Lines of prompt and answer.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for log, checkpoint, adapter.")] = None,
    model: Model = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="Start from it: folder or name.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the run's settings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, noise and initial weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure memory, hours.")] = False,
    record: Annotated[Path | None, typer.Option(help="JSON file for a dry run's numbers.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train an adapter; under `torchrun`, on every GPU it is given."""
    from accelerate import Accelerator

    from lad.diffusion.config import DenoiserConfig
    from lad.evaluation.throughput import read_runs
    from lad.training import TrainConfig, read_config, read_pairs
    from lad.training import train as run_training
    from lad.training.trainer import load_for_training

    if not dry_run and None in (pairs, out):
        missing = "--pairs" if pairs is None else "--out"
        raise InvalidInput(f"{missing} is missing: expected --pairs and --out, or --dry-run")
    values = read_config(config) if config is not None else {}
    denoiser_config = DenoiserConfig.from_dict(values.get("denoiser", {}))
    given = {"steps": None if dry_run else steps, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    training = replace(TrainConfig.from_dict(values.get("training", {})), **given)
    data = [] if dry_run else read_pairs(pairs)
    if dry_run and record is not None:
        check_writable(record)
        read_runs(record)
    device = choose_device(device)
    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.num_processes > 1 and device != "cpu":
        device = str(accelerator.device)

    def show(row: dict) -> None:
        if "data" in row:
            data = row["data"]
            line = f"{data['pairs']:,} pairs, {data['held_out'] or 'none'} held out to validate, "
            line += f"{data['dropped']:,} dropped (too long, without an answer, or with MASK in it)"
        elif "stopped" in row:
            line = f"stopped by {row['stopped']}, {out / 'checkpoint.pt'} is written: "
            line += "go on with the same command and --resume"
        elif "validation" in row:
            line = "held out, " + "; ".join(
                f"{100 * float(f):.0f} % masked: CE {s['ce']:.3f}, accuracy {s['accuracy']:.3f}"
                if s["n"]
                else f"{100 * float(f):.0f} % masked: 0 tokens, no score"
                for f, s in row["validation"].items()
            )
        else:
            rate = row["tokens"] / max(row["seconds"], 1e-9)
            line = f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}, {rate:,.0f} tokens/s"
        typer.echo(f"step {row['step']:>6}  {row['seconds']:>7.1f} s  {line}", err=True)

    try:
        denoiser = load_for_training(model, adapter, denoiser_config, training, device)
        if dry_run:
            measure(denoiser, training, steps or 20, record, as_json, accelerator.is_main_process)
            return
        on_row = show if accelerator.is_main_process else None
        run_training(denoiser, data, training, out, resume=resume, on_row=on_row)
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        typer.echo(f"wrote {out / 'adapter'}", err=True)


def average(
    adapters: Annotated[list[str], typer.Argument(help="Two or more: folders or names.")],
    out: Annotated[Path, typer.Option(help="Folder for the mean.")],
    model: Model = "smollm2-135m",
) -> None:
    """Write the mean of adapters that were trained from the same one."""
    from lad.diffusion.adapter import average_adapters

    if len(adapters) < 2:
        raise InvalidInput(f"one adapter is given, {adapters[0]}: expected two or more")
    typer.echo(f"wrote {average_adapters(adapters, out, model)}")


def measure(denoiser, training, steps: int, record: Path | None, as_json: bool, is_main: bool):
    from lad.evaluation.throughput import add_run, training_throughput

    def show(done: int, total: int) -> None:
        if is_main:
            typer.echo(f"step {done} of {total}", err=True)

    run = training_throughput(denoiser, training, steps, show)
    if not is_main:
        return
    name, processor = run["provenance"]["model"], run["provenance"]["processor"]
    start = f"torchrun --nproc-per-node={run['processes']} -m lad train --dry-run"
    run = {"command": f"{start} --model {name} --steps {steps} --record", **run}
    sharded = ", sharded" if training.shard else ""
    text = (
        f"{name}, {run['bits']} bit, on {run['processes']} x {processor}{sharded}: "
        f"{run['tokens_per_second']:,.0f} tokens/s over {run['steps']} steps of "
        f"{run['positions_per_step']:,} positions, {run['peak_memory'] / 2**30:.1f} GiB at most, "
        f"{100 * run['of_matrix_rate']:.0f} % of the matrix rate measured here; "
        f"{run['aim_tokens'] / 1e6:.0f} million tokens take {run['hours']:.1f} h"
    )
    try:
        print_result(run, as_json, text)
    finally:  # whatever became of stdout
        if record is not None:
            add_run(record, run)
