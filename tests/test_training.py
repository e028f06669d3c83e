"""Pairs, objective and loop: on the tiny model, where a run takes a second."""

import gzip
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from conftest import KINDS, stir
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import CorruptionConfig, DenoiserConfig
from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser
from lad.models.chat import encode_prompt, encode_prompts
from lad.models.registry import load_backbone
from lad.training import (
    Pair,
    TrainConfig,
    everyday_prompts,
    hold_out,
    pack,
    read_config,
    read_pairs,
    self_distil,
    train,
    validate,
)
from lad.training.data import batches
from lad.training.loss import (
    BEFORE_DRAFTS,
    MANNERS,
    Manner,
    anchor,
    answer_logits,
    redraw,
    take,
    token_losses,
    weigh,
)
from lad.utils import CacheError, DamagedFile, InvalidInput, NumericalError

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PAIRS = [Pair(f"say {a} {b}", f"{a} {b}!") for a in WORDS for b in WORDS]
SHORT = {"widths": (96, 128), "batch_tokens": 1024, "log_every": 5, "validate_every": 10**6}


def fresh(**config) -> Denoiser:
    return Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=8, alpha=16, **config))


def adapter(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    state = denoiser.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "lora_" in name}


# -- pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_pairs_are_read_plain_or_gzipped(tmp_path, name):
    text = "".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in PAIRS)
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_pairs(tmp_path / name) == PAIRS


@pytest.mark.parametrize(
    "line", ["no json", "[]", "{}", '{"prompt": "p"}', '{"prompt": "p", "answer": 3}']
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "answer": "a"}\n' + line + "\n")
    with pytest.raises(DamagedFile, match="line 2"):
        read_pairs(path)


def test_truncated_missing_and_empty_files(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    with pytest.raises(InvalidInput, match="no pairs at"):
        read_pairs(path)
    line = b'{"prompt": "p", "answer": "a"}\n'
    path.write_bytes(gzip.compress(line * 5000)[:-20])
    with pytest.raises(DamagedFile):
        read_pairs(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(InvalidInput, match="0 pairs"):
        read_pairs(path)


def test_held_out_prompts_hang_on_the_prompt_alone():
    train_pairs, held = hold_out(PAIRS, every=5)
    assert 5 <= len(held) <= 40 and len(train_pairs) + len(held) == len(PAIRS)
    backwards = hold_out(PAIRS[::-1], every=5)[1]
    assert set(backwards) == set(held)
    other_answers = [Pair(" " + pair.prompt.upper(), "x") for pair in held]
    assert hold_out(other_answers, every=5)[0] == []


def test_everyday_prompts_are_plain_questions_and_held_apart():
    prompts = everyday_prompts()
    assert len(prompts) == len(set(prompts)) >= 50
    assert all(prompt == prompt.strip() and len(prompt) < 100 for prompt in prompts)


def test_packing_keeps_prompt_answer_and_eos():
    backbone = load_backbone("tiny")
    pairs = [Pair("a", "xyz"), Pair("b", "x" * 500), Pair("c", "")]
    packed = pack(backbone, pairs, 64)
    assert len(packed) == 1 and packed.dropped == 2
    p, end = packed.prompt_lengths[0], packed.ends[0]
    text = backbone.tokenizer.decode(packed.tokens[0, p:end])
    assert text == "xyz" and (packed.tokens[0, end:] == backbone.eos_token_id).all()
    with pytest.raises(InvalidInput, match="fits a context of 8"):
        pack(backbone, pairs, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip) | st.sampled_from([" a ", "<|im_end|> b"])))
def test_many_prompts_are_encoded_as_one_by_one(prompts):
    tokenizer = load_backbone("tiny").tokenizer
    assert encode_prompts(tokenizer, prompts) == [encode_prompt(tokenizer, p) for p in prompts]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 63), min_size=1, max_size=60),
    st.integers(1, 3),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_batches_fit_their_width_and_every_row_is_met(ends, processes, widen, seed):
    arguments = (ends, (16, 32, 64), 128, widen, seed, processes)
    queue = list(itertools.islice(batches(*arguments), 400))
    for width, rows in queue:
        assert len(rows) == 128 // width * processes
        assert all(ends[row] < width for row in rows)
    assert {row for _, rows in queue for row in rows} == set(range(len(ends)))
    assert list(itertools.islice(batches(*arguments), 400)) == queue


