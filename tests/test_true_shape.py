"""Training throughput and random weights, tiny and on a CPU: what is measured, not how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run

from lad.diffusion.adapter import read_card, shipped_adapters
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.throughput import AIM, flops_per_token, training_throughput
from lad.models.registry import load_backbone
from lad.training import TrainConfig, read_config
from lad.utils import InvalidInput

ROOT = Path(__file__).resolve().parent.parent
CONFIG = TrainConfig(steps=100, widths=(32, 64), batch_tokens=128, accumulate=2)


@pytest.fixture(scope="module")
def fresh() -> Denoiser:
    return Denoiser.create(load_backbone("tiny:random"), DenoiserConfig(rank=4, alpha=8))


def test_training_throughput_is_measured(fresh):
    steps: list[tuple[int, int]] = []
    run = training_throughput(fresh, CONFIG, 4, lambda *n: steps.append(n))
    assert steps[-1] == (9, 9)
    assert run["positions_per_step"] == 256 and run["steps"] == 4
    assert run["tokens_per_second"] == pytest.approx(256 / run["step_seconds"])
    assert run["hours"] == pytest.approx(AIM / run["tokens_per_second"] / 3600)
    assert run["peak_memory"] > 10**7 and run["config"] == CONFIG.to_dict()
    assert json.loads(json.dumps(run)) == run
    with pytest.raises(InvalidInput, match="steps = 0"):
        training_throughput(fresh, CONFIG, 0)


def test_operations_are_counted_from_shapes(fresh):
    """Against torch's counter, for a step on every position; attention products set apart."""
    from torch.utils.flop_counter import FlopCounterMode

    for name, parameter in fresh.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones((2, 1, 16, 16), dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        states = fresh.hidden_states(tokens, mask)
        fresh.causal_lm.lm_head(states).sum().backward()
    multiplied = sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    counted = 32 * flops_per_token(fresh, 1.0)["total"]
    # The first layer passes no gradient on, which the count leaves out of account.
    assert 0.8 * counted < multiplied <= counted
    assert flops_per_token(fresh, 0.5)["head"] == 0.5 * flops_per_token(fresh, 1.0)["head"]


def test_the_shipped_configurations_are_valid_and_as_large_as_they_say():
    for name, folder in shipped_adapters().items():
        values = read_config(ROOT / "configs" / f"{name}.yaml")
        assert DenoiserConfig.from_dict(values["denoiser"]) == read_card(folder)[0]
        assert TrainConfig.from_dict(values["training"]).context == read_card(folder)[0].context
    for name, rank, layers in (("llama-3.1-8b", 64, 7), ("llama-3.1-8b-paper", 512, 2)):
        values = read_config(ROOT / "configs" / f"{name}.yaml")
        config = TrainConfig.from_dict(values["training"])
        denoiser = DenoiserConfig.from_dict(values["denoiser"])
        assert (denoiser.rank, len(denoiser.layers)) == (rank, layers)
        assert not config.fold_lora, "a second copy of 8 B weights is what does not fit"
        positions = config.steps * config.batch_tokens * config.accumulate
        assert positions == pytest.approx(AIM, rel=0.03)
    paper = TrainConfig.from_dict(read_config(ROOT / "configs/llama-3.1-8b-paper.yaml")["training"])
    assert (paper.learning_rate, paper.gradient_clip, paper.batch_tokens) == (1e-5, 0.5, 8 * 256)
    assert "replace" not in paper.corruption.kinds  # which the authors' code never applies


def test_the_command_needs_pairs_unless_it_only_measures(tmp_path, capsys):
    for arguments in ([], ["--pairs=x.jsonl"]):
        status, _, err = run(capsys, "train", "--model=tiny", *arguments)
        assert status == 2 and "--dry-run" in err
    config, record = tmp_path / "c.yaml", tmp_path / "runs.json"
    config.write_text(
        "denoiser: {rank: 4, alpha: 4, layers: [q_proj, v_proj], attention: bidirectional, "
        "target: same}\ntraining: {widths: [64], batch_tokens: 128, loss_chunk: 32}\n"
    )
    common = ["train", "--dry-run", "--model=tiny:random", f"--config={config}", "--device=cpu"]
    common += ["--steps=2", f"--record={record}"]
    status, out, _ = run(capsys, *common, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["config"]["loss_chunk"] == 32 and found["denoiser"]["target"] == "same"
    assert 0 < found["of_matrix_rate"] < 1.5 and found["provenance"]["model"] == "tiny:random"
    status, out, _ = run(capsys, *common)
    assert status == 0 and "200 million tokens take" in out
    runs = json.loads(record.read_text())["runs"]
    assert [one["kind"] for one in runs] == ["training", "training"] and runs[0] == found
