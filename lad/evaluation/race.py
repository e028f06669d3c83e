"""A race: one backbone answers a prompt from left to right, and then by refinement.

Both are greedy where the settings are, neither is compiled, and both have a key/value cache of the
prompt. An iteration's `seconds` run until its tokens are on the host; reading the prompt is part of
the first one's. Both run once after each other, on one device, after a few passes of each that are
not timed, in which memory is laid out and kernels are chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import check_prompt_fits
from lad.diffusion.sampler import refine
from lad.diffusion.trace import Step, Trace, make_trace
from lad.evaluation.generation import provenance
from lad.models.chat import Prompt
from lad.models.generate import generate

LEFT_TO_RIGHT, REFINEMENT = "left to right", "refinement"
UNTIMED = 2  # passes of each

OnPass = Callable[[str, int, int], object]  # called with the runner, its passes, and the most


def silent(*_: object) -> None:
    """Tell nothing of a pass."""


def race(
    denoiser: Denoiser, prompt: Prompt, config: RefineConfig, on_pass: OnPass = silent
) -> dict[str, Trace]:
    """The timed traces of both, by name: left to right first, which takes the likeliest token.

    Args:
        config: of the refinement; its `answer_length` bounds both answers, EOS included.
        on_pass: called after every pass; its own time is not counted. Raise from it to stop.
    """
    prompt_ids = denoiser.encode(prompt)
    check_prompt_fits(denoiser, prompt_ids, config)
    merged = denoiser.model.get_model_status().merged_adapters
    few = replace(config, iterations=min(UNTIMED, config.iterations))
    try:
        with denoiser.adapter_off():
            _left_to_right(denoiser, prompt_ids, UNTIMED, silent)
            written = _left_to_right(denoiser, prompt_ids, config.answer_length, on_pass)
    finally:
        if merged:
            denoiser.merge()  # again, because switching it off took it out of the weights
    _refined(denoiser, prompt_ids, few, silent)
    refined = _refined(denoiser, prompt_ids, config, on_pass)
    origin = provenance(denoiser.backbone, denoiser.adapter_sha256)
    found = {}
    for name, steps in {LEFT_TO_RIGHT: written, REFINEMENT: refined}.items():
        bare = {"adapter_sha256": None} if name == LEFT_TO_RIGHT else {}
        trace = make_trace(denoiser, prompt, prompt_ids, config, steps)
        found[name] = replace(trace, provenance=origin | bare | {"decoding": name})
    ended = written[-1].draft[-1] == denoiser.eos_token_id
    found[LEFT_TO_RIGHT] = replace(found[LEFT_TO_RIGHT], stopped_early=bool(ended))
    return found


def _refined(
    denoiser: Denoiser, prompt_ids: Tensor, config: RefineConfig, on_pass: OnPass
) -> list[Step]:
    """The steps of a refinement, the first with the time that reading the prompt took."""
    steps, last = [], time.perf_counter()
    for step in refine(denoiser, prompt_ids, config):
        steps.append(replace(step, seconds=time.perf_counter() - last))
        on_pass(REFINEMENT, len(steps), config.iterations)
        last = time.perf_counter()
    return steps


def _left_to_right(
    denoiser: Denoiser, prompt_ids: Tensor, length: int, on_pass: OnPass
) -> list[Step]:
    """The steps of an answer whose draft grows by a token a pass and ends in EOS so far.

    A position that is not written yet is MASK in the input, and its confidence is 0.
    """
    likeliest, seconds, last = [], [], time.perf_counter()

    def on_logits(logits: Tensor) -> None:  # (1, v)
        nonlocal last
        likeliest.append(float(logits[0].float().softmax(dim=-1).max()))  # waits for the device
        seconds.append(time.perf_counter() - last)
        on_pass(LEFT_TO_RIGHT, len(seconds), length)
        last = time.perf_counter()

    given = denoiser.causal_lm, denoiser.eos_token_id, [prompt_ids.tolist()], length
    [tokens] = generate(*given, on_logits=on_logits)
    written = np.tri(len(tokens), dtype=bool)  # (i, a), whether a pass has written a position
    drafts = np.where(written, tokens, denoiser.eos_token_id)
    inputs = np.where(np.tri(len(tokens), k=-1, dtype=bool), tokens, denoiser.mask_token_id)
    confidence = np.where(written, np.float32(likeliest), np.float32(0))
    none = np.zeros(len(tokens), dtype=bool)
    return [
        Step(i, inputs[i], drafts[i], confidence[i], none, seconds=taken)
        for i, taken in enumerate(seconds)
    ]
