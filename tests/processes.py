"""What tests/test_training_processes.py starts in two processes: training whole and in shards."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from conftest import stir
from torch import nn

from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, train

PAIRS = [Pair(f"say {n} and {m}", f"{n} {m}!") for n in range(10) for m in range(9)]
HELD = PAIRS[:7]
BASIC = {"steps": 6, "learning_rate": 2e-3, "warmup_steps": 2, "fold_lora": False}
BASIC |= {"widths": (96,), "batch_tokens": 384, "log_every": 1}
MEMORY = {"compile_layers": True, "loss_chunk": 16, "gradient_checkpointing": True}
CASES = {
    "tied": {"accumulate": 2, "ema": 0.5, "gradient_clip": 1e-3, "validate_every": 3},
    "untied bfloat16": MEMORY | {"causal_lm_fraction": 0.3},
}
LONG = BASIC | {"steps": 12}


def fresh(case: str = "") -> Denoiser:
    """A tiny denoiser whose adapter does something; "untied" gives its head its own matrix."""
    dtype = torch.bfloat16 if "bfloat16" in case else None
    denoiser = Denoiser.create(load_backbone("tiny", dtype=dtype), DenoiserConfig(rank=4, alpha=8))
    stir(denoiser)
    if "untied" in case:
        matrix = denoiser.causal_lm.lm_head.weight.detach().flip(0)
        denoiser.causal_lm.lm_head.weight = nn.Parameter(matrix, requires_grad=False)
    return denoiser


def adapter(denoiser: Denoiser) -> torch.Tensor:
    named = sorted((n, p) for n, p in denoiser.model.named_parameters() if "lora_" in n)
    return torch.cat([p.detach().flatten() for _, p in named]).float()


def layer_numbers(denoiser: Denoiser) -> int:
    """Numbers of the decoder layers, without LoRA, in this process."""
    named = denoiser.causal_lm.model.layers.named_parameters()
    parts = [p for n, p in named if "lora_" not in n]
    return sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in parts)


def stop_at(step: int):
    """Ask the first process alone to end, in the middle of a run."""

    def on_row(row: dict) -> None:
        if row["step"] == step and int(os.environ.get("RANK", 0)) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_row


def compare(case: str) -> dict:
    found = {}
    for shard in (False, True):
        denoiser = fresh(case)
        config = TrainConfig(**BASIC | CASES[case], shard=shard)
        rows = train(denoiser, PAIRS, config, held_out=HELD)
        found["sharded" if shard else "whole"] = {
            "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
            "adapter": adapter(denoiser),
            "kept": layer_numbers(denoiser),
        }
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    compile_ = torch.compile  # compiling to kernels takes minutes
    torch.compile = lambda f, **how: compile_(f, backend="eager", **how)
    rank = Accelerator(cpu=True).process_index
    for case in CASES:
        torch.save(compare(case), folder / f"{case}-{rank}.pt")
    config = TrainConfig(**LONG, shard=True)
    train(fresh(), PAIRS, config, folder / "whole", held_out=HELD)
    with contextlib.suppress(SystemExit):
        train(fresh(), PAIRS, config, folder / "part", on_row=stop_at(3), held_out=HELD)
    config = TrainConfig(**LONG | {"accumulate": 2}, shard=True)
    train(fresh(), PAIRS, config, folder / "begun", resume=True, held_out=HELD)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
