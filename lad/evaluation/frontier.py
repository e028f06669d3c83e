"""The frontier of quality and speed: what tokens a forward pass cost under each strategy.

Each strategy answers the same prompts over a sweep of its main setting. Quality is 1 minus the bits
that a token costs more under the backbone than one of its own answer, between 0 and 1: so it is 1 -
log2 of the relative perplexity, EOS counted. Text that is more predictable than the backbone's own,
such as a loop, is not better; a fast draft of twice the perplexity is worth nothing. Left to right
has quality 1 at one token a pass. EOS counts as a token here.

Sources: the area is the hypervolume of Zitzler and Thiele (1998); prompt lookup is speculation with
n-grams of the text so far (Saxena, 2023), in `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from transformers import LlamaForCausalLM
from typing_extensions import TypedDict

from lad.diffusion.config import PRESETS, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.verified import bare_backbone
from lad.evaluation import generation, statistics, text_metrics
from lad.evaluation.generation import Answers, bar, greedy_answers, provenance
from lad.models.chat import encode_prompts
from lad.utils import check_least, check_same, checked, damaged_file, record

SHORT = 30  # tokens of the backbone's own answer, from which on an answer is long
LOOKUP = {"prompt_lookup_num_tokens": 5}  # of the documentation of `transformers`
SCORES = ("relative_perplexity_with_end", "relative_perplexity", "repeats", "repeated_4grams")


Frontier = record(TypedDict("Frontier", {"provenance": dict, "strategies": dict}))


class Sweep(NamedTuple):
    """The values of one setting that a strategy is run with."""

    config: RefineConfig
    setting: str
    values: Sequence[float]


CONFIDENCES = "confidence_threshold", (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95)
SWEEPS = {
    "threshold": Sweep(PRESETS["default"], *CONFIDENCES),
    "guided": Sweep(PRESETS["guided"], "iterations", (8, 16, 24, 32, 48, 64)),
    "entropy": Sweep(
        replace(PRESETS["default"], remasking="entropy"),
        "entropy_bound",
        (0.1, 0.3, 1.0, 2.0, 3.0, 5.0),
    ),
    "editing": Sweep(replace(PRESETS["default"], remasking="editing"), *CONFIDENCES),
    "noiseless": Sweep(
        replace(PRESETS["noiseless"], iterations=64), "added_tokens", (1, 2, 3, 4, 6, 8)
    ),
    "verified": Sweep(PRESETS["verified"], "window", (4, 8, 16)),
}


def run_frontier(
    denoiser: Denoiser,
    prompts: Sequence[str],
    sweeps: Mapping[str, Sweep],
    batch_size: int | None = None,
    command: str = "lad frontier",
    on_strategy: Callable[[dict], None] | None = None,
) -> dict:
    """Scores of every strategy at every value of its setting; `lad.viz.frontier` draws them.

    Args:
        prompts, batch_size: as in `lad.evaluation.adapter_eval.evaluate`.
        sweeps: strategy's name -> settings, all with the same answer length.
        on_strategy: called after each strategy with the result so far, to keep it.
    """
    check_least(1, prompts=len(prompts))
    batch_size = batch_size or generation.default_batch_size(denoiser)
    length = max(sweep.config.answer_length for sweep in sweeps.values())
    ids = encode_prompts(denoiser.tokenizer, prompts)
    looked_up = lookup_answers(bare_backbone(denoiser), ids, length, denoiser.eos_token_id)
    outputs = {"prompt lookup": looked_up}
    baseline, outputs = generation.score_outputs(denoiser, prompts, outputs, length, batch_size)
    groups: dict[str, list[int]] = {"short": [], "long": []}
    for n, tokens in enumerate(baseline.tokens):
        groups["short" if len(tokens) < SHORT else "long"].append(n)

    def scored(answers: Answers) -> dict:
        return {
            group: scores(denoiser.tokenizer, answers.select(index), baseline.select(index))
            for group, index in groups.items()
        }

    origin = provenance(denoiser.backbone, denoiser.adapter_sha256) | {"seed": RefineConfig().seed}
    made = {"command": command, "provenance": origin}
    result = made | {
        "answers": {group: len(index) for group, index in groups.items()},
        "short": SHORT,
        "strategies": {},
        "left_to_right": scored(baseline),
        "prompt_lookup": LOOKUP | scored(outputs["prompt lookup"]),
    }
    for name, (config, setting, values) in sweeps.items():
        runs = []
        for value in values:
            config = replace(config, **{setting: value})
            stage = f"{name}, {setting} {value:g}"
            traces = generation.refine_traces(denoiser, prompts, config, batch_size, stage)
            given = denoiser, prompts, Answers.from_traces(traces), batch_size
            runs.append(generation.score_answers(*given))
        points = [{"value": v} | scored(one) for v, one in zip(values, runs, strict=True)]
        areas = {
            group: area([one.select(index) for one in runs], baseline.select(index)).to_dict()
            for group, index in groups.items()
        }
        settings = made | {"config": sweeps[name].config.to_dict(), "setting": setting}
        result["strategies"][name] = settings | {"points": points, "area": areas}
        if on_strategy is not None:
            on_strategy(result)
    return result


def read_frontier(path: Path, adapter_sha256: str | None) -> dict:
    """What `lad frontier` wrote, for more strategies; InvalidInput for that of another adapter."""
    remedy = "choose another --out"
    with damaged_file(path, f"expected what `lad frontier` wrote; {remedy}"):
        before = checked(path.read_bytes(), Frontier)
    check_same(path, before["provenance"], {"adapter_sha256": adapter_sha256}, remedy)
    return before


def added(before: Mapping, result: Mapping) -> dict:
    """The earlier result with the strategies of this one; each names its command and machine."""
    strategies = before.get("strategies", {}) | result["strategies"]
    return {**result, **before, "strategies": strategies}


def scores(tokenizer, answers: Answers, baseline: Answers) -> dict:
    """`SCORES` of `measure_answers`, and `tokens_per_forward`, EOS counted."""
    every = generation.measure_answers(tokenizer, answers, baseline)
    tokens = [len(ids) for ids in answers.with_eos]
    rate = statistics.pooled_ratio(tokens, answers.forwards).to_dict()
    return {"tokens_per_forward": rate} | {key: every[key] for key in SCORES}


def area(runs: Sequence[Answers], baseline: Answers) -> statistics.Estimate:
    """The area that a strategy's runs cover: the best quality at each number of tokens a pass.

    The best of the runs that are at least as fast, summed from 0 tokens a pass to the most of any;
    left to right covers 1. The interval is over answers.
    """
    tokens = np.array([[len(ids) for ids in one.with_eos] for one in runs])  # (k, n)
    forwards = np.array([one.forwards for one in runs])
    usual = text_metrics.perplexities(baseline.losses)
    ratios = np.array([text_metrics.perplexities(one.losses) / usual for one in runs])

    def covered(index: np.ndarray) -> np.ndarray:
        rate = tokens[:, index].sum(axis=-1) / forwards[:, index].sum(axis=-1)  # (k, ...)
        quality = np.clip(1 - np.log2(np.median(ratios[:, index], axis=-1)), 0, 1)
        fastest_first = np.argsort(-rate, axis=0)
        rate, quality = (np.take_along_axis(x, fastest_first, axis=0) for x in (rate, quality))
        widths = rate - np.concatenate([rate[1:], np.zeros_like(rate[:1])])
        return (widths * np.maximum.accumulate(quality, axis=0)).sum(axis=0)

    return statistics.bootstrap(len(baseline.tokens), covered)


def lookup_answers(
    backbone: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_token_id: int,
) -> Answers:
    """The backbone's greedy answers by prompt lookup, one by one; forward passes are counted."""
    calls, parts = [], []
    hook = backbone.register_forward_hook(lambda *_: calls.append(len(parts)))
    try:
        for prompt in bar(prompts, "prompt lookup"):
            given = backbone, [prompt], max_new_tokens, eos_token_id
            parts.append(greedy_answers(*given, batch_size=1, **LOOKUP))
    finally:
        hook.remove()
    tokens, ended = ([getattr(one, name)[0] for one in parts] for name in ("tokens", "ended"))
    forwards = np.bincount(calls, minlength=len(parts)).tolist()
    return Answers(tokens, ended, forwards, sum(one.seconds for one in parts), eos_token_id)
