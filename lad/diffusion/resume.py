"""Going on where a trace ends, with its next input as it would have been or edited.

What a run keeps between iterations (identical drafts in a row, positions shown before, the random
generator) follows from its trace and its seed, and is restored from them. A run that is cut off
after an iteration and resumed is therefore the run that was never cut off.

    paused = replace(trace, steps=trace.steps[:4])     the first four iterations
    other = branch(denoiser, paused, draft=edited)     a trace that begins with them

Shapes: a = positions of the answer region.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.remasking import STRATEGIES
from lad.diffusion.sampler import Batch, SamplerState, advance, draw_uniforms, make_batch, run_batch
from lad.diffusion.trace import Step, Trace, make_trace
from lad.utils import InvalidInput


def next_input(trace: Trace) -> np.ndarray:
    """`(a,)` int64: what the denoiser would see after the last iteration of a trace."""
    last = trace.steps[-1]
    return np.where(last.remask, trace.mask_token_id, last.draft)


def resume(
    denoiser: Denoiser, trace: Trace, *, draft: Tensor | None = None, fixed: Tensor | None = None
) -> Iterator[Step]:
    """The iterations after those of a trace, with its settings; inputs are checked at the call.

    Args:
        trace: a run of this denoiser, with iterations left.
        draft: `(a,)` token ids, the next input; `next_input(trace)` by default. A position that is
            MASK by an edit counts as never shown.
        fixed: `(a,)` bool, positions that never change from here on; by default those that could
            not change in the last iteration.

    Raises:
        InvalidInput: a trace of another denoiser or without iterations left, and as `refine`.
        NumericalError: as `refine`.
    """
    config = RefineConfig.from_dict(trace.config)
    check_same_denoiser(denoiser, trace)
    if config.remasking not in STRATEGIES:
        raise InvalidInput(
            f"a trace of remasking {config.remasking!r}: expected one of {', '.join(STRATEGIES)}; "
            "where two models take turns, a draft is not edited"
        )
    if len(trace.steps) >= config.iterations:
        raise InvalidInput(
            f"a trace of {len(trace.steps)} of {config.iterations} iterations: expected some that "
            "are left; go on from an earlier iteration"
        )
    start = torch.from_numpy(next_input(trace)) if draft is None else draft
    if fixed is None and trace.steps[-1].fixed is not None:
        fixed = torch.from_numpy(trace.steps[-1].fixed)
    prompt = torch.from_numpy(trace.prompt_ids)
    batch = make_batch(denoiser, [prompt], config, [start], [fixed])
    batch = batch._replace(state=_restored(batch, trace, config), iteration=len(trace.steps))
    return (steps[0] for steps in run_batch(denoiser, batch, config))


def check_same_denoiser(denoiser: Denoiser, trace: Trace) -> None:
    """Refuse a trace of another model or adapter with InvalidInput."""
    made_by = {name: trace.provenance.get(name) for name in ("model", "adapter_sha256")}
    own = {"model": denoiser.backbone.spec.name, "adapter_sha256": denoiser.adapter_sha256}
    if made_by != own:
        raise InvalidInput(
            f"a trace of {_named(made_by)}: expected one of {_named(own)}, the denoiser that goes "
            "on; choose that model, or run the prompt again"
        )


def branch(
    denoiser: Denoiser, trace: Trace, *, draft: Tensor | None = None, fixed: Tensor | None = None
) -> Trace:
    """A trace whose beginning is another and whose rest is `resume`'s, to the end of the run."""
    steps = [*trace.steps, *resume(denoiser, trace, draft=draft, fixed=fixed)]
    prompt_ids = torch.from_numpy(trace.prompt_ids)
    return make_trace(
        denoiser, trace.prompt, prompt_ids, RefineConfig.from_dict(trace.config), steps
    )


@torch.inference_mode()
def _restored(batch: Batch, trace: Trace, config: RefineConfig) -> SamplerState:
    """The state of a batch of one after the steps of its trace; its generator moves on with it."""
    num_uniforms = STRATEGIES[config.remasking].num_uniforms + (not config.greedy)
    start = batch.state.tokens
    nothing = torch.full_like(start, trace.mask_token_id)
    state = batch.state._replace(tokens=nothing, ever_unmasked=torch.zeros_like(batch.state.fixed))
    for taken in trace.steps:
        inputs, draft, remask = (
            torch.from_numpy(array)[None].to(start.device)
            for array in (taken.inputs, taken.draft, taken.remask)
        )
        draw_uniforms(batch.generators, num_uniforms, start)
        state = advance(_edited(state, inputs), draft, remask, config)
    return _edited(state, start)


def _edited(state: SamplerState, tokens: Tensor) -> SamplerState:
    """The state with another input: where it differs, nothing but that input was ever shown."""
    is_masked = tokens == state.mask_token_id
    ever_unmasked = torch.where(tokens == state.tokens, state.ever_unmasked, ~is_masked)
    return state._replace(tokens=tokens, ever_unmasked=ever_unmasked)


def _named(made_by: dict) -> str:
    """The model and the beginning of the adapter's digest, in words."""
    model, adapter = made_by["model"], made_by["adapter_sha256"]
    return f"{model or 'an unknown model'} with {f'adapter {adapter[:8]}' if adapter else 'none'}"
