"""`lad repair` and `lad infill`: refinement that starts from a text instead of from MASK."""

from __future__ import annotations

from typing import Annotated

import typer

from lad.cli.common import Adapter, AsJson, Device, KeepTrace, Model, answer, choose_device

Prompt = Annotated[
    str | None, typer.Option(help="The question that the text answers: say it if there is one.")
]
AnswerLength = Annotated[
    int | None, typer.Option(help="Positions to refine; by default the text's and a few more.")
]


def repair(
    text: Annotated[str, typer.Argument(help="The damaged text.")],
    prompt: Prompt = None,
    iterations: Annotated[int, typer.Option(help="Most refinement steps.")] = 16,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    eos_bias: Annotated[float, typer.Option(help="Negative: longer texts.")] = 0.0,
    answer_length: AnswerLength = None,
    seed: Annotated[int, typer.Option(help="Of this run.")] = 0,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    trace: KeepTrace = None,
    as_json: AsJson = False,
) -> None:
    """Mend TEXT by noiseless refinement: nothing is masked; in a terminal, watch words change.

    Swapped, doubled, displaced or replaced words are what the adapter was trained to undo.
    """
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import RefineConfig
    from lad.diffusion.drafts import REPAIR_PROMPT, visible_text
    from lad.models.chat import check_prompt

    prompt = REPAIR_PROMPT.replace("{text}", text) if prompt is None else prompt
    values = {
        "iterations": iterations,
        "remasking": "none",
        "temperature": temperature,
        "eos_bias": eos_bias,
        "seed": seed,
    }
    RefineConfig.from_dict(values)  # bad values are told before anything is loaded
    check_prompt(prompt)
    denoiser = load_denoiser(model, adapter, choose_device(device))
    draft = visible_text(denoiser, text, answer_length)
    config = RefineConfig.from_dict(values | {"answer_length": len(draft.tokens)})
    told = {"text": text, "prompt": prompt}
    answer(denoiser, prompt, config, draft, trace=trace, as_json=as_json, told=told)


def infill(
    text: Annotated[str, typer.Argument(help="The text; ___ or, for three tokens, [3] is a gap.")],
    gap: Annotated[int, typer.Option(help="Tokens of a gap written ___.")] = 1,
    prompt: Prompt = None,
    iterations: Annotated[int | None, typer.Option(help="Most refinement steps.")] = None,
    preset: Annotated[
        str, typer.Option(help="Start from default, demo, quality or noiseless.")
    ] = "quality",
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    answer_length: AnswerLength = None,
    seed: Annotated[int, typer.Option(help="Of this run.")] = 0,
    model: Model = "smollm2-135m",
    adapter: Adapter = None,
    device: Device = "auto",
    trace: KeepTrace = None,
    as_json: AsJson = False,
) -> None:
    """Fill the gaps of TEXT; the words around them are fixed, those to the right are seen too."""
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.config import RefineConfig
    from lad.diffusion.config import preset as settings_of
    from lad.diffusion.drafts import INFILL_PROMPT, gapped
    from lad.models.chat import check_prompt

    prompt = INFILL_PROMPT if prompt is None else prompt
    given = {"iterations": iterations, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    values = settings_of(preset).to_dict() | given
    RefineConfig.from_dict(values)
    check_prompt(prompt)
    denoiser = load_denoiser(model, adapter, choose_device(device))
    draft = gapped(denoiser, text, gap, answer_length)
    config = RefineConfig.from_dict(values | {"answer_length": len(draft.tokens)})
    told = {"preset": preset, "text": text, "prompt": prompt}
    answer(denoiser, prompt, config, draft, trace=trace, as_json=as_json, told=told)
