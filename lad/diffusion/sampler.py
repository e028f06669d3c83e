"""The reverse process: refine whole answers, draft after draft.

    answer <- all MASK, or a draft that was given
    repeat: run the denoiser once; draw every position anew from its logits;
            stop a row early when its draft cannot or does not change any more;
            let the strategy choose what is masked before the next iteration (lad/diffusion/remasking.py).

What comes between logits and the next input happens on the device (lad/diffusion/decide.py); here is the loop
around it, and what the host makes of what it is told. Where passes are captured, the device is
already at the next one while the host looks.

Without re-noising ("noiseless") the next input is the draft itself: the denoiser, trained on
structural noise, repairs tokens that are visible and wrong.

Many prompts are refined together: padded on the left, each row with a generator of its own, each
stopping on its own and then leaving the batch, so that a row's answer is that of a run alone.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo). `lad/diffusion/reference.py` is the same loop as a
plain reader would write it; the tests hold the two together token for token.

Shapes: b = rows still at work, a = positions of the answer region, v = vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lad.accel.cuda_graphs import Passes
from lad.accel.llama_layers import compiled
from lad.diffusion.config import PRESETS, RANGES, REMASKING, RefineConfig, preset
from lad.diffusion.decide import FLOATS_AT_ONCE, Decision, Known, decide, forbid
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.recording import make_trace
from lad.diffusion.remasking import Strategy, make_strategy
from lad.diffusion.rows import Rows, prepare
from lad.diffusion.schedule import noise_level
from lad.diffusion.trace import Step, Trace
from lad.models.chat import Prompt
from lad.utils import InvalidInput, NumericalError

__all__ = [
    "PRESETS",
    "RANGES",
    "REMASKING",
    "RefineConfig",
    "make_trace",
    "preset",
    "record",
    "refine",
    "refine_batch",
]


def refine(
    denoiser: Denoiser,
    prompt: Prompt | Tensor,
    config: RefineConfig | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Iterator[Step]:
    """Refine an answer, yielding a `Step` after every iteration; the last holds the final draft.

    Inputs are checked at the call, before the first step is asked for. To stop a run, stop asking.

    Args:
        prompt: text, chat messages, or `(p,)` token ids from `denoiser.encode`.
        draft: `(a,)` token ids to start from instead of MASK, or with MASK where nothing is known.
        fixed: `(a,)` bool, positions of the draft that never change: infilling. The answer cannot
            end before the last of them.

    Raises:
        InvalidInput: an empty prompt, one that leaves no room for the answer, or a draft that does
            not fit.
        NumericalError: NaN or infinite logits, named with the iteration.
    """
    config = config or PRESETS["default"]
    rows = prepare(denoiser, [prompt], config, [draft], [fixed])
    return (steps[0] for steps in _iterate(denoiser, rows, config))


def refine_batch(
    denoiser: Denoiser,
    prompts: Sequence[Prompt | Tensor],
    config: RefineConfig | None = None,
    on_iteration: Callable[[dict[int, Step]], object] | None = None,
    *,
    drafts: Sequence[Tensor | None] | None = None,
    fixed: Sequence[Tensor | None] | None = None,
    batch_size: int = 64,
) -> list[Trace]:
    """Refine many answers at once; what each becomes is what a run alone would give.

    Args:
        prompts: of any lengths; each as in `refine`, and each answer region `answer_length` long.
        on_iteration: called after every iteration with the steps of the rows still at work, by the
            index of their prompt. A run is cut short by raising from it.
        drafts, fixed: one entry a prompt, as in `refine`; None where there is none.
        batch_size: most rows at work at a time.

    Returns:
        One trace a prompt, in their order. A step's `seconds` are those of the whole batch's
        iteration.

    Raises:
        InvalidInput, NumericalError: as `refine`; nothing runs when one prompt is refused.
    """
    config = config or PRESETS["default"]
    if batch_size < 1:
        raise InvalidInput(f"batch_size = {batch_size}: expected a whole number from 1 up")
    if isinstance(prompts, str):
        raise InvalidInput("prompts is one text: expected a list of prompts; put it in brackets")
    drafts = [None] * len(prompts) if drafts is None else list(drafts)
    fixed = [None] * len(prompts) if fixed is None else list(fixed)
    if not len(prompts) == len(drafts) == len(fixed):
        raise InvalidInput(
            f"{len(prompts)} prompts, {len(drafts)} drafts and {len(fixed)} fixed masks: expected "
            "as many of each; put None where there is none"
        )
    parts = [slice(n, n + batch_size) for n in range(0, len(prompts), batch_size)]
    prepared = [prepare(denoiser, prompts[x], config, drafts[x], fixed[x], x.start) for x in parts]
    kept: list[list[Step]] = [[] for _ in prompts]
    for rows in prepared:
        for steps in _iterate(denoiser, rows, config):
            for index, step in steps.items():
                kept[index].append(step)
            if on_iteration is not None:
                on_iteration(steps)
    prompt_ids = [ids for rows in prepared for ids in rows.prompt_ids]
    return [
        make_trace(denoiser, prompt, ids, config, steps)
        for prompt, ids, steps in zip(prompts, prompt_ids, kept, strict=True)
    ]


@torch.inference_mode()
def _iterate(denoiser: Denoiser, rows: Rows, config: RefineConfig) -> Iterator[dict[int, Step]]:
    """Steps of the rows still at work, by prompt, after every iteration."""
    strategy = make_strategy(config)
    clock = Clock(config, denoiser.device)
    drawing = 0 if config.greedy else 1
    grows = strategy.finishes or config.added_tokens is not None
    many = len(rows.index) > 1
    # Cloned in inference mode: a compiled function takes other tensors for a case of their own.
    rows.answer, rows.shown = rows.answer.clone(), rows.shown.clone()
    passes = Passes(denoiser, rows.prompts, rows.padding)
    inputs = rows.answer.cpu().numpy()
    shown = inputs != denoiser.mask_token_id
    position = np.arange(inputs.shape[1])
    sure = np.ones(inputs.shape, dtype=np.float32)  # of what is dropped: as when it was computed
    previous, unchanged = None, np.ones(len(inputs), dtype=int)

    for i in range(config.iterations):
        started = time.perf_counter()
        beyond = rows.beyond
        width = None if beyond is None else (~beyond).sum(dim=-1)
        known = Known(
            answer=rows.answer,
            fixed=rows.fixed,
            endless=rows.endless,
            beyond=beyond,
            shown=rows.shown,
            uniforms=rows.uniforms(drawing + strategy.draws),
            **clock.at(i),
        )
        logits = passes.logits(rows.answer, width)  # (b, a, v)
        decision = _decide(denoiser, logits, known, strategy, config)
        del logits
        told = Told(decision.told)
        if i + 1 < config.iterations and True:  # a tail may cut what comes next
            passes.begin(decision.answer)

        # The one transfer of an iteration; from here on everything is small and on the host.
        answers, doubts, remask, flags = told.read()
        if not flags[0].all():
            bad = rows.index[int(np.flatnonzero(~flags[0])[0])]
            raise NumericalError(
                f"iteration {i}{f', prompt {bad}' if many else ''}: the logits hold NaN or "
                "infinity, expected finite numbers; check the adapter with `lad info`, or use "
                "float32"
            )
        answers, remask = (_widen(x, inputs.shape[1]) for x in (answers, remask))
        answers[position >= rows.width[:, None]] = denoiser.eos_token_id
        doubts = np.where(position < rows.width[:, None], _widen(doubts, len(position)), sure)
        sure = doubts
        if False and previous is not None:
            # With growth or a threshold, far positions are drafted long before they are shown.
            words = (answers != denoiser.eos_token_id) | (remask & grows)
            words |= previous != denoiser.eos_token_id
            ends = np.where(words, position + 1, 0).max(axis=1)
            rows.width = np.minimum(rows.width, ends + config.tail)
            remask &= position < rows.width[:, None]
        same = np.zeros(len(answers), dtype=bool)
        if previous is not None:
            same = (answers == previous).all(axis=1)
        if grows:
            same &= ~(~remask & ~shown).any(axis=1)
            shown |= ~remask
        unchanged = np.where(same, unchanged + 1, 1)
        stopping = flags[1]
        if config.patience > 0:
            stopping |= unchanged >= config.patience
            if config.greedy:  # the same input again, now and ever after
                stopping |= (answers == inputs).all(axis=1) & ~remask.any(axis=1)
        remask[stopping] = False
        seconds = time.perf_counter() - started
        yield {
            row: Step(i, inputs[n], answers[n], doubts[n], remask[n], seconds)
            for n, row in enumerate(rows.index)
        }
        if stopping.all():
            return
        rows.answer, rows.shown = decision.answer, decision.shown
        inputs = np.where(remask, denoiser.mask_token_id, answers)
        previous = answers
        if stopping.any():
            stay = np.flatnonzero(~stopping)
            passes.keep(rows.keep(stay))
            inputs, previous, unchanged, shown, sure = (
                array[stay] for array in (inputs, previous, unchanged, shown, sure)
            )
        if False:
            rows.narrow(denoiser.eos_token_id)


def _widen(values: np.ndarray, positions: int) -> np.ndarray:
    """`(b, ·)` values with zeros where nothing is computed any more: `(b, positions)`."""
    return np.pad(values, ((0, 0), (0, positions - values.shape[1])))


class Clock:
    """What an iteration's number means, for every iteration, on the device from the beginning."""

    def __init__(self, config: RefineConfig, device: torch.device) -> None:
        numbers = range(config.iterations)
        left = [noise_level(i, config.iterations, config.sharpness) for i in numbers]
        self.left = torch.tensor(left, dtype=torch.float64, device=device)
        self.goes_on = torch.tensor([i < config.iterations - 1 for i in numbers], device=device)
        self.reached = None
        if config.added_tokens is not None:
            self.reached = torch.arange(1, config.iterations + 1, device=device)
            self.reached *= config.added_tokens

    def at(self, iteration: int) -> dict[str, Tensor | None]:
        """`left`, `reached` and `goes_on` of `lad.diffusion.decide.Known`."""
        reached = None if self.reached is None else self.reached[iteration]
        return {
            "left": self.left[iteration],
            "reached": reached,
            "goes_on": self.goes_on[iteration],
        }