@pytest.mark.real
def test_the_backbone_answers_its_own_prompts():
    pairs = self_distil(
        load_backbone("smollm2-135m"), ["What is the capital of France?", "Hi."], max_tokens=24
    )
    assert "Paris" in {pair.prompt: pair.answer for pair in pairs}["What is the capital of France?"]


# -- objective -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_looks_at_the_logits_the_sampler_reads(kind):
    denoiser = fresh(attention=kind[0], target=kind[1])
    stir(denoiser)
    packed = pack(denoiser.backbone, PAIRS[:3], 96)
    batch = take(packed, [0, 1, 2], 96)
    with torch.no_grad():
        flat = answer_logits(denoiser, batch.tokens, batch.prompt_lengths, batch.answer)
        row = 0
        for i in range(3):
            p = int(batch.prompt_lengths[i])
            tokens = batch.tokens[i : i + 1]
            expected = denoiser.logits(tokens[:, :p], tokens[:, p:])[0]
            torch.testing.assert_close(flat[row : row + 96 - p], expected, atol=1e-4, rtol=1e-4)
            row += 96 - p
    assert row == len(flat)


def first_drafts(denoiser, kind: str, rows: int = 40):
    """A batch, the inputs its first drafts are drawn from, and those drafts masked again."""
    batch = take(pack(denoiser.backbone, PAIRS, 96), list(range(rows)), 96)
    generator = torch.Generator().manual_seed(0)
    vocabulary, mask = denoiser.vocabulary_size, denoiser.mask_token_id
    inputs = corrupt(batch.tokens, batch.answer, vocabulary, mask, generator, BEFORE_DRAFTS)
    manner = Manner(
        torch.full((rows,), list(MANNERS).index(kind)),
        torch.full((rows,), 0.5),
        torch.full((rows,), 20),
    )
    with torch.no_grad():
        logits = answer_logits(denoiser, inputs, batch.prompt_lengths, batch.answer)
    return batch, inputs, logits, redraw(denoiser, batch, inputs, logits, manner, generator)


@pytest.mark.parametrize("kind", MANNERS)
def test_drafts_are_the_models_own_and_leave_the_prompt_alone(kind):
    denoiser = fresh()
    stir(denoiser)
    batch, inputs, logits, drafts = first_drafts(denoiser, kind)
    assert torch.equal(drafts[~batch.answer], batch.tokens[~batch.answer])
    shown = drafts != denoiser.mask_token_id
    best = batch.tokens.masked_scatter(batch.answer, logits.argmax(dim=-1))
    assert torch.equal(drafts[shown], best[shown])
    hidden = inputs == denoiser.mask_token_id
    if kind == "none":
        assert shown.all()
    elif kind == "threshold":
        assert shown[~hidden].all()  # once shown, always shown
        new = shown & hidden
        assert (new.sum(dim=1) >= (hidden.any(dim=1)).long()).all()  # at least one more
        leftmost = torch.where(hidden, torch.arange(96), 96).amin(dim=1, keepdim=True)
        assert not new[torch.arange(96) >= leftmost + 20].any()
    else:
        share = (~shown & batch.answer).sum(dim=1) / batch.answer.sum(dim=1)
        assert share.min() < 0.2 and share.max() > 0.8


