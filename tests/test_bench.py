"""`lad bench`: what its numbers are made of, on the tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import run, tiny_denoiser

from lad.diffusion.config import RefineConfig
from lad.diffusion.sampler import refine_batch
from lad.evaluation import bench as room
from lad.evaluation.bench import bench
from lad.evaluation.floor import floor, machine_rates
from lad.models.registry import load_backbone
from lad.utils import InvalidInput

FEW = RefineConfig(iterations=4, answer_length=8)
PROMPTS = ["hello", "a longer one", "hi"]


@pytest.fixture(scope="module")
def result() -> dict:
    backbone = load_backbone("tiny").model
    return bench(tiny_denoiser(), backbone, PROMPTS, FEW, windows=(8, 16), batches=(1, 2))


def test_the_json_holds_what_is_promised(result):
    assert {"speedup_vs_reference", "speedup_vs_generate", "nfe", "tpf", "device"} <= set(result)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [(c["window"], c["batch"], c["rounds"]) for c in result["cells"]] == [
        (8, 1, 3), (8, 2, 2), (16, 1, 3), (16, 2, 2),
    ]  # fmt: skip
    assert result["speedup_vs_reference"] == result["cells"][0]["speedup_vs_reference"]["value"] > 0
    assert result["speedup_vs_generate"] == result["cells"][0]["speedup_vs_generate"]["value"] > 0
    assert result["config"] == FEW.to_dict() and result["device"] == "cpu"


def test_reference_and_sampler_wrote_the_same_drafts(result):
    alone = [cell for cell in result["cells"] if cell["batch"] == 1]
    assert [cell["reference"]["drafts_equal"] for cell in alone] == [1.0, 1.0]
    assert all(cell["reference"] is None for cell in result["cells"] if cell["batch"] == 2)


def test_the_sampler_counts_are_those_of_a_run(result):
    traces = refine_batch(tiny_denoiser(), PROMPTS, FEW)
    own = result["cells"][0]["sampler"]
    nfe = [trace.nfe for trace in traces]
    assert own["nfe"] == sum(nfe) / 3 and len(own["step_seconds"]) == max(nfe)
    assert own["tpf"] == sum(trace.tokens for trace in traces) / sum(nfe)


def test_a_batch_is_compared_with_the_reference_run_one_by_one(result):
    alone, both = result["cells"][:2]
    times = [
        alone["reference"]["seconds_per_answer"] / seconds
        for seconds in both["sampler"]["seconds_by_round"]
    ]
    assert both["speedup_vs_reference"]["value"] == pytest.approx(sum(times) / 2)


def test_ratios_are_of_what_was_timed(monkeypatch):
    """With a clock that moves by itself, a way that takes twice as long is half as fast."""
    denoiser, now = tiny_denoiser(), [0.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
    sampler = room.refine_batch

    def slow(denoiser, ids, config):
        now[0] += 10.0 * config.iterations
        return sampler(denoiser, [ids], config)[0].steps

    def passes(denoiser, ids, answer):
        now[0] += 3.0

    def fast(denoiser, chunk, config, batch_size):
        now[0] += 0.5 * config.iterations * len(chunk)
        return sampler(denoiser, chunk, config)

    monkeypatch.setattr(room.reference, "refine", slow)
    monkeypatch.setattr(room.reference, "answer_logits", passes)
    monkeypatch.setattr(room, "refine_batch", fast)
    monkeypatch.setattr(room, "machine_rates", lambda device, dtype: {
        "bytes_per_second": 1e9, "flops_per_second": 1e9, "flops_per_second_of_normals": 1e9,
    })  # fmt: skip
    answers = room.greedy_answers

    def spoken(*arguments):
        return replace(answers(*arguments), seconds=8.0)

    monkeypatch.setattr(room, "greedy_answers", spoken)
    config = replace(FEW, patience=0)  # four iterations, two seconds an answer
    told = bench(
        denoiser, load_backbone("tiny").model, PROMPTS, config, (8,), (1, 3),
        reference_iterations=2,
    )  # fmt: skip
    alone, together = told["cells"]
    assert alone["speedup_vs_reference"]["value"] == 20.0
    assert alone["speedup_vs_reference_forwards"]["value"] == 6.0
    assert alone["speedup_vs_generate"] == {"value": 4.0, "low": 4.0, "high": 4.0, "n": 3}
    assert alone["sampler"]["seconds_per_answer"] == together["sampler"]["seconds_per_answer"] == 2
    assert together["speedup_vs_reference"]["value"] == 20.0
    assert together["speedup_vs_generate"]["value"] == 8 / 6


def test_the_floor_is_weights_read_once_or_arithmetic_done_once():
    denoiser = tiny_denoiser()
    rates = {"bytes_per_second": 1.0, "flops_per_second": 1e30, "flops_per_second_of_normals": 1e30}
    weights = denoiser.backbone.model.state_dict()
    layers = sum(
        w.numel()
        for n, w in weights.items()
        if ".layers." in n and w.dim() == 2 and "lora" not in n
    )
    head = denoiser.vocabulary_size * denoiser.causal_lm.config.hidden_size
    one = floor(denoiser, rates, 1, 5, 8)
    assert one["weight_bytes"] == one["seconds"] == 4 * (layers + head)
    rates = {"bytes_per_second": 1e30, "flops_per_second": 1.0, "flops_per_second_of_normals": 1.0}
    many = floor(denoiser, rates, 3, 5, 8)
    assert many["flops"] == many["seconds"] == 3 * one["flops"]
    # 9 queries: eight answer positions and the last of the prompt, which predicts the first.
    scores = 4 * 2 * 64 * 9 * 13
    assert one["flops"] == 2 * layers * 9 + 2 * head * 8 + scores


def test_rates_of_this_machine_are_plausible():
    rates = machine_rates(torch.device("cpu"), torch.float32)
    assert 1e8 < rates.pop("bytes_per_second") < 1e13
    assert len(rates) == 2 and all(1e8 < rate < 1e15 for rate in rates.values())


def test_a_reference_cut_short_still_gives_whole_answers():
    backbone = load_backbone("tiny").model
    told = bench(
        tiny_denoiser(), backbone, PROMPTS, FEW, (8,), (1,),
        reference_prompts=2, reference_iterations=1,
    )  # fmt: skip
    plain = told["cells"][0]["reference"]
    assert plain["iterations_run"] == 1 and told["prompts"]["by_reference"] == 2
    assert plain["seconds_per_answer"] > plain["iteration_seconds"]
    none = bench(tiny_denoiser(), backbone, PROMPTS, FEW, (8,), (1,), reference_prompts=0)
    assert none["speedup_vs_reference"] is None and none["cells"][0]["reference"] is None


def test_what_was_timed_before_a_stop_is_kept(adapter, tmp_path, monkeypatch, capsys):
    measure, out = room.Machine.measure, tmp_path / "bench.json"

    def stopped(self, config, *rest):
        if config.answer_length > 8:
            raise KeyboardInterrupt
        return measure(self, config, *rest)

    monkeypatch.setattr(room.Machine, "measure", stopped)
    arguments = ["--windows=8,16", "--batches=1,2", "--n-prompts=2", f"--out={out}"]
    status, _, _ = run(capsys, "bench", "--model=tiny", f"--adapter={adapter}", *arguments)
    assert status == 130
    kept = json.loads(out.read_text())
    assert [(cell["window"], cell["batch"]) for cell in kept["cells"]] == [(8, 1), (8, 2)]
    assert kept["speedup_vs_generate"] > 0 and kept["prompts"]["of"] == 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"windows": (0,)}, "windows = 0"),
        ({"batches": ()}, "0 batches"),
        ({"reference_iterations": 0}, "reference_iterations = 0"),
    ],
)
def test_nothing_to_time_is_said(change, said):
    values = {"prompts": PROMPTS, "config": FEW, "windows": (8,), "batches": (1,)} | change
    with pytest.raises(InvalidInput, match="expected") as caught:
        bench(tiny_denoiser(), load_backbone("tiny").model, **values)
    assert said in str(caught.value)


# -- the command -----------------------------------------------------------------------------------


def test_the_command_times_what_it_is_told_to(capsys, adapter, tmp_path):
    setting = tmp_path / "few.json"
    setting.write_text(json.dumps(replace(FEW, remasking="none").to_dict()))
    out = tmp_path / "made" / "bench.json"
    arguments = ["--model=tiny", f"--adapter={adapter}", f"--setting={setting}"]
    arguments += ["--windows=8", "--batches=1,2"]
    status, shown, err = run(capsys, "bench", *arguments, "--n-prompts=2", f"--out={out}", "--json")
    assert (status, err) == (0, "")
    told = json.loads(shown)
    assert told == json.loads(out.read_text())
    assert told["config"]["remasking"] == "none" and told["prompts"]["used"] == 2
    assert [cell["batch"] for cell in told["cells"]] == [1, 2]
    assert told["prompts"]["file"] == "held-out.txt" and len(told["prompts"]["sha256"]) == 64
    status, shown, _ = run(capsys, "bench", *arguments, "--n-prompts=1", "--reference-prompts=0")
    assert status == 0 and "× generate" in shown and "1 of 100 prompts" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--windows=64,many"], "windows = '64,many': expected whole numbers"),
        (["--batches=0"], "batches = '0'"),
        (["--n-prompts=0"], "n_prompts = 0"),
        (["--reference-iterations=-1"], "reference_iterations = -1"),
        (["--setting=default,demo"], "2 settings: expected one"),
        (["--setting=best"], "unknown preset 'best'"),
        (["--prompts=/nowhere"], "no prompts at /nowhere"),
        (["--windows=4000", "--n-prompts=1"], "answer_length = 4000"),
        (["--windows=8", "--batches=1", "--n-prompts=1", "--out=/proc/no/x.json"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_status_two(capsys, adapter, arguments, said):
    status, out, err = run(capsys, "bench", "--model=tiny", f"--adapter={adapter}", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
