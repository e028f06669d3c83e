"""A backbone in shards: the same training, in two processes on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded import CASES, HELD, LONG, PAIRS, adapter, fresh, kept, stopping

from lad.__main__ import main
from lad.diffusion.adapter import load_denoiser
from lad.training import TrainConfig, sharding, train
from lad.utils import InvalidInput

TESTS = Path(__file__).resolve().parent


def two_processes(*command: str) -> subprocess.CompletedProcess:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(start, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the two processes of tests/sharded.py left."""
    folder = tmp_path_factory.mktemp("sharded")
    accumulating = TrainConfig(**LONG | {"accumulate": 2})
    train(fresh(), PAIRS, accumulating, folder / "begun", on_row=stopping(3), held_out=HELD)
    two_processes(str(TESTS / "sharded.py"), str(folder))
    return folder


@pytest.mark.parametrize("case", CASES)
def test_shards_do_not_show(folder, case):
    for rank in range(2):
        found = torch.load(folder / f"{case}-{rank}.pt")
        whole, sharded = found["whole"], found["sharded"]
        if rank == 0:
            assert len(sharded["rows"]) >= 6
            for got, expected in zip(sharded["rows"], whole["rows"], strict=True):
                assert got.keys() == expected.keys()
                if "loss" in got:
                    assert got == pytest.approx(expected, rel=1e-5)
                else:
                    assert all(
                        got["validation"][f] == pytest.approx(s, rel=1e-5)
                        for f, s in expected["validation"].items()
                    )
        torch.testing.assert_close(sharded["adapter"], whole["adapter"], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(sharded["adapter"], adapter(fresh(case)), atol=1e-4), "it learnt"
        first = torch.load(folder / f"{case}-0.pt")["sharded"]["adapter"]
        assert torch.equal(sharded["adapter"], first), "one adapter, whoever is asked"


@pytest.mark.parametrize("case", CASES)
def test_each_keeps_half_and_a_matrix_that_is_tied(folder, case):
    whole = kept(fresh(case))
    tied = 0 if "untied" in case else fresh().causal_lm.lm_head.weight.numel()
    for rank in range(2):
        found = torch.load(folder / f"{case}-{rank}.pt")
        assert found["whole"]["kept"] == whole
        assert found["sharded"]["kept"] == tied + (whole - tied) // 2


def weights(path: Path) -> torch.Tensor:
    return adapter(load_denoiser("tiny", path / "adapter", merge=False))


def test_a_run_in_shards_is_kept_and_gone_on_with_by_anyone(folder):
    """Stopped by a signal to one of two; gone on with by two without shards, and by one."""
    stopped = torch.load(folder / "part" / "checkpoint.pt", weights_only=True)
    assert stopped["shares"] == 2 and 3 < stopped["step"] < 16
    assert not (folder / "part" / "adapter").exists()
    torch.testing.assert_close(weights(folder / "again"), weights(folder / "whole"))
    alone = fresh()
    rows = train(alone, PAIRS, TrainConfig(**LONG), folder / "part", resume=True, held_out=HELD)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 17))
    torch.testing.assert_close(
        weights(folder / "part"), weights(folder / "whole"), atol=1e-3, rtol=1e-2
    )


def test_a_run_begun_by_one_goes_on_in_shards(folder):
    expected = fresh()
    train(expected, PAIRS, TrainConfig(**LONG | {"accumulate": 2}), held_out=HELD)
    log = (folder / "begun" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if "loss" in line] == list(range(1, 17))
    torch.testing.assert_close(weights(folder / "begun"), adapter(expected), atol=1e-3, rtol=1e-2)


def test_what_is_sharded_can_still_be_asked_by_all_at_once(folder):
    for rank in range(2):
        got, state = torch.load(folder / f"logits-{rank}.pt")
        denoiser = fresh()
        denoiser.model.load_state_dict(state, strict=False)
        with torch.no_grad():
            expected = denoiser.logits(*(torch.tensor([[5, 6, 7]]) for _ in range(2)))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_processes_take_turns_also_after_an_error(folder):
    first, second = (torch.load(folder / f"turns-{rank}.pt") for rank in range(2))
    assert first[0] < first[1] <= second[0] < second[1]


def test_a_dry_run_in_shards_begins_in_the_hosts_memory(tmp_path):
    config, record = tmp_path / "config.yaml", tmp_path / "runs.json"
    config.write_text(
        "denoiser: {rank: 4, alpha: 8}\n"
        "training: {widths: [64], batch_tokens: 128, draft_probability: 0.5, loss_chunk: 32, "
        "draft_length: 2, shard: true}\n"
    )
    command = ["-m", "lad", "train", "--dry-run", "--model=tiny:random", f"--config={config}"]
    done = two_processes(*command, "--device=cpu", "--steps=3", f"--record={record}")
    assert "sharded: " in done.stdout and done.stdout.count("tokens/s") == 1
    [run] = json.loads(record.read_text())["runs"]
    assert run["processes"] == 2 and run["config"]["shard"] is True
    assert run["positions_per_step"] == 256


# -- what cannot be sharded ------------------------------------------------------------------------


def test_one_process_has_nobody_to_share_with(tmp_path, capsys):
    with pytest.raises(InvalidInput, match="shard = true with 1 process: expected at least 2"):
        train(fresh(), PAIRS, TrainConfig(**LONG, shard=True), held_out=HELD)
    config = tmp_path / "config.yaml"
    config.write_text("training: {shard: true}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--dry-run", "--model=llama-3.1-8b", f"--config={config}"])
    assert stopped.value.code == 2
    assert "torchrun" in capsys.readouterr().err, "said before the weights are looked for"


def test_quantised_weights_and_spread_devices_are_refused(monkeypatch):
    monkeypatch.setattr(sharding, "here", lambda: (0, 2))
    sharding.check_shardable(None, "cuda:1")
    with pytest.raises(InvalidInput, match="shard = true with 4-bit weights"):
        sharding.check_shardable(4, "cuda:0")
    with pytest.raises(InvalidInput, match="device 'spread': expected one GPU a process"):
        sharding.check_shardable(None, "spread")


def test_shard_is_a_switch_that_may_change_when_a_run_is_resumed():
    with pytest.raises(InvalidInput, match="shard = 'yes': expected true or false"):
        TrainConfig(shard="yes")
    assert TrainConfig(shard=True).outcome() == TrainConfig().outcome()
