"""Dry runs and measurements at a true shape, tiny and on a CPU: what is told, not how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lad.__main__ import main
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.dry_run import AIM, dry_run, flops_per_token, made_up_pairs
from lad.evaluation.floor import floor
from lad.evaluation.true_shape import add_run, floor_of_bits, measure_iterations
from lad.models.registry import load_backbone
from lad.training import TrainConfig, read_config
from lad.utils import CacheError, DamagedFile, InvalidInput

ROOT = Path(__file__).resolve().parent.parent
SMALL = DenoiserConfig(rank=4, alpha=8)
CONFIG = TrainConfig(steps=100, widths=(32, 64), batch_tokens=256)


def fresh() -> Denoiser:
    return Denoiser.create(load_backbone("tiny:random"), SMALL)


# -- dry runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"loss_chunk": 32}])
def test_a_dry_run_measures_and_changes_nothing(knobs):
    denoiser = fresh()
    before = {k: v.clone() for k, v in denoiser.model.state_dict().items()}
    told: list[tuple[int, int]] = []
    config = TrainConfig.from_dict(CONFIG.to_dict() | knobs)
    run = dry_run(denoiser, config, 4, lambda *n: told.append(n))
    assert told[-1] == (9, 9)
    assert run["positions_per_step"] == 256 and run["steps"] == 4
    assert run["tokens_per_second"] == pytest.approx(256 / run["step_seconds"])
    assert run["hours"] == pytest.approx(AIM / run["tokens_per_second"] / 3600)
    assert run["peak_memory"] > 10**7
    assert json.loads(json.dumps(run)) == run
    after = denoiser.model.state_dict()
    assert all(torch.equal(w, after[k]) for k, w in before.items())
    assert not denoiser.model.training


def test_a_dry_run_accumulates_as_the_run_would():
    run = dry_run(fresh(), TrainConfig(widths=(64,), batch_tokens=128, accumulate=3), 2)
    assert run["positions_per_step"] == 3 * 128
    with pytest.raises(InvalidInput, match="steps = 0"):
        dry_run(fresh(), CONFIG, 0)


def test_made_up_pairs_are_pairs():
    denoiser = fresh()
    for context in (2, 8, 64):
        pairs = made_up_pairs(denoiser, 20, context)
        assert pairs.tokens.shape == (20, context)
        assert (pairs.prompt_lengths >= 1).all() and (pairs.ends < context).all()
        assert (pairs.ends >= pairs.prompt_lengths).all()
        at_end = pairs.tokens[torch.arange(20), pairs.ends]
        assert (at_end == denoiser.eos_token_id).all()


def test_operations_are_counted_from_shapes():
    """Against torch's own counter, for a step on every position; attention products set apart."""
    from torch.utils.flop_counter import FlopCounterMode

    denoiser = fresh()
    for name, parameter in denoiser.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones((2, 1, 16, 16), dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        states = denoiser.hidden_states(tokens, mask)
        denoiser.causal_lm.lm_head(states).sum().backward()
    multiplied = sum(
        count
        for operation, count in counter.get_flop_counts()["Global"].items()
        if operation in (torch.ops.aten.mm, torch.ops.aten.addmm)
    )
    counted = 32 * flops_per_token(denoiser, 1.0)["total"]
    # The first layer has no states to be sent back to, which the count does not know.
    assert 0.8 * counted < multiplied <= counted
    assert flops_per_token(denoiser, 0.5)["head"] == 0.5 * flops_per_token(denoiser, 1.0)["head"]


def test_the_8b_configurations_are_valid_and_as_large_as_they_say():
    for name, rank, layers in (("llama-3.1-8b", 64, 7), ("llama-3.1-8b-paper", 512, 2)):
        values = read_config(ROOT / "configs" / f"{name}.yaml")
        config = TrainConfig.from_dict(values["training"])
        denoiser = DenoiserConfig(**values["denoiser"])
        assert (denoiser.rank, len(denoiser.layers)) == (rank, layers)
        assert not config.fold_lora, "a second copy of 8 B weights is what does not fit"
        positions = config.steps * config.batch_tokens * config.accumulate
        assert positions == pytest.approx(AIM, rel=0.03)
    paper = TrainConfig.from_dict(read_config(ROOT / "configs/llama-3.1-8b-paper.yaml")["training"])
    assert (paper.learning_rate, paper.gradient_clip, paper.batch_tokens) == (1e-5, 0.5, 8 * 256)


def test_the_command_needs_pairs_unless_it_only_measures(tmp_path, capsys):
    for arguments in ([], ["--pairs=x.jsonl"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--model=tiny", *arguments])
        assert stopped.value.code == 2 and "--dry-run" in capsys.readouterr().err
    config = tmp_path / "c.yaml"
    config.write_text(
        "denoiser: {rank: 4, alpha: 4, layers: [q_proj, v_proj], attention: bidirectional, "
        "target: same}\ntraining: {widths: [64], batch_tokens: 128, loss_chunk: 32}\n"
    )
    record = tmp_path / "runs.json"
    common = ["train", "--dry-run", "--model=tiny:random", f"--config={config}", "--device=cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--steps=2", f"--record={record}", "--json"])
    assert not stopped.value.code
    run = json.loads(capsys.readouterr().out)
    assert run["config"]["loss_chunk"] == 32 and run["denoiser"]["target"] == "same"
    assert 0 < run["of_matrix_rate"] < 1.5 and run["provenance"]["model"] == "tiny:random"
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--steps=2", f"--record={record}"])
    assert not stopped.value.code
    assert "200 million tokens take" in capsys.readouterr().out
    held = json.loads(record.read_text())["runs"]
    assert [one["kind"] for one in held] == ["training", "training"] and held[0] == run


def test_a_dry_run_on_two_processes_is_told_once(tmp_path):
    record = tmp_path / "runs.json"
    config = tmp_path / "c.yaml"
    config.write_text("training: {widths: [64], batch_tokens: 128}\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "lad"]
    command += ["train", "--dry-run", "--model=tiny:random", f"--config={config}", "--device=cpu"]
    command += ["--steps=3", f"--record={record}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    [run] = json.loads(record.read_text())["runs"]
    assert run["processes"] == 2 and run["positions_per_step"] == 256
    assert done.stdout.count("tokens/s") == 1


# -- iterations ------------------------------------------------------------------------------------


def test_iterations_are_measured_beside_floor_reference_and_generate(tmp_path):
    run = measure_iterations("tiny:random", "cpu", SMALL, (16,), (1, 3), iterations=3)
    assert (run["kind"], run["bits"], run["graphs"]) == ("iteration", 32, False)
    first, second = run["cells"]
    assert (first["window"], first["batch"], second["batch"]) == (16, 1, 3)
    for cell in run["cells"]:
        assert cell["sampler"]["nfe"] == 3, "random weights never settle"
        assert cell["sampler"]["iteration_by_floor"] > 0.5
        assert cell["speedup_vs_reference"]["value"] > 1
        assert cell["speedup_vs_generate"]["value"] is not None
    assert first["reference"]["drafts_equal"] == 1
    alone = measure_iterations(
        "tiny:random", "cpu", SMALL, (16,), (1,), iterations=2, reference_iterations=None
    )
    assert alone["cells"][0]["reference"] is None


def test_the_floor_of_fewer_bits_reads_fewer_bytes():
    rates = {"bytes_per_second": 1e6, "flops_per_second": 1e15, "flops_per_second_of_normals": 1e15}
    denoiser = fresh()
    plain = floor(denoiser, rates, 2, 20, 16)
    assert floor_of_bits(denoiser, rates, 2, 20, 16) == plain
    few = SimpleNamespace(
        causal_lm=denoiser.causal_lm,
        config=denoiser.config,
        backbone=SimpleNamespace(spec=SimpleNamespace(bits=4)),
    )
    head = 4 * denoiser.causal_lm.lm_head.weight.numel()
    got = floor_of_bits(few, rates, 2, 20, 16)
    assert got["weight_bytes"] == head + (plain["weight_bytes"] - head) // 8
    assert got["flops"] == plain["flops"] and got["seconds"] == got["memory_seconds"]


def test_the_command_records_what_it_measures(tmp_path, capsys):
    record = tmp_path / "deep" / "runs.json"
    arguments = ["bench-shape", "tiny", "--windows=16", "--batches=1", "--iterations=2"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--reference-iterations=0", f"--record={record}", "--device=cpu"])
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "x its floor" in out and "– x reference" in out
    [run] = json.loads(record.read_text())["runs"]
    assert run["cells"][0]["window"] == 16
    assert run["command"] == " ".join(
        ["lad bench-shape tiny --windows 16 --batches 1 --iterations 2 --reference-iterations 0",
         "--record"]
    )  # fmt: skip
    for wrong in (["--bits=5"], ["--iterations=1"], ["--batches=0"], ["--reference-iterations=-1"]):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *wrong])
        assert stopped.value.code == 2, wrong
    with pytest.raises(SystemExit) as stopped:
        main(["bench-shape", "gpt-5"])
    assert stopped.value.code == 2 and "gpt-5" in capsys.readouterr().err


def test_runs_are_added_to_a_file_of_runs_only(tmp_path):
    path = tmp_path / "runs.json"
    add_run(path, {"kind": "a"})
    add_run(path, {"kind": "b"})
    assert [run["kind"] for run in json.loads(path.read_text())["runs"]] == ["a", "b"]
    for text in ("[]", "{", '{"schema": 99, "runs": []}', '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(DamagedFile, match="holds no measurements"):
            add_run(path, {})
        assert path.read_text() == text, "what is there stays there"
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        add_run(tmp_path / "file" / "runs.json", {})