def test_manners_come_in_their_shares():
    manner = Manner.draw(20_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(manner.kind, minlength=len(MANNERS)) / 20_000
    torch.testing.assert_close(shares, torch.tensor([*MANNERS.values()]), atol=0.02, rtol=0)
    assert manner.threshold.min() >= 0.3 and manner.threshold.max() <= 0.95
    assert manner.window.min() >= 8


def test_what_enters_the_loss():
    denoiser = fresh()
    batch, inputs, *_ = first_drafts(denoiser, "none")
    generator = torch.Generator().manual_seed(1)
    mask = denoiser.mask_token_id

    def say(inputs, clean=1.0, tail=1.0, reach=0.0, own=False):
        return weigh(batch, inputs, mask, clean, tail, reach, own, generator)

    assert torch.equal(say(inputs), batch.answer.float())
    assert torch.equal(say(inputs, clean=0.0) > 0, batch.answer & (inputs != batch.tokens))
    assert torch.equal(say(inputs, tail=0.0) > 0, batch.answer & ~batch.tail)
    half = say(batch.tokens, clean=0.5).sum() / batch.answer.sum()
    assert 0.45 < half < 0.55
    assert torch.equal(say(batch.tokens, reach=3.0), batch.answer.float())  # nothing is far


def test_what_is_far_from_anything_visible_counts_little():
    """Position by position, against loops."""
    denoiser = fresh()
    batch, inputs, *_ = first_drafts(denoiser, "none")
    mask, reach = denoiser.mask_token_id, 3.0
    generator = torch.Generator().manual_seed(1)
    for own in (False, True):
        got = weigh(batch, inputs, mask, 1.0, 1.0, reach, own, generator)
        for row in range(len(inputs)):
            hidden = [
                bool(a and i == mask) for a, i in zip(batch.answer[row], inputs[row], strict=True)
            ]
            seen = [n for n, h in enumerate(hidden) if not h]
            wrong = [n for n in seen if inputs[row, n] != batch.tokens[row, n]]
            for n in torch.nonzero(batch.answer[row]).flatten().tolist():
                away = min(abs(n - m) for m in seen) - 1 if hidden[n] else 0
                if own and wrong:
                    away = max(away, n - wrong[0])
                assert got[row, n] == pytest.approx(math.exp(-away / reach), rel=1e-4)


def anchored(share=0.5, seed=0):
    """A batch of 20 rows under noise, some of which are read on clean."""
    denoiser = fresh()
    packed = pack(denoiser.backbone, PAIRS, 96)
    batch = take(packed, list(range(20)), 96)
    generator = torch.Generator().manual_seed(seed)
    noisy = batch.tokens.masked_fill(batch.answer, denoiser.mask_token_id)
    inputs, start = anchor(batch, noisy, share, generator)
    return denoiser, batch, noisy, inputs, start, generator


def test_rows_that_are_read_on_are_clean_and_begin_within_the_answer():
    starts = set()
    for seed in range(30):
        _, batch, noisy, inputs, start, _ = anchored(seed=seed)
        read = start < batch.tokens.shape[1]
        assert torch.equal(inputs[read], batch.tokens[read])
        assert torch.equal(inputs[~read], noisy[~read])
        first, last = batch.prompt_lengths, batch.prompt_lengths + batch.answer.sum(dim=1)
        last = last - batch.tail.sum(dim=1)  # one past the first EOS
        assert (start[read] >= first[read]).all() and (start[read] < last[read]).all()
        starts |= set((start - first)[read].tolist())
    assert {0, 1, 2} <= starts
    assert not (anchored(share=0.0)[4] < 96).any() and (anchored(share=1.0)[4] < 96).all()


def test_what_is_read_on_counts_in_full_from_there_to_the_first_eos():
    denoiser, batch, _, inputs, start, generator = anchored()
    mask = denoiser.mask_token_id
    for clean_share in (0.0, 1.0):
        say = weigh(batch, inputs, mask, clean_share, 1.0, 3.0, False, generator, start)
        plain = weigh(batch, inputs, mask, 1.0, 1.0, 3.0, False, generator)
        for row in range(len(inputs)):
            if start[row] < 96:
                position = torch.arange(96)
                expected = (position >= start[row]) & batch.answer[row] & ~batch.tail[row]
                assert torch.equal(say[row], expected.float())
            else:
                assert torch.equal(say[row], plain[row])


def test_reading_on_sees_nothing_of_what_follows():
    """The logits of a position do not move when what stands there or later does."""
    denoiser, batch, _, inputs, start, _ = anchored(share=1.0)
    stir(denoiser)
    generator = torch.Generator().manual_seed(5)
    for row in range(4):
        at = int(start[row]) + 1
        other = inputs.clone()
        other[row, at:] = torch.randint(20, 60, other[row, at:].shape, generator=generator)
        chosen = torch.zeros_like(batch.answer)
        chosen[row, : at + 1] = batch.answer[row, : at + 1]
        got, moved = (
            answer_logits(denoiser, x, batch.prompt_lengths, chosen, start) for x in (inputs, other)
        )
        torch.testing.assert_close(got, moved, atol=1e-5, rtol=1e-4)
        free = [answer_logits(denoiser, x, batch.prompt_lengths, chosen) for x in (inputs, other)]
        assert not torch.allclose(*free, atol=1e-3)  # read both ways, they do


def test_reading_on_needs_the_target_it_is_for():
    config = TrainConfig(steps=1, anchor=0.5, **SHORT)
    with pytest.raises(InvalidInput, match=r"anchor = 0\.5 with target 'same'"):
        train(fresh(target="same"), PAIRS, config)
    losses = [row for row in train(fresh(), PAIRS, config) if "loss" in row]
    assert losses and math.isfinite(losses[-1]["loss"])


def test_losses_are_cross_entropy_per_token():
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(7)
    losses, right = token_losses(logits, targets)
    expected = -logits.log_softmax(-1)[range(7), targets]
    torch.testing.assert_close(losses, expected)
    assert torch.equal(right, logits.argmax(-1) == targets)


def test_validation_counts_masked_answer_tokens_only():
    denoiser = fresh()
    stir(denoiser)
    packed = pack(denoiser.backbone, PAIRS, 96)
    scores = validate(denoiser, packed, rows_per_batch=7)
    answer = int((packed.ends - packed.prompt_lengths + 1).sum())
    for fraction, score in scores.items():
        assert score["n"] == pytest.approx(float(fraction) * answer, rel=0.25)
        assert 0 <= score["accuracy"] <= 1
    assert scores == validate(denoiser, packed, rows_per_batch=7)
    # Rows the last batch repeats are not counted twice.
    assert validate(denoiser, packed, rows_per_batch=len(packed))["0.5"]["n"] == pytest.approx(
        scores["0.5"]["n"], rel=0.1
    )


def test_validation_agrees_with_a_plain_loop_when_everything_is_masked(monkeypatch):
    monkeypatch.setattr("lad.training.loss.MASKED_FRACTIONS", (1.0,))
    denoiser = fresh()
    stir(denoiser)
    packed = pack(denoiser.backbone, PAIRS[:5], 96)
    got = validate(denoiser, packed, rows_per_batch=2)["1"]
    losses, right = [], []
    for tokens, p, end in zip(packed.tokens, packed.prompt_lengths, packed.ends, strict=True):
        tokens = tokens[None].long()
        masked = torch.full_like(tokens[:, p:], denoiser.mask_token_id)
        with torch.no_grad():
            logits = denoiser.logits(tokens[:, :p], masked)[0, : end - p + 1]
        targets = tokens[0, p : end + 1]
        losses += F.cross_entropy(logits, targets, reduction="none").tolist()
        right += (logits.argmax(-1) == targets).tolist()
    assert got["n"] == len(losses)
    assert got["ce"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert got["accuracy"] == pytest.approx(sum(right) / len(right))


# -- the loop --------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_touches_the_adapter_alone():
    denoiser = fresh()
    frozen = {k: v.clone() for k, v in denoiser.model.state_dict().items() if "lora_" not in k}
    before = torch.random.get_rng_state()
    rows = train(
        denoiser, PAIRS, TrainConfig(steps=40, learning_rate=1e-2, warmup_steps=5, **SHORT)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(denoiser.model.state_dict()[k], v) for k, v in frozen.items())
    assert "validation" in rows[-1] and rows[-1]["step"] == 40
    assert not any(p.requires_grad for p in denoiser.model.parameters())


def test_a_run_repeats_exactly():
    config = TrainConfig(
        steps=12, learning_rate=1e-2, warmup_steps=2, draft_start=0.2, draft_length=3, **SHORT
    )
    denoisers = [fresh(), fresh()]
    for denoiser in denoisers:
        train(denoiser, PAIRS, config)
    first, second = map(adapter, denoisers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_takes_the_steps_of_the_uninterrupted_one(tmp_path):
    config = TrainConfig(
        steps=20,
        learning_rate=1e-2,
        warmup_steps=2,
        draft_start=0.1,
        draft_probability=0.6,
        draft_length=3,
        **SHORT,
    )
    whole = fresh()
    train(whole, PAIRS, config, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    def interrupt(row):
        if row["step"] == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    first = fresh()
    train(first, PAIRS, config, tmp_path / "run", on_row=interrupt)
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert not (tmp_path / "run" / "adapter").exists()
    second = fresh()
    rows = train(second, PAIRS, config, tmp_path / "run", resume=True)
    expected, got = adapter(whole), adapter(second)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    log = [json.loads(line) for line in (tmp_path / "run" / "training_log.jsonl").open()]
    assert log == rows
    assert [row["step"] for row in rows if "loss" in row] == [5, 10, 15, 20]
    assert load_denoiser("tiny", tmp_path / "run" / "adapter").config.context == 128


def test_drafts_take_their_share_of_the_steps():
    rows = []
    config = TrainConfig(
        steps=60, draft_start=0.0, draft_probability=0.5, draft_length=3, **SHORT | {"log_every": 1}
    )
    train(fresh(), PAIRS, config, on_row=rows.append)
    drafts = [row["drafts"] for row in rows if "drafts" in row]
    assert 15 <= sum(drafts) <= 45
    runs = ["".join("d" if d else " " for d in drafts)][0].split()
    assert all(len(run) % 3 == 0 for run in runs[:-1])


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_average_of_the_weights_is_what_is_kept(ema):
    """Followed by hand: the same run, its weights read after every step."""
    config = TrainConfig(
        steps=4,
        learning_rate=1e-2,
        warmup_steps=1,
        draft_probability=0,
        ema=ema,
        **SHORT | {"log_every": 1},
    )
    followed = fresh()
    expected = {name: value.float() for name, value in adapter(followed).items()}
    steps = itertools.count(1)

    def follow(row):
        if "loss" in row:
            decay = min(ema, next(steps) / (10 + row["step"] - 1))
            for name, value in adapter(followed).items():
                expected[name] = decay * expected[name] + (1 - decay) * value

    train(followed, PAIRS, config, on_row=follow)
    for name, value in adapter(followed).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-4)


def test_resuming_refuses_another_run_and_a_damaged_checkpoint(tmp_path):
    def stop(row):
        os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(steps=20, draft_probability=0, **SHORT)
    train(fresh(), PAIRS, config, tmp_path, on_row=stop)
    with pytest.raises(DamagedFile, match="other settings"):
        train(fresh(), PAIRS, TrainConfig(steps=21, **SHORT), tmp_path, resume=True)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamagedFile, match="no readable checkpoint"):
        train(fresh(), PAIRS, config, tmp_path, resume=True)


def test_minutes_bound_a_run_and_the_rate_falls_to_zero():
    started = time.monotonic()
    rows = train(fresh(), PAIRS, TrainConfig(steps=None, minutes=0.05, warmup_steps=1, **SHORT))
    assert 3 <= time.monotonic() - started < 15
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[-1] == 0


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to"):
        train(fresh(), PAIRS, TrainConfig(steps=5, **SHORT), tmp_path / "file" / "out")


def test_a_loss_that_explodes_stops_the_run():
    denoiser = fresh()
    with torch.no_grad():
        next(p for n, p in denoiser.model.named_parameters() if "lora_A" in n).fill_(float("nan"))
    with pytest.raises(NumericalError, match="step 5"):
        train(denoiser, PAIRS, TrainConfig(steps=10, **SHORT))


def test_two_processes_train_one_adapter(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"prompt": p.prompt, "answer": p.answer}) + "\n" for p in PAIRS)
    )
    config = tmp_path / "config.yaml"
    config.write_text(
        "denoiser: {rank: 4, alpha: 8}\n"
        "training: {steps: 6, widths: [96], batch_tokens: 384, log_every: 3}\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "lad"]
    command += ["train", "--model=tiny", f"--pairs={pairs}", f"--config={config}"]
    command += [f"--out={tmp_path / 'out'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "training_log.jsonl").open()]
    assert rows[0]["step"] == 3 and rows[0]["tokens"] == 3 * 2 * 384
    load_denoiser("tiny", tmp_path / "out" / "adapter")


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": None},
        {"steps": 0},
        {"minutes": -1.0},
        {"learning_rate": 0.0},
        {"widen": 1.5},
        {"draft_probability": -0.1},
        {"widths": ()},
        {"ema": 1.2},
        {"clean_share": -1.0},
        {"draft_length": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_settings_survive_yaml_and_unknown_ones_are_refused(tmp_path):
    import yaml

    config = TrainConfig(minutes=3.0, corruption=CorruptionConfig(kinds=("swap",)))
    again = TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())))
    assert again == config
    with pytest.raises(InvalidInput, match="'learning_rte'"):
        TrainConfig.from_dict({"learning_rte": 1})
    with pytest.raises(InvalidInput, match="'rat'"):
        TrainConfig.from_dict({"corruption": {"rat": 1}})
    path = tmp_path / "c.yaml"
    for text in ("model: x", "- 1", "a: [", "\x00"):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=r"c\.yaml"):
            read_config(path)


def test_the_shipped_configuration_is_valid():
    from pathlib import Path

    values = read_config(Path(__file__).parent.parent / "configs" / "smollm2-135m.yaml")
    TrainConfig.from_dict(values["training"])
    DenoiserConfig(**values["denoiser"])
