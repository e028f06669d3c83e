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
from accelerate import Accelerator

from lad.diffusion.denoiser import Denoiser
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs
from lad.training.loss import corrupt_batch, loss_weights, take
from lad.training.trainer import Trainer
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
        config: of the run that is meant. Batches are all of its longest width.
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
        log_every=1 if total < 2 * UNTIMED else UNTIMED,
    )
    accelerator = Accelerator()
    processes = accelerator.num_processes
    rows = max(config.batch_tokens // config.context, 1) * processes * config.accumulate
    pairs = made_up_pairs(denoiser, rows, config.context)
    marks: dict[int, float] = {}

    def note(row: dict) -> None:
        """A row reads the loss, so the device has finished by then."""
        marks[row["step"]] = time.perf_counter()
        on_step(row["step"], total)

    trainer = Trainer(denoiser, timed, pairs, on_row=note)
    before = [p.data.clone() for p in trainer.parameters]
    cuda = denoiser.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(denoiser.device)
    try:
        trainer.run()
    finally:
        with torch.no_grad():
            for parameter, value in zip(trainer.parameters, before, strict=True):
                parameter.copy_(value)
    if cuda:
        peak = torch.cuda.max_memory_allocated(denoiser.device)
        reserved = torch.cuda.max_memory_reserved(denoiser.device)
    else:
        import resource  # not on every system, nor needed with a GPU

        peak = reserved = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What the busiest process took, as the docstring says, and not the first one.
    taken = torch.tensor([[peak, reserved]], device=denoiser.device)
    peak, reserved = accelerator.gather(taken).amax(dim=0).tolist()
    seconds = marks[total] - marks[UNTIMED]
    positions = rows * config.context * steps
    rate = positions / seconds
    work = flops_per_token(denoiser, predicted_share(denoiser, pairs, timed))
    return {
        "steps": steps,
        "processes": processes,
        "positions_per_step": rows * config.context,
        "step_seconds": seconds / steps,
        "tokens_per_second": rate,
        "aim_tokens": AIM,
        "hours": AIM / rate / 3600,
        "peak_memory": peak,
        "reserved_memory": reserved,
        "flops_per_token": work,
        "flops_per_second": work["total"] * rate / processes,
        "config": config.to_dict(),
        "denoiser": denoiser.config.to_dict(),
    }


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


def predicted_share(denoiser: Denoiser, pairs: PackedPairs, config: TrainConfig) -> float:
    """Share of all positions whose logits a training step computes."""
    batch = take(pairs, list(range(len(pairs))), config.context)
    generator = torch.Generator().manual_seed(0)
    inputs = corrupt_batch(denoiser, batch, config.corruption, generator)
    weights = loss_weights(batch, inputs, denoiser.mask_token_id, config, generator)
    return float((weights > 0).float().mean())


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
