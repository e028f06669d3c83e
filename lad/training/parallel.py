"""Processes that train one adapter, one per GPU: who is there, and what they agree on.

The adapter alone is trained, so its gradients, in one message, are all that travels, unless the
frozen backbone is sharded (lad/training/sharding.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from lad.utils import InvalidInput

__all__ = ["agree", "average_gradients", "check_shares", "here", "in_turn"]


def here() -> tuple[int, int]:
    """This process's rank, and how many there are; 0 and 1 outside `torchrun`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agree(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of each value over all processes."""
    state = torch.tensor(values, dtype=torch.float64)
    if here()[1] > 1:
        state = state.to(device)
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
    return state.tolist()


@contextmanager
def in_turn(device: torch.device) -> Iterator[None]:
    """One process after the other, by rank, where there is not memory for all at once.

    Every process must come here, and nothing inside may wait for another.
    """
    rank, processes = here()
    for _ in range(rank):
        agree([0], device)
    try:
        yield
    finally:
        for _ in range(rank, processes):
            agree([0], device)


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Mean over processes, in one message."""
    processes = here()[1]
    if processes == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= processes
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def check_shares(processes: int, shares: int) -> None:
    """Refuse processes that could not take equally many shares of a batch.

    Raises:
        InvalidInput: they could not.
    """
    if shares % processes:
        fit = [str(n) for n in range(1, shares + 1) if shares % n == 0]
        raise InvalidInput(
            f"{processes} processes to resume a run whose batches have {shares} shares: expected "
            f"{', '.join(fit)} of them, so that each gets as many"
        )
