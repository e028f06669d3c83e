"""Two processes that train with the backbone in shards and without; tests/test_training_sharded.py
starts them as `torchrun tests/sharded.py FOLDER`, and looks at what they leave there."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import stir
from torch import nn

from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, train
from lad.training.parallel import in_turn
from lad.training.sharding import shard

PAIRS = [Pair(f"say {n} and {m}", f"{n} {m}!") for n in range(10) for m in range(9)]
HELD = PAIRS[:7]
BASIC = {
    "steps": 6,
    "learning_rate": 2e-3,
    "warmup_steps": 2,
    "widths": (96,),
    "batch_tokens": 384,
    "log_every": 1,
    "draft_start": 0.0,
    "draft_probability": 0.0,
    "fold_lora": False,
}
# name -> knobs of both runs
CASES = {
    "plain": {},
    "untied": {"validate_every": 2},
    "drafts": {"draft_probability": 0.6, "draft_length": 2},
    "average": {"ema": 0.5, "validate_every": 3},
    "clipped": {"gradient_clip": 1e-3, "weight_decay": 0.5},
    "accumulated": {"accumulate": 2},
    "thrifty": {"gradient_checkpointing": True, "loss_chunk": 16},
    "untied thrifty": {"gradient_checkpointing": True, "loss_chunk": 16, "validate_every": 2},
    "untied compiled": {"compile_layers": True, "loss_chunk": 16},
    "untied bfloat16": {},
}
LONG = BASIC | {"steps": 16, "draft_probability": 0.4, "draft_length": 2}


def fresh(case: str = "") -> Denoiser:
    """A tiny denoiser whose adapter does something, its head its own matrix if it is to be."""
    dtype = torch.bfloat16 if "bfloat16" in case else None
    denoiser = Denoiser.create(load_backbone("tiny", dtype=dtype), DenoiserConfig(rank=4, alpha=8))
    stir(denoiser)
    if "untied" in case:
        own = denoiser.causal_lm.lm_head.weight.detach().flip(0)
        denoiser.causal_lm.lm_head.weight = nn.Parameter(own, requires_grad=False)
    return denoiser


def adapter(denoiser: Denoiser) -> torch.Tensor:
    """Its weights, one after the other."""
    named = sorted((n, p) for n, p in denoiser.model.named_parameters() if "lora_" in n)
    return torch.cat([p.detach().flatten() for _, p in named]).float()


def kept(denoiser: Denoiser) -> int:
    """Numbers of the backbone that this process holds."""
    parts = [p for n, p in denoiser.model.named_parameters() if "lora_" not in n]
    return sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in parts)


def stopping(step: int):
    """Ask the first process alone to end, in the middle of a run."""

    def on_row(row: dict) -> None:
        if row["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_row


def log(rows: list[dict]) -> list[dict]:
    """Without what hangs on the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def compare(case: str) -> dict:
    """Both runs of a case: rows, adapters, and how much each keeps."""
    found = {}
    for sharded in (False, True):
        denoiser = fresh(case)
        rows = train(
            denoiser, PAIRS, TrainConfig(**BASIC | CASES[case], shard=sharded), held_out=HELD
        )
        found["sharded" if sharded else "whole"] = {
            "rows": log(rows),
            "adapter": adapter(denoiser),
            "kept": kept(denoiser),
        }
    return found


def turns(rank: int) -> list[float]:
    """When this process began and ended its turn; the first one's ends in an error."""
    began = None
    try:
        with in_turn(torch.device("cpu")):
            began = time.monotonic()
            time.sleep(0.3)
            ended = time.monotonic()
            if rank == 0:
                raise OSError("no memory left")
    except OSError:
        assert rank == 0
    return [began, ended]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # What the kernels are compiled to is not in question, and takes minutes.
    compile_ = torch.compile
    torch.compile = lambda f, **how: compile_(f, backend="eager", **how)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(turns(rank), folder / f"turns-{rank}.pt")
    for case in CASES:
        torch.save(compare(case), folder / f"{case}-{rank}.pt")

    # A whole run; the same one stopped, and gone on with here without shards.
    config, whole = TrainConfig(**LONG, shard=True), fresh()
    train(whole, PAIRS, config, folder / "whole", held_out=HELD)
    train(fresh(), PAIRS, config, folder / "part", on_row=stopping(3), held_out=HELD)
    dist.barrier()
    if rank == 0:
        shutil.copytree(folder / "part", folder / "again")
    dist.barrier()
    train(fresh(), PAIRS, TrainConfig(**LONG), folder / "again", resume=True, held_out=HELD)
    # What one process began, gone on with by two, in shards.
    train(
        fresh(),
        PAIRS,
        TrainConfig(**LONG | {"accumulate": 2}, shard=True),
        folder / "begun",
        resume=True,
        held_out=HELD,
    )
    # Sharded twice is sharded once, and a pass still works.
    shard(whole)
    with torch.no_grad():
        logits = whole.logits(*(torch.tensor([[5, 6, 7]]) for _ in range(2)))
    state = {n: p.detach() for n, p in whole.model.named_parameters() if "lora_" in n}
    torch.save((logits, state), folder / f"logits-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
