"""The command line: `lad refine`, `lad distil`, `lad train`, `lad figures`,
`lad fetch`, `lad info`.

Exit status 0 is success; 2 is bad input or something missing, told in one line on stderr. With
`--json` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lad.errors import LADError

# typer carries a click of its own, so its errors are reached through the one it exports.
ClickException = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="LAD: a LLaMA that refines a whole answer at once, draft after draft.",
)

Model = Annotated[str, typer.Option(help="Backbone: smollm2-135m, llama-3.1-8b or tiny.")]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder of an adapter; the shipped one by default.")
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]


@app.command()
def refine(
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    iterations: Annotated[int | None, typer.Option(help="Most refinement steps.")] = None,
    noiseless: Annotated[bool, typer.Option("--noiseless", help="Never mask again.")] = False,
    renoising: Annotated[str | None, typer.Option(help="none, uniform or confidence.")] = None,
    noise_start: Annotated[float | None, typer.Option(help="Share masked at first.")] = None,
    sharpness: Annotated[float | None, typer.Option(help="How fast that share falls.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw within this probability.")] = None,
    eos_bias: Annotated[float | None, typer.Option(help="Negative: longer answers.")] = None,
    answer_length: Annotated[int | None, typer.Option(help="Positions to refine.")] = None,
    context: Annotated[int | None, typer.Option(help="Most tokens, prompt and answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of this run.")] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    trace: Annotated[Path | None, typer.Option(help="Keep the whole run in this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer PROMPT by refinement; in a terminal, watch the draft change."""
    from lad.denoiser import load_denoiser
    from lad.prompts import check_prompt
    from lad.sampler import RefineConfig, record

    given = {
        "iterations": iterations,
        "renoising": "none" if noiseless else renoising,
        "noise_start": noise_start,
        "sharpness": sharpness,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "eos_bias": eos_bias,
        "answer_length": answer_length,
        "context": context,
        "seed": seed,
    }
    config = RefineConfig(**{name: value for name, value in given.items() if value is not None})
    check_prompt(prompt)
    denoiser = load_denoiser(model, adapter, choose_device(device))
    if as_json or not sys.stdout.isatty():
        run = record(denoiser, prompt, config)
    else:
        from lad.terminal import watch

        run = watch(denoiser, prompt, config)
    if trace is not None:
        run.save(trace)
    if as_json:
        print_json(
            {
                "answer": run.answer,
                "tokens": run.tokens,
                "iterations": len(run.steps),
                "stopped_early": run.stopped_early,
                "nfe": run.nfe,
                "seconds": round(run.seconds, 3),
                "model": model,
                "adapter_sha256": denoiser.adapter_sha256,
                "seed": config.seed,
            }
        )
    elif not sys.stdout.isatty():
        typer.echo(run.answer)


