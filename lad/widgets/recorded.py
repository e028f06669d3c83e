"""Recorded runs behind menus: what stands for an explorer in a page without a kernel.

`lad gallery` records a run for every choice of the menus, `lad.report` puts them into its pages:
each is the player of `lad.viz.html`, compressed until it is chosen. Runs are kept as traces one
after the other in `figures/data/gallery.jsonl.gz`; the provenance of each names its explorer, its
place in the menus and the command.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lad.diffusion.config import KINDS, PRESETS, RefineConfig, preset
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import INFILL_PROMPT, Draft, gapped, visible_text
from lad.diffusion.sampler import record
from lad.diffusion.trace import Trace
from lad.diffusion.trace_file import from_lines, to_lines
from lad.utils import damaged_file, write_whole
from lad.viz.gallery import recorded_file
from lad.viz.html import VIEWS, chooser_html, replay_html
from lad.viz.word_corruption import corrupt_text
from lad.widgets.controls import PURPOSES

FILE = "gallery.jsonl.gz"
COMMAND = "lad gallery"
PROMPTS = (
    "What is the capital of France?",
    "What do you know about Amsterdam?",
    "Name three fruits.",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Who was Marie Curie?",
)
ANSWERS = {  # to repair, with the question
    "The capital of France is Paris.": "What is the capital of France?",
    "The sky is blue because air scatters blue light.": "Why is the sky blue?",
    "Cats are small animals that like to sleep in the sun.": "What is a cat?",
}
GAPS = (
    "The capital of ___ is Paris, and the capital of ___ is Berlin.",
    "Cats are [2] that like to [3].",
    "Once upon a time there was [3] who lived in [4].",
)


class Choice(NamedTuple):
    """One choice of an explorer's menus, and the run that it shows."""

    explorer: str  # "refine", "repair" or "infill"
    menus: dict[str, str]
    prompt: str
    config: RefineConfig
    draft: Callable[[Denoiser], Draft] | None = None


def choices(
    prompts: Sequence[str] = PROMPTS,
    presets: Sequence[str] = tuple(PRESETS),
    seeds: Sequence[int] = (0, 1, 2),
) -> Iterator[Choice]:
    """Every choice of every menu; one prompt is one text to repair and one to fill, and so on.

    Seed 0 has the preset's temperature; the others sample, at temperature 1 where the preset does
    not.
    """

    def seeded(config: RefineConfig, seed: int) -> tuple[str, RefineConfig]:
        temperature = config.temperature or float(seed > 0)
        name = f"{seed}, sampled" if seed else "0, as the preset says"
        return name, replace(config, seed=seed, temperature=temperature)

    for prompt in prompts:
        for name in presets:
            for number in seeds:
                seed, config = seeded(preset(name), number)
                menus = {"Prompt": prompt, "Preset": name, "Seed": seed}
                yield Choice("refine", menus, prompt, config)
    for text, question in list(ANSWERS.items())[: len(prompts)]:
        for kind in KINDS:
            corrupted = corrupt_text(text, kind)
            menus = {"Text": text, "Corrupt it": kind}
            config = RefineConfig(iterations=16, remasking="none")
            draft = lambda denoiser, text=corrupted: visible_text(denoiser, text)  # noqa: E731
            yield Choice("repair", menus, question, config, draft)
    for text in GAPS[: len(prompts)]:
        for number in seeds:
            seed, config = seeded(PRESETS["quality"], number)
            draft = lambda denoiser, text=text: gapped(denoiser, text)  # noqa: E731
            yield Choice("infill", {"Text": text, "Seed": seed}, INFILL_PROMPT, config, draft)


def run_choice(denoiser: Denoiser, choice: Choice, command: str = COMMAND) -> Trace:
    """The run of one choice, without its wall times, which vary."""
    config, start = choice.config, {}
    if choice.draft is not None:
        draft = choice.draft(denoiser)
        config = replace(config, answer_length=len(draft.tokens))
        start = {"draft": draft.tokens, "fixed": draft.fixed}
    trace = record(denoiser, choice.prompt, config, **start)
    made_by = {"command": command, "explorer": choice.explorer, "menus": choice.menus}
    steps = [replace(step, seconds=0.0) for step in trace.steps]
    return replace(trace, steps=steps, provenance=trace.provenance | made_by)


def save_runs(traces: Sequence[Trace], path: Path) -> Path:
    """Write traces one after the other, compressed; the same traces give the same bytes."""
    text = "".join(line + "\n" for trace in traces for line in to_lines(trace))
    write_whole(path, gzip.compress(text.encode(), mtime=0))
    return path


def read_runs(path: Path) -> list[Trace]:
    """What `save_runs` wrote; DamagedFile for anything else."""
    traces, lines = [], []
    with damaged_file(path, f"expected what `{COMMAND}` wrote; run it again", EOFError, zlib.error):
        for line in gzip.decompress(path.read_bytes()).decode().split("\n"):
            lines.append(line)
            if line.startswith('{"end"'):
                traces.append(from_lines(lines))
                lines = []
        if any(lines) or not traces or not all("menus" in one.provenance for one in traces):
            raise ValueError("no run, or one without its end or its menus")
    return traces


def placeholder(explorer: str) -> str | None:
    """What an explorer leaves in a notebook for `fill_in`; None while no runs are recorded."""
    if not recorded_file(FILE).is_file():
        return None
    return f'<div data-recorded="{explorer}">Recorded runs, in the report</div>'


def recorded_html() -> dict[str, str]:
    """For each explorer's placeholder the menus and players of its runs."""
    groups: dict[str, list[Trace]] = {}
    for trace in read_runs(recorded_file(FILE)):
        groups.setdefault(trace.provenance["explorer"], []).append(trace)
    return {placeholder(name): menus_html(traces) for name, traces in groups.items()}


def menus_html(traces: Sequence[Trace]) -> str:
    """Menus over runs of one explorer, and the player of the one chosen, at first the first.

    Every value of a menu is offered beside every one of the others.
    """
    menus: dict[str, list[str]] = {}
    players: dict[str, str] = {}
    for trace in traces:
        chosen: Mapping[str, str] = trace.provenance["menus"]
        for name, value in chosen.items():
            values = menus.setdefault(name, [])
            values += [value] * (value not in values)
        key = " ".join(str(menus[name].index(value)) for name, value in chosen.items())
        players[key] = replay_html(trace)
    labels = {name: purpose for purpose, name in PURPOSES.items()}
    shown = {name: {"": [labels.get(v, v) for v in values]} for name, values in menus.items()}
    note = str(VIEWS.recorded_note(traces[0].provenance, len(traces)))
    return chooser_html(shown, players, note)
