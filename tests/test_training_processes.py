"""Several processes train one adapter, with the backbone whole or in shards: two, on a CPU.

`torchrun` starts this file as a script.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from conftest import json_lines, stir
from torch import nn

from lad.__main__ import main as lad_main
from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, train
from lad.training.trainer import process_mesh
from lad.utils import InvalidInput

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


def two_processes(*command: str) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(start, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes of this file as a script left."""
    folder = tmp_path_factory.mktemp("processes")
    accumulating = TrainConfig(**LONG | {"accumulate": 2})
    with pytest.raises(SystemExit):
        train(fresh(), PAIRS, accumulating, folder / "begun", on_row=stop_at(3), held_out=HELD)
    two_processes(__file__, str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_shards_do_not_show_and_each_keeps_half(folder, case):
    for rank in range(2):
        found = torch.load(folder / f"{case}-{rank}.pt")
        whole, sharded = found["whole"], found["sharded"]
        assert len(sharded["rows"]) >= 6 and sharded["rows"][0] == whole["rows"][0]
        for got, expected in zip(sharded["rows"][1:], whole["rows"][1:], strict=True):
            assert got.keys() == expected.keys()
            if "loss" in got:
                assert got == pytest.approx(expected, rel=1e-5)
            else:
                for fraction, scores in expected["validation"].items():
                    assert got["validation"][fraction] == pytest.approx(scores, rel=1e-5)
        torch.testing.assert_close(sharded["adapter"], whole["adapter"], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(sharded["adapter"], adapter(fresh(case)), atol=1e-4), "it learnt"
        first = torch.load(folder / f"{case}-0.pt")["sharded"]["adapter"]
        assert torch.equal(sharded["adapter"], first)
        assert whole["kept"] == layer_numbers(fresh(case)) == 2 * sharded["kept"]


def weights(path: Path) -> torch.Tensor:
    return adapter(load_denoiser("tiny", path / "adapter", merge=False))


def test_a_run_in_shards_is_resumed_by_any_number_of_processes(folder):
    """Stopped by a signal to one of two; resumed by one."""
    stopped = torch.load(folder / "part" / "checkpoint.pt", weights_only=True)["run"]
    assert stopped["parts"] == 2 and 3 < stopped["step"] < 12
    assert not (folder / "part" / "adapter").exists()
    alone = fresh()
    rows = train(alone, PAIRS, TrainConfig(**LONG), folder / "part", resume=True, held_out=HELD)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["tokens"] for row in rows if "loss" in row][-1] == 12 * 2 * 384
    expected = weights(folder / "whole")
    torch.testing.assert_close(weights(folder / "part"), expected, atol=1e-3, rtol=1e-2)


def test_a_run_begun_by_one_process_is_resumed_in_shards(folder):
    expected = fresh()
    train(expected, PAIRS, TrainConfig(**LONG | {"accumulate": 2}), held_out=HELD)
    log = (folder / "begun" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if "loss" in line] == list(range(1, 13))
    torch.testing.assert_close(weights(folder / "begun"), adapter(expected), atol=1e-3, rtol=1e-2)


def test_the_command_trains_in_two_processes(tmp_path):
    pairs, config, out = tmp_path / "pairs.jsonl", tmp_path / "config.yaml", tmp_path / "out"
    pairs.write_text(json_lines(PAIRS))
    config.write_text(
        "denoiser: {rank: 4, alpha: 8}\n"
        "training: {widths: [96], batch_tokens: 384, log_every: 3, shard: true}\n"
    )
    command = ["-m", "lad", "train", "--model=tiny", f"--pairs={pairs}", f"--config={config}"]
    done = two_processes(*command, f"--out={out}", "--device=cpu", "--steps=6")
    assert done.stderr.count("wrote ") == 1 and done.stderr.count("step      3") == 1
    rows = [json.loads(line) for line in (out / "training_log.jsonl").open()]
    assert rows[1]["step"] == 3 and rows[1]["tokens"] == 3 * 2 * 384
    assert [row["step"] for row in rows] == [0, 3, 6, 6]
    load_denoiser("tiny", out / "adapter")


def test_what_cannot_be_sharded_is_refused_before_weights_are_read(tmp_path, capsys):
    with pytest.raises(InvalidInput, match="shard = true with 1 process"):
        train(fresh(), PAIRS, TrainConfig(**LONG, shard=True), held_out=HELD)
    config = tmp_path / "config.yaml"
    config.write_text("training: {shard: true}\n")
    with pytest.raises(SystemExit) as stopped:
        lad_main(["train", "--dry-run", "--model=llama-3.1-8b", f"--config={config}"])
    assert stopped.value.code == 2 and "torchrun" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match=r"shard = true with 2 process\(es\) and 4-bit weights"):
        process_mesh(4, torch.device("cpu"), type("Two", (), {"num_processes": 2}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