@app.command()
def train(
    pairs: Annotated[Path, typer.Option(help="JSON Lines of prompt and answer.")],
    out: Annotated[Path, typer.Option(help="Folder for log, checkpoint and adapter.")],
    model: Model = "smollm2-135m",
    adapter: Annotated[Path | None, typer.Option(help="Start from this adapter.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with the run's settings.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Wall time instead of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of order, noise and initial weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    device: Device = "auto",
) -> None:
    """Train an adapter; under `torchrun`, on every GPU it is given."""
    import torch
    import torch.distributed as dist

    from lad.backbones import load_backbone
    from lad.denoiser import Denoiser, DenoiserConfig, load_denoiser
    from lad.training import TrainConfig, read_config, read_pairs
    from lad.training import train as run_training
    from lad.training.config import check_names

    values = read_config(config) if config is not None else {}
    check_names("denoiser", values.get("denoiser", {}), DenoiserConfig)
    settings = dict(values.get("training", {}))
    if minutes is not None:
        settings |= {"minutes": minutes, "steps": steps}
    elif steps is not None:
        settings |= {"steps": steps, "minutes": None}
    if seed is not None:
        settings["seed"] = seed
    training = TrainConfig.from_dict(settings)
    data = read_pairs(pairs)

    where = choose_device(device)
    rank = int(os.environ.get("RANK", 0))
    if "RANK" in os.environ:
        gpu = where.startswith("cuda")
        where = f"cuda:{os.environ['LOCAL_RANK']}" if gpu else where
        if gpu:
            torch.cuda.set_device(where)
        dist.init_process_group("nccl" if gpu else "gloo")
    if adapter is not None:
        denoiser = load_denoiser(model, adapter, where, merge=False)
    else:
        denoiser = Denoiser.create(
            load_backbone(model, where), DenoiserConfig(**values.get("denoiser", {})), training.seed
        )

    def tell(row: dict) -> None:
        if "validation" in row:
            scores = [
                f"{100 * float(f):.0f} % masked: CE {s['ce']:.3f}, accuracy {s['accuracy']:.3f}"
                for f, s in row["validation"].items()
            ]
            line = "held out, " + "; ".join(scores)
        else:
            rate = row["tokens"] / max(row["seconds"], 1e-9)
            line = f"loss {row['loss']:.4f}, accuracy {row['accuracy']:.3f}, {rate:,.0f} tokens/s"
        typer.echo(f"step {row['step']:>6}  {row['seconds']:>7.1f} s  {line}", err=True)

    try:
        run_training(
            denoiser, data, training, out, resume=resume, on_row=tell if rank == 0 else None
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        where = "adapter" if (out / "adapter" / "denoiser.json").exists() else "checkpoint.pt"
        typer.echo(f"wrote {out / where}", err=True)


@app.command()
def distil(
    out: Annotated[Path, typer.Option(help="File of pairs to write, .jsonl or .jsonl.gz.")],
    batches: Annotated[int, typer.Option(help="How many batches of prompts to try.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a batch.")] = 2048,
    minutes: Annotated[float | None, typer.Option(help="Stop making batches after this.")] = None,
    context: Annotated[int, typer.Option(help="Most tokens of a pair.")] = 256,
    exclude: Annotated[
        Path | None, typer.Option(help="Passages, one a line, that no pair may share text with.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of prompts and answers.")] = 0,
    model: Model = "smollm2-135m",
    device: Device = "auto",
) -> None:
    """Let the backbone write training pairs; under `torchrun`, on every GPU it is given.

    Batches are kept beside the file and not made twice: a killed run goes on where it stopped.
    """
    import torch.distributed as dist

    from lad.backbones import load_backbone
    from lad.errors import InvalidInput
    from lad.training.distil import DistilConfig, collect
    from lad.training.distil import distil as run_distillation

    config = DistilConfig(batch_size=batch_size, context=context, seed=seed)
    if batches < 1:
        raise InvalidInput(f"batches = {batches}: expected at least 1")
    if exclude is not None and not exclude.is_file():
        raise InvalidInput(f"no passages at {exclude}: expected a text file, one passage a line")
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    where = choose_device(device)
    if where.startswith("cuda") and "LOCAL_RANK" in os.environ:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    started = time.monotonic()

    def tell(number: int, counts: dict) -> None:
        took = f"{time.monotonic() - started:>7.1f} s"
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if n)
        typer.echo(f"batch {number + 1:>5} of {batches}  {took}  {reasons}", err=True)

    folder = out.with_name(out.name.split(".")[0] + "-batches")
    run_distillation(
        load_backbone(model, where),
        folder,
        batches,
        config,
        rank,
        processes,
        on_batch=tell,
        more=lambda: minutes is None or time.monotonic() - started < 60 * minutes,
    )
    if processes > 1:
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=1))
        dist.barrier()  # the first process joins the batches when the last has made its own
        dist.destroy_process_group()
        if rank != 0:
            return
    passages = exclude.read_text(encoding="utf-8").splitlines() if exclude is not None else ()
    card = collect(folder, out, config, passages)
    typer.echo(f"wrote {out}: {card['pairs']:,} pairs out of {card['counts']['tried']:,} prompts")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Backbone to have at hand.")] = "smollm2-135m",
) -> None:
    """Download and convert a backbone, so that everything else works offline."""
    from lad.backbones import describe, fetch_backbone

    started = time.monotonic()
    folder = fetch_backbone(model)
    size = describe(model)["bytes"]
    took = f"{time.monotonic() - started:.1f} s"
    typer.echo(f"{model}: {folder or 'made in memory'}, {size / 1e6:,.0f} MB, {took}")


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all by default.")] = None,
) -> None:
    """Draw the figures again from the runs recorded in figures/data; no model is needed."""
    from lad.figures.recorded import redraw

    for path in redraw(names or ()):
        typer.echo(str(path))


@app.command()
def info(as_json: AsJson = False) -> None:
    """What is here: versions, cache, backbones with licence and digest, shipped adapters."""
    from importlib.metadata import PackageNotFoundError, version

    from lad import __version__
    from lad.assets import cache_folder, sha256_file
    from lad.backbones import BACKBONES, describe

    versions = {}
    for package in ("torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    adapters = {}
    for card in sorted((Path(__file__).parent / "adapters").glob("*/denoiser.json")):
        values = json.loads(card.read_text(encoding="utf-8"))
        weights = card.parent / "adapter_model.safetensors"
        found = sha256_file(weights) if weights.is_file() else None
        adapters[card.parent.name] = {
            "folder": str(card.parent),
            "sha256": values["adapter_sha256"],
            "intact": found == values["adapter_sha256"],
            "attention": values["attention"],
            "target": values["target"],
            "rank": values["rank"],
            "licence": "Apache-2.0",
        }
    everything = {
        "lad": __version__,
        "python": sys.version.split()[0],
        "versions": versions,
        "cache": str(cache_folder()),
        "backbones": {name: describe(name) for name in BACKBONES},
        "adapters": adapters,
    }
    if as_json:
        print_json(everything)
        return
    typer.echo(
        f"lad {__version__}, Python {everything['python']}, "
        + ", ".join(f"{package} {number or 'missing'}" for package, number in versions.items())
    )
    typer.echo(f"cache: {everything['cache']}")
    for name, values in everything["backbones"].items():
        state = f"cached, {values['bytes'] / 1e6:,.0f} MB" if values["cached"] else "not fetched"
        if values["folder"] is None and values["cached"]:
            state = "made in memory"
        digest = f", digest {values['digest'][:12]}" if values["digest"] else ""
        typer.echo(f"backbone {name}: {values['licence']}, {values['source']}{digest} ({state})")
    for name, values in adapters.items():
        state = "intact" if values["intact"] else "DAMAGED: restore its files"
        typer.echo(
            f"adapter {name}: {values['attention']}, target {values['target']}, rank "
            f"{values['rank']}, {values['licence']}, sha256 {values['sha256'][:12]} ({state})"
        )


def choose_device(device: str) -> str:
    """`auto` becomes a GPU if there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def print_json(values: dict) -> None:
    """One object on stdout, in ASCII: what a terminal could not show is escaped."""
    typer.echo(json.dumps(values, ensure_ascii=True, indent=2))


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
