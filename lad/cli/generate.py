"""`lad refine`, `lad repair` and `lad infill`: one answer by refinement.

Every setting of `RefineConfig` is an option: a new field there needs no line here.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer

from lad.cli.common import Adapter, AsJson, Device, Model, choose_device, print_result
from lad.diffusion.config import PRESETS, PURPOSES, SETTINGS, RefineConfig, from_texts, to_text
from lad.diffusion.config import REPAIR as REPAIR_SETTINGS
from lad.diffusion.config import preset as settings_of
from lad.utils import check_text, check_writable

# What only a run that masks again needs.
REMASKING = [name for name, field in SETTINGS.items() if name == "remasking" or "used_by" in field]

GROUPS = ("Basics", "Noise", "Sampling", "Length", "Model", "Output")


def option(help: str, *names: str, group: str = "Basics", **extra):
    return typer.Option(*names, help=help, rich_help_panel=group, **extra)


def show_help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


SAVED = "Save the whole run: a .html file plays it, .svg is an animation, any other a trace."
Trace = Annotated[Path | None, option(SAVED, group="Output")]
# Declared here so that it stands in a group, too.
_ends = {"is_eager": True, "expose_value": False, "callback": show_help}
Help = Annotated[bool, option("Show this message and exit.", "--help", group="Output", **_ends)]
_presets = "; ".join(PURPOSES)
Preset = Annotated[str, option(f"Settings to start from. {_presets}.", metavar="NAME")]
GAPS = "The text; ___ or, for three tokens, [3] is a gap, but text if a backslash stands before it."
Prompt = Annotated[str | None, option("The question that the text answers, if any.")]


def generates(start: RefineConfig, *examples: str, skipped: Sequence[str] = ()) -> Callable:
    """Decorator: a function that says what to refine becomes a command that does it.

    The function returns prompt, settings, a function from the denoiser to the first draft (or
    None), and what the JSON object adds. The command adds to its parameters an option for each
    setting that is not `skipped` (those that were given arrive as `given`), model and output. Its
    help has the `examples`, and as defaults the settings it starts from.
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
            help: Help = False,
            **values: object,
        ) -> None:
            given = {name: values.pop(name) for name in settings}
            given = from_texts({name: text for name, text in given.items() if text is not None})
            values = {n: check_text(v) if isinstance(v, str) else v for n, v in values.items()}
            prompt, config, draft, extra = function(**values, given=given)
            _generate(model, adapter, device, trace, as_json, prompt, config, draft, extra)

        first = list(inspect.signature(function, eval_str=True).parameters.values())
        last = list(inspect.signature(command, eval_str=True).parameters.values())
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in first if p.name != "given"]
        parameters += [_setting_option(*item, start) for item in settings.items()] + last[:-1]
        parameters.sort(key=_place)
        command.__doc__, command.examples = function.__doc__, examples
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _place(parameter: inspect.Parameter) -> int:
    """Arguments first, then the groups of options in their order."""
    group = parameter.annotation.__metadata__[0].rich_help_panel
    return GROUPS.index(group) if group else -1


def _setting_option(name: str, field: dict, start: RefineConfig) -> inspect.Parameter:
    # The settings refuse a value outside the range, and say more than typer does.
    text = f"{field['help'][0].upper()}{field['help'][1:]}. "
    if "used_by" in field:
        text += f"For {' or '.join(field['used_by'])}. "
    text += f"Default {to_text(getattr(start, name))}."
    kinds = {field["type"], *get_args(field["type"])}
    values = "NAME" if field["choices"] else "yes|no" if bool in kinds else None
    values = values or f"{field['low']} to {_short(field['high'])}"
    setting = Annotated[str | None, option(text, group=field["group"], metavar=values)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=setting)


def _short(number: float) -> str:
    return "2^63 - 1" if number == 2**63 - 1 else str(number)


def _generate(model, adapter, device, trace, as_json, prompt, config, draft, extra) -> None:
    from lad.diffusion.adapter import load_denoiser
    from lad.diffusion.drafts import UNCHANGED
    from lad.diffusion.sampler import record
    from lad.models.chat import check_prompt
    from lad.viz.export import save_run

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
            save_run(run, trace)
    if (run.drafts[-1] == run.steps[0].inputs).all():
        typer.echo(f"lad: {UNCHANGED}", err=True)


@generates(
    PRESETS["default"],
    'lad refine "What is the capital of France?" --noiseless --iterations 8',
    'lad refine "Name three fruits." --preset quality --temperature 0.7 --seed 1',
)
def refine(
    prompt: Annotated[str, typer.Argument(help="What to answer.")],
    given: dict,
    preset: Preset = "default",
    noiseless: Annotated[
        bool, option("Never mask again; repeated tokens are replaced.", "--noiseless")
    ] = False,
    length: Annotated[
        int | None, option("Tokens of the answer at most; EOS is fixed behind.", group="Length")
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


@generates(
    REPAIR_SETTINGS,
    'lad repair "Paris the is capital of of France."',
    'lad repair "The capital Paris is." --prompt "What is the capital of France?"',
    skipped=REMASKING,
)
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
    config = replace(REPAIR_SETTINGS, **given)
    length = given.get("answer_length")
    extra = {"text": text, "prompt": prompt}
    return prompt, config, lambda denoiser: visible_text(denoiser, text, length), extra


@generates(
    PRESETS["quality"],
    'lad infill "The capital of ___ is Paris, and the capital of ___ is Berlin."',
    'lad infill "Cats are [2] that like to [3]." --temperature 0.7 --seed 1',
)
def infill(
    text: Annotated[str, typer.Argument(help=GAPS)],
    given: dict,
    gap: Annotated[int, option("Tokens of a gap written ___.")] = 1,
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
