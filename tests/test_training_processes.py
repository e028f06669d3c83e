"""Several processes train one adapter, with the backbone whole or in shards: two, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import json_lines
from processes import CASES, HELD, LONG, PAIRS, adapter, fresh, layer_numbers, stop_at

from lad.__main__ import main
from lad.diffusion.adapter import load_denoiser
from lad.training import TrainConfig, train
from lad.training.trainer import process_mesh
from lad.utils import InvalidInput


def two_processes(*command: str) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(start, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the two processes of tests/processes.py left."""
    folder = tmp_path_factory.mktemp("processes")
    accumulating = TrainConfig(**LONG | {"accumulate": 2})
    with pytest.raises(SystemExit):
        train(fresh(), PAIRS, accumulating, folder / "begun", on_row=stop_at(3), held_out=HELD)
    two_processes(str(Path(__file__).with_name("processes.py")), str(folder))
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
        main(["train", "--dry-run", "--model=llama-3.1-8b", f"--config={config}"])
    assert stopped.value.code == 2 and "torchrun" in capsys.readouterr().err
    with pytest.raises(InvalidInput, match=r"shard = true with 2 process\(es\) and 4-bit weights"):
        process_mesh(4, torch.device("cpu"), type("Two", (), {"num_processes": 2}))
