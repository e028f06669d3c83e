"""`lad refine`: one answer by refinement."""

from __future__ import annotations

from typing import Annotated

import typer

from lad.cli.common import Adapter, AsJson, Device, KeepTrace, Model, answer, choose_device


def refine(
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    preset: Annotated[
        str, typer.Option(help="Start from default, guided, demo, quality or noiseless.")
    ] = "default",
    iterations: Annotated[int | None, typer.Option(help="Most refinement steps.")] = None,
    noiseless: Annotated[bool, typer.Option("--noiseless", help="Never mask again.")] = False,
    remasking: Annotated[
        str | None, typer.Option(help="none, random, guided or threshold.")
    ] = None,
    noise_start: Annotated[float | None, typer.Option(help="Share masked at first.")] = None,
    sharpness: Annotated[float | None, typer.Option(help="How fast that share falls.")] = None,
    noise_clipping: Annotated[float | None, typer.Option(help="Least doubt of a token.")] = None,
    clustering: Annotated[float | None, typer.Option(help="1 masks one run of tokens.")] = None,
    confidence_threshold: Annotated[
        float | None, typer.Option(help="Confidence that is enough.")
    ] = None,
    isolated_threshold: Annotated[
        float | None, typer.Option(help="With threshold, the same beside an unknown left token.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Positions at work, with threshold.")] = None,
    permanent: Annotated[
        bool | None, typer.Option(help="A position once shown is never masked again.")
    ] = None,
    added_tokens: Annotated[int | None, typer.Option(help="Growth an iteration.")] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            help="Of equal neighbours: allow, remask one, or replace it (with --noiseless)."
        ),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw within this probability.")] = None,
    eos_bias: Annotated[float | None, typer.Option(help="Negative: longer answers.")] = None,
    answer_length: Annotated[int | None, typer.Option(help="Positions to refine.")] = None,
    length: Annotated[
        int | None, typer.Option(help="Most tokens of the answer; its end is given from the start.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Most tokens, prompt and answer.")] = None,
    patience: Annotated[int | None, typer.Option(help="Equal drafts to stop at; 0: never.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of this run.")] = None,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    trace: KeepTrace = None,
    as_json: AsJson = False,
) -> None:
    """Answer PROMPT by refinement; in a terminal, watch the draft change."""
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import RefineConfig
    from lad.diffusion.config import preset as settings_of
    from lad.diffusion.drafts import limited
    from lad.models.chat import check_prompt

    if noiseless and repeats is None:
        repeats = "replace"  # nothing is masked again, so a stutter would stay
    given = {
        "iterations": iterations,
        "remasking": "none" if noiseless else remasking,
        "noise_start": noise_start,
        "sharpness": sharpness,
        "noise_clipping": noise_clipping,
        "clustering": clustering,
        "confidence_threshold": confidence_threshold,
        "isolated_threshold": isolated_threshold,
        "window": window,
        "permanent": permanent,
        "added_tokens": added_tokens,
        "repeats": repeats,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "eos_bias": eos_bias,
        "answer_length": answer_length,
        "context": context,
        "patience": patience,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    config = RefineConfig.from_dict(settings_of(preset).to_dict() | given)
    check_prompt(prompt)
    denoiser = load_denoiser(model, adapter, choose_device(device))
    draft = None if length is None else limited(denoiser, length, config.answer_length)
    answer(denoiser, prompt, config, draft, trace=trace, as_json=as_json, told={"preset": preset})
