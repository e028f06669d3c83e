"""`lad refine`: one answer by refinement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lad.commands.common import Adapter, AsJson, Device, Model, choose_device, print_json


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
