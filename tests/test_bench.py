"""`lad bench`: what its numbers are made of, on the tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import run, tiny_denoiser

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import refine_batch
from lad.evaluation import throughput
from lad.evaluation.throughput import add_run, bench, machine_rates, roofline
from lad.models.registry import load_backbone
from lad.utils import CacheError, DamagedFile

RATES = ("bytes_per_second", "flops_per_second")
FEW = RefineConfig(iterations=4, answer_length=8)
PROMPTS = ["hello", "a longer one", "hi"]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny").model


@pytest.fixture(autouse=True)
def rates(monkeypatch, request):
    """The machine is measured once: each time takes as long as a test."""
    if "plausible" not in request.node.name:
        monkeypatch.setattr(throughput, "machine_rates", lambda *_: dict.fromkeys(RATES, 1e9))


@pytest.fixture(scope="module")
def result(backbone) -> dict:
    return bench(tiny_denoiser(), backbone, PROMPTS, FEW, (8, 16), (1, 2), reference_prompts=3)


def test_the_json_holds_what_is_promised(result):
    assert {"speedup_vs_reference", "speedup_vs_generate", "nfe", "tpf", "device"} <= set(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    cells = [(c["window"], c["batch"], c["rounds"]) for c in result["cells"]]
    assert cells == [(8, 1, 3), (8, 2, 2), (16, 1, 3), (16, 2, 2)]
    assert result["speedup_vs_reference"] == result["cells"][0]["speedup_vs_reference"]["value"] > 0
    assert result["speedup_vs_generate"] == result["cells"][0]["speedup_vs_generate"]["value"] > 0
    assert result["config"] == FEW.to_dict() and result["device"] == "cpu"
    alone, both = result["cells"][:2]
    assert alone["speedup_vs_lookup"]["value"] == result["speedup_vs_lookup"] > 0
    assert both["lookup"] is None and alone["static"] is None, "one at a time; on a GPU"
    tokens = alone["generate"]["seconds_per_token"], alone["sampler"]["seconds_per_token"]
    assert all(one["low"] <= one["value"] <= one["high"] for one in tokens)


def test_numbers_of_sampler_and_reference_are_those_of_a_run(result):
    traces = refine_batch(tiny_denoiser(), PROMPTS, FEW)
    alone, both = result["cells"][:2]
    nfe = [trace.nfe for trace in traces]
    assert alone["sampler"]["nfe"] == sum(nfe) / 3
    assert len(alone["sampler"]["step_seconds"]) == max(nfe)
    assert alone["sampler"]["tpf"] == sum(trace.tokens for trace in traces) / sum(nfe)
    assert alone["reference"]["drafts_equal"] == 1.0 and both["reference"] is None
    # A batch is compared with the reference run once for each of its answers.
    one = alone["reference"]["seconds_per_answer"]
    times = [one / seconds for seconds in both["sampler"]["seconds_by_round"]]
    assert both["speedup_vs_reference"]["value"] == pytest.approx(sum(times) / 2)


def test_ratios_are_of_what_was_timed(backbone, monkeypatch):
    """With a clock that moves by itself, a way that takes twice as long is half as fast."""
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    def slow(denoiser, ids, config):
        now[0] += 10.0 * config.iterations
        return refine_batch(denoiser, [ids], config)[0].steps

    def forward(denoiser, ids, answer):
        now[0] += 3.0

    def fast(denoiser, chunk, config, batch_size):
        now[0] += 0.5 * config.iterations * len(chunk)
        return refine_batch(denoiser, chunk, config)

    answers = throughput.greedy_answers
    monkeypatch.setattr(throughput.reference, "refine", slow)
    monkeypatch.setattr(throughput.reference, "answer_logits", forward)
    monkeypatch.setattr(throughput, "refine_batch", fast)
    monkeypatch.setattr(
        throughput,
        "greedy_answers",
        lambda *given, **more: replace(answers(*given, **more), seconds=8.0),
    )
    config = replace(FEW, patience=0)  # four iterations, two seconds an answer
    result = bench(
        tiny_denoiser(), backbone, PROMPTS, config, (8,), (1, 3), 3, reference_iterations=2
    )
    alone, together = result["cells"]
    assert alone["speedup_vs_reference"]["value"] == 20.0
    assert alone["speedup_vs_reference_forwards"]["value"] == 6.0
    assert alone["speedup_vs_generate"] == {"value": 4.0, "low": 4.0, "high": 4.0, "n": 3}
    assert alone["sampler"]["seconds_per_answer"] == together["sampler"]["seconds_per_answer"] == 2
    assert together["speedup_vs_reference"]["value"] == 20.0
    assert together["speedup_vs_generate"]["value"] == 8 / 6


def test_the_roofline_is_weights_read_once_or_arithmetic_done_once():
    denoiser = tiny_denoiser()
    weights = denoiser.backbone.model.state_dict()
    matrices = [n for n, w in weights.items() if ".layers." in n and w.dim() == 2]
    layers = sum(weights[name].numel() for name in matrices if "lora" not in name)
    head = denoiser.vocabulary_size * denoiser.causal_lm.config.hidden_size
    one = roofline(denoiser, dict.fromkeys(RATES, 1e30) | {"bytes_per_second": 1.0}, 1, 5, 8)
    assert one["weight_bytes"] == one["seconds"] == 4 * (layers + head)
    many = roofline(denoiser, dict.fromkeys(RATES, 1.0) | {"bytes_per_second": 1e30}, 3, 5, 8)
    assert many["flops"] == many["seconds"] == 3 * one["flops"]
    # 9 queries: eight answer positions and the last of the prompt, which predicts the first.
    scores = 4 * 2 * 64 * 9 * 13
    assert one["flops"] == 2 * layers * 9 + 2 * head * 8 + scores


def test_rates_of_this_machine_are_plausible():
    rates = machine_rates(torch.device("cpu"), torch.float32)
    assert 1e8 < rates["bytes_per_second"] < 1e13 and 1e8 < rates["flops_per_second"] < 1e15


def test_runs_are_added_to_a_file_of_runs_only(tmp_path):
    path = tmp_path / "deep" / "runs.json"
    add_run(path, {"kind": "a"})
    add_run(path, {"kind": "b"})
    assert [run["kind"] for run in json.loads(path.read_text())["runs"]] == ["a", "b"]
    for text in ("[]", "{", '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(DamagedFile, match="expected measurements"):
            add_run(path, {})
        assert path.read_text() == text, "what is there stays there"
    with pytest.raises(CacheError, match="cannot write"):
        add_run(path / "runs.json", {})


def command(capsys, adapter, *arguments):
    return run(capsys, "bench", "--model=tiny", f"--adapter={adapter}", *arguments)


def test_the_command_times_windows_and_batches(capsys, adapter, tmp_path):
    setting = tmp_path / "few.json"
    setting.write_text(json.dumps(replace(FEW, remasking="none").to_dict()))
    out = tmp_path / "made" / "bench.json"
    arguments = [f"--setting={setting}", "--windows=8", "--batches=1,2"]
    more = ["--n-prompts=2", f"--out={out}", "--json"]
    status, shown, err = command(capsys, adapter, *arguments, *more)
    assert (status, err) == (0, "")
    result = json.loads(shown)
    assert result == json.loads(out.read_text())
    assert result["config"]["remasking"] == "none" and result["prompts"]["used"] == 2
    assert (result["setting"], result["graphs"]) == ("few", False)
    assert [cell["batch"] for cell in result["cells"]] == [1, 2]
    assert result["prompts"]["file"] == "held-out.txt" and len(result["prompts"]["sha256"]) == 64
    _, shown, _ = command(capsys, adapter, *arguments, "--n-prompts=1", "--reference-prompts=0")
    assert "× generate" in shown and "× lookup" in shown and "1 of 100 prompts" in shown


def test_random_weights_of_a_shape_are_timed_and_recorded(capsys, tmp_path):
    config, record = tmp_path / "c.yaml", tmp_path / "runs.json"
    config.write_text("denoiser: {rank: 4, alpha: 8}\n")
    arguments = ["--model=tiny:random", f"--config={config}", "--windows=16", "--batches=1,3"]
    arguments += ["--iterations=3", "--n-prompts=3", f"--record={record}", "--device=cpu"]
    status, shown, err = run(capsys, "bench", *arguments)
    assert (status, err) == (0, "") and "by roofline" in shown
    [result] = json.loads(record.read_text())["runs"]
    assert (result["kind"], result["bits"]) == ("iteration", 32)
    assert result["denoiser"]["rank"] == 4 and result["provenance"]["model"] == "tiny:random"
    assert [cell["sampler"]["nfe"] for cell in result["cells"]] == [3, 3], "they never settle"
    record.write_text("[]")  # refused before anything is timed
    status, _, err = run(capsys, "bench", *arguments)
    assert status == 2 and "expected measurements" in err


def test_what_was_timed_before_a_stop_is_kept(capsys, adapter, tmp_path, monkeypatch):
    measure, out = throughput._measure, tmp_path / "bench.json"

    def stopped(denoiser, backbone, ids, config, *rest):
        if config.answer_length > 8:
            raise KeyboardInterrupt
        return measure(denoiser, backbone, ids, config, *rest)

    monkeypatch.setattr(throughput, "_measure", stopped)
    arguments = ["--windows=8,16", "--batches=1,2", "--n-prompts=2", f"--out={out}"]
    status, _, _ = command(capsys, adapter, *arguments)
    assert status == 130
    kept = json.loads(out.read_text())
    assert [(cell["window"], cell["batch"]) for cell in kept["cells"]] == [(8, 1), (8, 2)]
    assert kept["speedup_vs_generate"] > 0 and kept["prompts"]["of"] == 100
