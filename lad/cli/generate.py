"""`lad refine`, `lad repair` and `lad infill`: one answer by refinement.

Every setting of `RefineConfig` is an option: a new field there needs no line here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from lad.cli.common import Adapter, AsJson, Device, Model, choose_device, print_result
from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.config import preset as settings_of
from lad.utils import check_text, check_writable, describe

SETTINGS = describe(RefineConfig)
# What only a run that masks again needs.
REMASKING = [name for name, field in SETTINGS.items() if name == "remasking" or "used_by" in field]

Trace = Annotated[Path | None, typer.Option(help="Save the whole run in this file.")]
Preset = Annotated[str, typer.Option(help=f"Settings to start from: {', '.join(PRESETS)}.")]
GAPS = "The text; ___ or, for three tokens, [3] is a gap, but text if a backslash stands before it."
Prompt = Annotated[str | None, typer.Option(help="The question that the text answers, if any.")]


def generates(*skipped: str) -> Callable:
    """Decorator: a function that says what to refine becomes a command that does it.

    The function returns prompt, settings, a function from the denoiser to the first draft (or
    None), and what the JSON object adds. The command adds to its parameters an option for each
    setting that is not `skipped` (those that were given arrive as `given`), model and output.
    """
    settings = {name: field for name, field in SETTINGS.items() if name not in skipped}

    def decorate(function: Callable[..., tuple]) -> Callable[..., None]:
        def command(
            *,
            model: Model = "smollm2-135m",
            adapter: Adapter = None,
            device: Device = "auto",
            trace: Trace = None,
            as_json: AsJson = False,
            **values: object,
        ) -> None:
            given = {name: values.pop(name) for name in settings}
            given = {name: value for name, value in given.items() if value is not None}
            values = {n: check_text(v) if isinstance(v, str) else v for n, v in values.items()}
            prompt, config, draft, extra = function(**values, given=given)
            _generate(model, adapter, device, trace, as_json, prompt, config, draft, extra)

        first = list(inspect.signature(function, eval_str=True).parameters.values())
        last = list(inspect.signature(command, eval_str=True).parameters.values())
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in first if p.name != "given"]
        parameters += [_setting_option(*item) for item in settings.items()] + last[:-1]
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _setting_option(name: str, field: dict) -> inspect.Parameter:
    # A value outside the range is refused by the settings, which say more than typer does.
    text = field["help"][0].upper() + field["help"][1:]
    if "used_by" in field:
        text += f"; with --remasking {' or '.join(field['used_by'])}"
    kind, values = field["type"], None
    if field["choices"]:
        kind, values = str, "|".join(field["choices"])
    elif field["low"] is not None:
        values = f"{field['low']} to {field['high']}"
    option = typer.Option(help=f"{text}.", metavar=values, rich_help_panel=field["group"])
    only = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, only, default=None, annotation=Annotated[kind | None, option])


def _generate(model, adapter, device, trace, as_json, prompt, config, draft, extra) -> None:
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.drafts import UNCHANGED
    from lad.diffusion.sampler import record
    from lad.models.chat import check_prompt

    check_prompt(prompt)
    if trace is not None:
        check_writable(trace)
    denoiser = load_denoiser(model, adapter, choose_device(device))
    start = {}
    if draft is not None:
        first = draft(denoiser)
        config = replace(config, answer_length=len(first.tokens))
        start = {"draft": first.tokens, "fixed": first.fixed}
    watched = sys.stdout.isatty() and not as_json
    if watched:
        from lad.viz.terminal import watch as record
    run = record(denoiser, prompt, config, **start)
    values = {"answer": run.answer, "tokens": run.tokens, "iterations": len(run.steps)}
    values |= {"stopped_early": run.stopped_early, "nfe": run.nfe}
    values |= {"backbone_passes": run.backbone_passes}
    values |= {"seconds": round(run.seconds, 3), "model": denoiser.backbone.spec.name}
    values |= {"adapter_sha256": denoiser.adapter_sha256, "seed": config.seed}
    try:
        if not watched:
            print_result(values | extra | {"config": config.to_dict()}, as_json, run.answer)
    finally:  # whatever became of stdout
        if trace is not None:
            run.save(trace)
    if (run.drafts[-1] == run.steps[0].inputs).all():
        typer.echo(f"lad: {UNCHANGED}", err=True)


@generates()
def refine(
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    given: dict,
    preset: Preset = "default",
    noiseless: Annotated[
        bool, typer.Option("--noiseless", help="Never mask again; repeated tokens are replaced.")
    ] = False,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the answer at most; EOS is fixed behind them.")
    ] = None,
) -> tuple:
    """Answer PROMPT by refinement; in a terminal, watch the draft change."""
    from lad.diffusion.drafts import limited

    if noiseless:  # nothing is masked again, so a repeated token would stay
        given = {"repeats": "replace"} | given | {"remasking": "none"}
    config = replace(settings_of(preset), **given)

    def draft(denoiser):
        return limited(denoiser, length, config.answer_length)

    return prompt, config, draft if length is not None else None, {"preset": preset}


@generates(*REMASKING)
def repair(
    text: Annotated[str, typer.Argument(help="The corrupted text.")],
    given: dict,
    prompt: Prompt = None,
) -> tuple:
    """Repair TEXT by noiseless refinement: nothing is masked; in a terminal, watch words change.

    Swapped, doubled, displaced or replaced words are what the adapter was trained to undo; typing
    errors and words that are missing or too many are out of its reach. The question that the text
    answers (--prompt) helps most. The answer region is the text and a few more positions, unless
    --answer-length says otherwise.
    """
    from lad.diffusion.drafts import REPAIR_PROMPT, visible_text

    prompt = REPAIR_PROMPT if prompt is None else prompt
    config = RefineConfig(**{"iterations": 16, "remasking": "none"} | given)
    length = given.get("answer_length")
    extra = {"text": text, "prompt": prompt}
    return prompt, config, lambda denoiser: visible_text(denoiser, text, length), extra


@generates()
def infill(
    text: Annotated[str, typer.Argument(help=GAPS)],
    given: dict,
    gap: Annotated[int, typer.Option(help="Tokens of a gap written ___.")] = 1,
    prompt: Prompt = None,
    preset: Preset = "quality",
) -> tuple:
    """Fill the gaps of TEXT; all around them is fixed, line breaks too, and seen on both sides.

    The answer region is the text and a few more positions, unless --answer-length says otherwise.
    """
    from lad.diffusion.drafts import INFILL_PROMPT, gapped

    prompt = INFILL_PROMPT if prompt is None else prompt
    config = replace(settings_of(preset), **given)
    length = given.get("answer_length")
    extra = {"preset": preset, "text": text, "prompt": prompt}
    return prompt, config, lambda denoiser: gapped(denoiser, text, gap, length), extra
