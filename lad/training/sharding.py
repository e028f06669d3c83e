"""A frozen backbone in shards, one a GPU, for cards that do not hold it whole (FSDP2).

Each decoder layer is a unit, and so are the embedding and the head. Between its turns a process
holds its share of the rows of every weight; a unit's weights are gathered from all processes just
before it computes, forward or back, and dropped right after, so that a GPU holds its shard and a
unit or two. They travel in the dtype they are kept in, and since they are frozen no gradient of
theirs does.

The adapter is not sharded: it is small, and whole on every GPU, with the optimiser, the running
average and the checkpoints as they are without shards (lad/training/weights.py). A matrix that is
embedding and head at once (tied) stays whole too: the two are used far apart.

Sources: ZeRO (Rajbhandari et al., 2020); PyTorch FSDP (Zhao et al., 2023),
https://arxiv.org/abs/2304.11277; https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from lad.diffusion.denoiser import Denoiser
from lad.training.parallel import here
from lad.utils import InvalidInput

__all__ = ["all_processes", "check_shardable", "is_sharded", "shard"]


def check_shardable(bits: int | None, device: str | torch.device) -> None:
    """Refuse what cannot be sharded, best asked before gigabytes are read.

    Args:
        bits: 4 or 8 if the weights are quantised, else None.
        device: this process's own.

    Raises:
        InvalidInput: a single process, quantised weights, or a device that is several.
    """
    processes = here()[1]
    if processes < 2:
        raise InvalidInput(
            f"shard = true with {processes} process: expected at least 2, one a GPU, as "
            "`torchrun --nproc-per-node=2 -m lad train ...` starts them; or set shard: false"
        )
    if bits:
        raise InvalidInput(
            f"shard = true with {bits}-bit weights: expected weights of 16 or 32 bits, because "
            f"quantised ones are not rows to be shared out; leave :{bits}bit away, or set "
            "shard: false"
        )
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(
            f"shard = true on device {str(device)!r}: expected one GPU a process; use --device cuda"
        ) from error


def is_sharded(denoiser: Denoiser) -> bool:
    """Has `shard` been here?"""
    return isinstance(denoiser.causal_lm.model, FSDPModule)


def all_processes(device: str | torch.device) -> DeviceMesh:
    """Them in a row, as sharding wants it; every process calls it, at the same time."""
    return init_device_mesh(torch.device(device).type, (here()[1],))


def shard(
    denoiser: Denoiser, device: str | torch.device | None = None, mesh: DeviceMesh | None = None
) -> None:
    """Leave to this process its shard of the backbone, in place and for good.

    Every process calls it, and from then on every process must take part in every pass. Units move
    to the device one by one: from weights in the host's memory, a GPU never holds more than its
    shard and one unit. What is sharded already stays as it is.

    Args:
        denoiser: unmerged, the same on every process.
        device: where this process computes; where the weights are by default.
        mesh: from `all_processes`; with it nothing here waits for another process.

    Raises:
        InvalidInput: see `check_shardable`.
    """
    device = denoiser.device if device is None else device
    check_shardable(denoiser.backbone.spec.bits, device)
    if is_sharded(denoiser):
        return
    device = torch.device(device)
    model, head = denoiser.causal_lm.model, denoiser.causal_lm.lm_head
    whole = {p for name, p in denoiser.model.named_parameters() if "lora_" in name}
    units = [*model.layers]
    if head.weight is model.embed_tokens.weight:
        whole.add(head.weight)
    else:
        units += [model.embed_tokens, head]
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    how = {
        "mesh": mesh or all_processes(device),
        "ignored_params": whole,
        "reshard_after_forward": True,
    }
    for unit in units:
        fully_shard(unit, **how)
    # Last, because it takes what is left, the final norm; and because passes begin with it.
    fully_shard(model, **how)