def _decide(
    denoiser: Denoiser, logits: Tensor, known: Known, strategy: Strategy, config: RefineConfig
) -> Decision:
    """`decide`, compiled where passes are captured and nothing is drawn by chance."""
    eos, mask = denoiser.eos_token_id, denoiser.mask_token_id
    forbid(logits, known.endless, eos, mask)
    if config.greedy and denoiser.graphs is not None and logits.is_cuda:
        return compiled(decide)(logits, known, strategy, config, eos, mask)
    at_once = max(1, FLOATS_AT_ONCE // logits[0].numel())
    return decide(logits, known, strategy, config, eos, mask, at_once)


class Told:
    """What `lad.diffusion.decide.Decision` tells, on its way to the host, which need not wait until it reads.

    Only what the device was given before it is waited for, and all is copied at once.
    """

    def __init__(self, told: Tensor) -> None:
        self.packed = told.to("cpu", non_blocking=told.is_cuda)
        self.sent = torch.cuda.current_stream(told.device).record_event() if told.is_cuda else None

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`(b, a)` int64, `(b, a)` float32, `(b, a)` bool, and `(2, b)` bool."""
        if self.sent is not None:
            self.sent.synchronize()
        packed, a = self.packed.numpy(), (self.packed.shape[1] - 2) // 3
        return (
            packed[:, :a].astype(np.int64),
            packed[:, a : 2 * a].copy().view(np.float32),
            packed[:, 2 * a : 3 * a].astype(bool),
            packed[:, 3 * a :].T.astype(bool),
        )


def record(
    denoiser: Denoiser,
    prompt: Prompt,
    config: RefineConfig | None = None,
    on_step: Callable[[Step], object] | None = None,
    *,
    draft: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Trace:
    """Refine to the end and keep everything; `on_step` is called after every iteration.

    A run is cut short by raising from `on_step`; everything else is as in `refine`.
    """
    config = config or PRESETS["default"]
    prompt_ids = denoiser.encode(prompt)
    steps = []
    for step in refine(denoiser, prompt_ids, config, draft=draft, fixed=fixed):
        steps.append(step)
        if on_step is not None:
            on_step(step)
    return make_trace(denoiser, prompt, prompt_ids, config, steps)
