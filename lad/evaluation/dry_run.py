"""What a training run would cost on this machine, measured in a minute.

The very steps of `lad.training.train` (one process, or one per GPU), on made-up batches of the
widest kind, since that is what memory must hold: neither pairs nor, with random weights of the true
shape, a download are needed. A few steps first, in which kernels are compiled and chosen, are not
timed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from lad.diffusion.denoiser import Denoiser
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs
from lad.training.loss import take, weigh
from lad.training.memory import enough_memory, training_mode
from lad.training.parallel import agree
from lad.training.trainer import Run
from lad.utils import InvalidInput

__all__ = ["AIM", "dry_run", "flops_per_token", "made_up_pairs"]

AIM = 200_000_000  # tokens, which is how many the paper's adapter saw
UNTIMED = 5


def dry_run(
    denoiser: Denoiser,
    config: TrainConfig,
    steps: int = 20,
    on_step: Callable[[int, int], object] = lambda done, total: None,
) -> dict:
    """Time `steps` optimiser steps; the adapter's weights are as before afterwards.

    Args:
        denoiser: unmerged.
        config: of the run that is meant. Batches are all of its longest width, and drafts, where
            it has any, come from the first step on.
        on_step: called with steps taken and in all.

    Returns:
        Plain values: `tokens_per_second` of all processes together, `step_seconds`, `hours` for
        `AIM` tokens, `peak_memory` in bytes (of the busiest process; on a GPU of tensors, else of
        the process), `flops_per_token`, `flops_per_second` (of one process), and the settings.

    Raises:
        InvalidInput: steps below 1, or a batch that this machine's memory does not hold.
    """
    if steps < 1:
        raise InvalidInput(f"steps = {steps}: expected at least 1")
    total = UNTIMED + steps
    timed = replace(
        config,
        widths=(config.context,),
        steps=total,
        minutes=None,
        draft_start=0.0,
        log_every=1 if total < 2 * UNTIMED else UNTIMED,
        validate_every=10**9,
    )
    run = Timed(denoiser, timed, None, lambda row: on_step(row["step"], total))
    before = [p.data.clone() for p in run.weights.parameters]
    rows = max(config.batch_tokens // config.context, 1) * run.shares
    run.data = made_up_pairs(denoiser, rows, config.context).to(denoiser.device)
    run.held = None
    cuda = denoiser.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(denoiser.device)
    try:
        with training_mode(denoiser, timed), enough_memory(denoiser, timed):
            run.loop()
    finally:
        with torch.no_grad():
            for parameter, value in zip(run.weights.parameters, before, strict=True):
                parameter.copy_(value)
    if cuda:
        peak = torch.cuda.max_memory_allocated(denoiser.device)
        reserved = torch.cuda.max_memory_reserved(denoiser.device)
    else:
        import resource  # not on every system, nor needed with a GPU

        peak = reserved = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What the busiest process took, as the docstring says, and not the first one.
    peak, reserved = (int(n) for n in agree([peak, reserved], denoiser.device))
    seconds = run.marks[total] - run.marks[UNTIMED]
    positions = rows * config.context * steps
    rate = positions / seconds
    work = flops_per_token(denoiser, predicted_share(run, timed))
    return {
        "steps": steps,
        "processes": run.processes,
        "positions_per_step": rows * config.context,
        "step_seconds": seconds / steps,
        "tokens_per_second": rate,
        "aim_tokens": AIM,
        "hours": AIM / rate / 3600,
        "peak_memory": peak,
        "reserved_memory": reserved,
        "flops_per_token": work,
        "flops_per_second": work["total"] * rate / run.processes,
        "config": config.to_dict(),
        "denoiser": denoiser.config.to_dict(),
    }


class Timed(Run):
    """A run that notes when a step that is logged was done, on every process."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.marks: dict[int, float] = {}

    def log_step(self, drafted: bool) -> None:
        """Logging reads the loss, so the device has finished by then."""
        super().log_step(drafted)
        self.marks[self.step] = time.perf_counter()


def made_up_pairs(denoiser: Denoiser, rows: int, context: int) -> PackedPairs:
    """Random tokens as prompts of an eighth to a quarter of the context, and answers behind."""
    draw = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    ordinary = min(denoiser.vocabulary_size, 256)
    tokens = torch.randint(ordinary, (rows, context), generator=generator, dtype=torch.int32)
    lengths = [draw.randint(max(context // 8, 1), max(context // 4, 1)) for _ in range(rows)]
    ends = [draw.randint(min(n + 1, context - 1), context - 1) for n in lengths]
    for row, end in enumerate(ends):
        tokens[row, end:] = denoiser.eos_token_id
    return PackedPairs(tokens, torch.tensor(lengths), torch.tensor(ends), 0)


def predicted_share(run: Run, config: TrainConfig) -> float:
    """Share of all positions whose logits a step under noise computes."""
    rows = list(range(len(run.data)))
    batch = take(run.data, rows, config.context)
    run.generator.manual_seed(0)
    say = weigh(
        batch,
        run.damage(batch, first_draft=False),
        run.denoiser.mask_token_id,
        config.clean_share,
        config.eos_tail_share,
        config.reach,
        False,
        run.generator,
    )
    return float((say > 0).float().mean())


def flops_per_token(denoiser: Denoiser, predicted: float) -> dict[str, float]:
    """Floating-point operations that a position costs in a training step, counted from shapes.

    A frozen weight is multiplied twice, on the way forward and for the states on the way back,
    2 operations each: 4 N. A trained one once more, for its own gradient: 6 N. The head works on
    the share of positions that are `predicted`; embeddings are looked up; attention between
    positions, recomputed layers and the optimiser are left out.

    Returns:
        `backbone`, `head`, `adapter`, and their `total`.
    """
    counts = {"backbone": 0.0, "head": 0.0, "adapter": 0.0}
    # Of quantised weights the layer knows the shape, the tensor only its packed bytes.
    for name, module in denoiser.causal_lm.named_modules():
        size = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
        if not size or hasattr(module, "base_layer"):
            continue
        part = "adapter" if "lora_" in name else "head" if name == "lm_head" else "backbone"
        counts[part] += size
    work = {
        "backbone": 4 * counts["backbone"],
        "head": 4 * counts["head"] * predicted,
        "adapter": 6 * counts["adapter"],
    }
    return work | {"total": sum(work.values())}
