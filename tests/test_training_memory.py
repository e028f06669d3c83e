"""Ways to compute a step in less memory: the same numbers, and one run on any number of GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import stir

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, journal, memory, train
from lad.training.data import pack
from lad.training.loss import answer_logits, take, token_losses
from lad.training.memory import chunked_head, chunked_loss, thin, training_mode
from lad.training.parallel import check_shares
from lad.training.trainer import Run
from lad.utils import InvalidInput

PAIRS = [Pair(f"say {n} and {m}", f"{n} {m}!") for n in range(10) for m in range(9)]
BASIC = {
    "steps": 8,
    "learning_rate": 2e-3,
    "warmup_steps": 2,
    "widths": (96,),
    "batch_tokens": 768,
    "log_every": 2,
    "draft_start": 0.0,
}


def fresh(**config) -> Denoiser:
    denoiser = Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4, alpha=8, **config))
    stir(denoiser)
    return denoiser


def adapter(denoiser: Denoiser) -> torch.Tensor:
    state = denoiser.model.state_dict()
    return torch.cat([state[name].flatten() for name in sorted(state) if "lora_" in name])


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_the_loss_in_chunks_is_the_loss_at_once(chunk):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(50, 16, generator=generator, requires_grad=True)
    head = torch.randn(33, 16, generator=generator)
    targets = torch.randint(33, (50,), generator=generator)
    weights = torch.rand(50, generator=generator)
    losses, right = token_losses(states @ head.t(), targets)
    (3 * (losses * weights).sum()).backward()
    expected, states.grad = states.grad, None
    loss, same = chunked_loss(states, head, targets, weights, chunk)
    torch.testing.assert_close(loss, (losses * weights).sum())
    assert torch.equal(right, same)
    (3 * loss).backward()
    torch.testing.assert_close(states.grad, expected)


def test_a_loss_of_nothing_is_nothing():
    states = torch.zeros(0, 4, requires_grad=True)
    loss, right = chunked_loss(
        states, torch.ones(5, 4), torch.zeros(0).long(), torch.zeros(0), chunk=3
    )
    loss.backward()
    assert loss == 0 and right.shape == (0,) and states.grad.shape == (0, 4)


def test_a_head_that_answers_with_the_loss():
    denoiser = fresh()
    batch = take(pack(denoiser.backbone, PAIRS[:4], 96), [0, 1, 2, 3], 96)
    asked = (denoiser, batch.tokens, batch.prompt_lengths, batch.answer)
    targets = batch.tokens[batch.answer]
    weights = torch.rand(len(targets), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = answer_logits(*asked)
        losses, expected = token_losses(logits, targets)
        with chunked_head(denoiser, targets, weights, 16):
            loss, right = answer_logits(*asked)
        torch.testing.assert_close(loss, (losses * weights).sum())
        assert torch.equal(right, expected)
        assert torch.equal(answer_logits(*asked), logits), "the head is back"


# -- the layers ------------------------------------------------------------------------------------


def gradients(denoiser: Denoiser, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    named = [p for n, p in denoiser.model.named_parameters() if "lora_" in n]
    for p in named:
        p.requires_grad_(True)
        p.grad = None
    mask = torch.ones((len(tokens), 1, tokens.shape[1], tokens.shape[1]), dtype=torch.bool)
    states = denoiser.hidden_states(tokens, mask)
    states.square().mean().backward()
    return states.detach(), torch.cat([p.grad.flatten() for p in named])


def test_thin_lora_is_lora():
    denoiser = fresh()
    tokens = torch.randint(0, 100, (3, 11), generator=torch.Generator().manual_seed(1))
    states, expected = gradients(denoiser, tokens)
    with thin(denoiser.model):
        again, got = gradients(denoiser, tokens)
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-3)
    assert not any("forward" in vars(m) for m in denoiser.model.modules())


def test_checkpointing_keeps_less_and_gives_the_same():
    denoiser = fresh()
    tokens = torch.randint(0, 100, (3, 40), generator=torch.Generator().manual_seed(1))

    def kept(**knobs) -> tuple[int, torch.Tensor]:
        sizes: list[int] = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        config = TrainConfig(fold_lora=False, **knobs)
        with (
            training_mode(denoiser, config),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            _, got = gradients(denoiser, tokens)
        return sum(sizes), got

    # What a checkpointed layer saves while it is computed again is freed at once; counting at
    # the hooks outside sees only what is kept until then.
    plain, expected = kept()
    less, got = kept(gradient_checkpointing=True)
    assert less < plain / 4
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-3)
    assert not denoiser.model.training
    assert not any(getattr(m, "gradient_checkpointing", False) for m in denoiser.model.modules())


# -- whole runs ------------------------------------------------------------------------------------


def run(denoiser: Denoiser | None = None, **knobs) -> tuple[torch.Tensor, list[float]]:
    denoiser = denoiser or fresh()
    rows = train(denoiser, PAIRS, TrainConfig(**BASIC | knobs))
    return adapter(denoiser), [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("drafts", [0.0, 0.6])
@pytest.mark.parametrize(
    "how",
    [
        {"fold_lora": False},
        {"gradient_checkpointing": True},
        {"loss_chunk": 50},
        {"fold_lora": False, "gradient_checkpointing": True, "loss_chunk": 16},
    ],
    ids=lambda how: "-".join(how),
)
def test_how_a_step_is_computed_does_not_show(how, drafts):
    plain, losses = run(draft_probability=drafts, draft_length=2)
    other, others = run(draft_probability=drafts, draft_length=2, **how)
    assert others == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(other, plain, atol=2e-4, rtol=1e-2)


def test_how_may_change_when_a_run_is_resumed(tmp_path):
    def stop_early(**knobs):
        denoiser = fresh()
        job = Run(denoiser, TrainConfig(**BASIC | {"draft_probability": 0.0} | knobs), None, None)
        return job.config.outcome()

    assert stop_early() == stop_early(loss_chunk=9, fold_lora=False, gradient_checkpointing=True)
    assert stop_early() != stop_early(batch_tokens=96)
    assert stop_early() != stop_early(accumulate=2)


def test_accumulating_is_the_mean_of_smaller_passes():
    """Two passes of half the rows, each with its own noise: what two processes would do."""
    denoiser = fresh()
    config = TrainConfig(**BASIC | {"steps": 1, "accumulate": 2, "draft_probability": 0.0})
    rows = train(denoiser, PAIRS, config)
    assert rows[0]["tokens"] == 2 * 768


def test_a_gpu_that_is_too_small_is_told_the_knobs(monkeypatch):
    def explode(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore text.")

    monkeypatch.setattr(Run, "learn", explode)
    with pytest.raises(InvalidInput) as caught:
        train(fresh(), PAIRS, TrainConfig(**BASIC))
    message = str(caught.value)
    assert "\n" not in message
    knobs = ["batch_tokens (768)", "accumulate", "gradient_checkpointing: true", "tiny:4bit"]
    for knob in (*knobs, "loss_chunk: 1024", "fold_lora: false", "Tried to allocate"):
        assert knob in message
    thrifty = {"gradient_checkpointing": True, "loss_chunk": 8, "fold_lora": False}
    with pytest.raises(InvalidInput) as caught:
        train(fresh(), PAIRS, TrainConfig(**BASIC | thrifty))
    assert not any(knob in str(caught.value) for knob in thrifty), "what is set is not suggested"
    assert "shard" not in str(caught.value), "nobody is there to share with"
    monkeypatch.setattr(memory, "here", lambda: (0, 2))
    with pytest.raises(InvalidInput, match="set shard: true"):
        train(fresh(), PAIRS, TrainConfig(**BASIC))


# -- other numbers of processes --------------------------------------------------------------------


@pytest.mark.parametrize("processes", [3, 5, 8])
def test_processes_that_cannot_share_a_batch(processes):
    with pytest.raises(InvalidInput, match="expected 1, 2, 4 of them"):
        check_shares(processes, 4)


@pytest.mark.parametrize(
    ("seconds", "agreements"), [(0.01, [1, 11, 21]), (0.5, [1, 5, 9, 13, 17, 21])]
)
def test_processes_agree_often_where_steps_are_slow(monkeypatch, seconds, agreements):
    """A wish to stop must reach everyone within seconds, however slow a step is."""
    now = 0.0
    met: list[int] = []
    monkeypatch.setattr(journal, "here", lambda: (0, 2))
    monkeypatch.setattr(journal, "agree", lambda values, device: met.append(step) or values)
    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    clock = journal.Clock(TrainConfig(steps=100), torch.device("cpu"))
    step = 0
    clock.start(step)
    clock.stop()
    assert not clock.stopping, "not before the others know"
    for step in range(1, 22):
        now = seconds * step
        clock.tick(step)
        assert clock.stopping == (step >= agreements[0])
    assert met == [0, *agreements]


def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path):
    """Two processes, stopped, gone on by one: the adapter that two alone would have made."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in PAIRS)
    )
    settings = (
        "denoiser: {{rank: 4, alpha: 8}}\n"
        "training: {{steps: 8, widths: [96], batch_tokens: 384, log_every: 1, "
        "draft_probability: 0.4, draft_start: 0.0, draft_length: 2, "
        "checkpoint_minutes: {minutes}}}\n"
    )

    def lad(processes: int, out: str, *more: str, minutes: float = 100.0):
        config = tmp_path / "config.yaml"
        config.write_text(settings.format(minutes=f"{minutes:.9f}"))
        command = [sys.executable, "-m"]
        if processes > 1:
            command += ["torch.distributed.run", f"--nproc-per-node={processes}", "-m"]
        command += ["lad", "train", "--model=tiny", f"--pairs={pairs}", f"--config={config}"]
        command += [f"--out={tmp_path / out}", *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
        return tmp_path / out

    whole = lad(2, "whole")
    # A checkpoint after every batch; what the run did after the fourth step is forgotten.
    part = lad(2, "part", minutes=1e-9)
    checkpoint = part / "checkpoint.pt"
    assert checkpoint.exists() and torch.load(checkpoint, weights_only=True)["shares"] == 2
    assert torch.load(checkpoint, weights_only=True)["step"] < 8
    before = torch.load(checkpoint, weights_only=True)["step"]
    lad(1, "part", "--resume", minutes=1e-9)
    rows = [json.loads(line) for line in (part / "training_log.jsonl").open()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, 9)) and 0 < before < 8
    assert [row["tokens"] for row in rows if "loss" in row][-1] == 8 * 2 * 384
    two, one = (
        adapter(load_denoiser("tiny", out / "adapter", merge=False)) for out in (whole, part)
    )
    torch.testing.assert_close(one, two, atol=2e-3, rtol=2e-2)
