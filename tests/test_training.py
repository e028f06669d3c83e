"""Pairs, loss and the training loop: on the tiny model, where a run takes a second."""

import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import json_lines, run, stir
from hypothesis import given, settings
from hypothesis import strategies as st

from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import CorruptionConfig, DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import REPAIR_PROMPT
from lad.models.registry import load_backbone
from lad.training import Pair, TrainConfig, read_config, train, trainer, validate
from lad.training.data import CHOICE, USUAL, batches, encode_pairs, hold_out, pack, read_pairs
from lad.training.loss import (
    add_causal_lm,
    answer_logits,
    behind_all_visible,
    cut_regions,
    denoising_loss,
    loss_weights,
    noisy_inputs,
    take,
    token_losses,
    with_likely_tokens,
)
from lad.utils import CacheError, DamagedFile, InvalidInput, NumericalError
from lad.viz.training import validation_curves

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
PAIRS = [Pair(f"say {a} {b}", f"{a} {b}!") for a in WORDS for b in WORDS]
SHORT = {"learning_rate": 1e-2, "warmup_steps": 2, "widths": (96, 128), "batch_tokens": 1024}
SHORT |= {"log_every": 5, "validate_every": 10**6}


def fresh(**config) -> Denoiser:
    return Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=8, alpha=16, **config))


def adapter(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    state = denoiser.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "lora_" in name}


def test_pairs_are_read_plain_or_gzipped_and_bad_files_are_named(tmp_path):
    data, path = json_lines(PAIRS).encode(), tmp_path / "pairs.jsonl"
    with pytest.raises(InvalidInput, match="no pairs at"):
        read_pairs(path)
    marked = b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\n", 2) + b" \n"  # and blank lines
    for content in (data, marked):
        for whole in (content, gzip.compress(content)):
            path.write_bytes(whole)
            assert read_pairs(path) == PAIRS
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(InvalidInput, match="0 pairs"):
        read_pairs(path)
    for damaged in (gzip.compress(data * 50)[:-20], data.decode().encode("utf-16")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"line \d+: .*expected UTF-8"):
            read_pairs(path)


NO_PAIRS = {
    b"no json": "Invalid JSON",
    b'{"prompt": "p", "answer": 3}': "answer = 3: .*valid string",
    b'{"prompt": " ", "answer": "a"}': "prompt = ' ': expected at least one word;",
    b'{"prompt": "\xff", "answer": "a"}' + 9999 * b" ": "invalid unicode",
}


@pytest.mark.parametrize("line", NO_PAIRS, ids=lambda line: repr(line[:24]))
def test_a_line_that_is_no_pair_is_named_and_not_printed(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'\n{"prompt": "p", "answer": "a"}\n' + line + b"\n")
    with pytest.raises(DamagedFile, match=rf"pairs\.jsonl, line 3: .*{NO_PAIRS[line]}") as caught:
        read_pairs(path)
    assert len(str(caught.value)) < 400


def test_held_out_prompts_hang_on_the_first_line_of_the_prompt_alone():
    train_pairs, held = hold_out(PAIRS, every=5)
    assert 5 <= len(held) <= 40 and len(train_pairs) + len(held) == len(PAIRS)
    changed = [Pair(f" {pair.prompt.upper()}\nWhich?\nA: x", "x") for pair in held]
    assert hold_out(changed, every=5) == ([], changed)


def test_packing_keeps_prompt_answer_and_eos_and_leaves_out_what_cannot_be_drawn():
    backbone = load_backbone("tiny")
    pairs = [Pair("a", "xyz"), Pair("b", "x" * 500), Pair("c", "")]
    packed = pack(backbone, pairs, 64)
    assert len(packed) == 1 and packed.dropped == 2
    p, end = packed.prompt_lengths[0], packed.ends[0]
    text = backbone.tokenizer.decode(packed.tokens[0, p:end])
    assert text == "xyz" and (packed.tokens[0, end:] == backbone.eos_token_id).all()
    with pytest.raises(InvalidInput, match="fits a context of 8"):
        pack(backbone, pairs, 8)
    # Control tokens in answers are text.
    pairs = [Pair("Hi <mask>", "Hello<|im_end|> it is <mask>.")]
    [(_, answer)] = encode_pairs(backbone.tokenizer, pairs)
    assert backbone.tokenizer.decode(answer) == pairs[0].answer
    assert not {backbone.eos_token_id, backbone.mask_token_id} & set(answer)
    word = dataclasses.replace(backbone, mask_token_id=answer[0])  # as LLaMA 3's, a plain word
    assert pack(word, [*pairs, Pair("a", "xyz")], 96).dropped == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 63), min_size=1, max_size=60), st.integers(1, 3), st.floats(0, 1))
def test_batches_fit_their_width_and_every_row_is_met(ends, processes, widen):
    config = TrainConfig(widths=(16, 32, 64), batch_tokens=128, widen=widen)
    queue = list(itertools.islice(batches(ends, [0] * len(ends), config, processes), 400))
    for width, rows in queue:
        assert len(rows) == 128 // width * processes
        assert all(ends[row] < width for row in rows)
    assert {row for _, rows in queue for row in rows} == set(range(len(ends)))
    assert list(itertools.islice(batches(ends, [0] * len(ends), config, processes), 400)) == queue


def test_kinds_come_as_often_as_repeats_say_and_lines_to_choose_weigh_as_much_as_asked():
    config = TrainConfig(widths=(8, 16), batch_tokens=16, repeats=(3, 2, 1), choice_weight=6.0)
    queue = itertools.islice(batches([5] * 6, [0, 0, 1, 1, 2, 2], config), 200)
    counts = Counter(index for _, indices in queue for index in indices)
    assert [round(counts[i] / counts[5]) for i in range(6)] == [3, 3, 2, 2, 1, 1]
    denoiser, shown = fresh(), "B: xyz"
    pairs = [Pair("Which?\nA: abc\nB: xyz", shown), Pair("Which?", shown)]
    batch = take(pack(denoiser.backbone, pairs, 96), [0, 1], 96)
    assert batch.kinds.tolist() == [CHOICE, USUAL]
    inputs = batch.tokens.masked_fill(batch.answer, denoiser.mask_token_id)
    generator = torch.Generator().manual_seed(0)
    choice, usual = loss_weights(batch, inputs, denoiser.mask_token_id, config, generator)
    counted = batch.answer & ~batch.tail
    torch.testing.assert_close(choice[counted[0]], 6 * usual[counted[1]])


def test_the_loss_looks_at_the_logits_the_sampler_reads(any_denoiser):
    batch = take(pack(any_denoiser.backbone, PAIRS[:3], 96), [0, 1, 2], 96)
    with torch.no_grad():
        flat = answer_logits(any_denoiser, batch.tokens, batch.prompt_lengths, batch.answer)
        expected = [
            any_denoiser.logits(tokens[None, :p], tokens[None, p:])[0]
            for tokens, p in zip(batch.tokens, batch.prompt_lengths, strict=True)
        ]
    torch.testing.assert_close(flat, torch.cat(expected), atol=1e-4, rtol=1e-4)


def small_batch(count: int = 20):
    denoiser = fresh()
    batch = take(pack(denoiser.backbone, PAIRS, 96), list(range(count)), 96)
    return denoiser, batch, torch.Generator().manual_seed(0)


def test_what_enters_the_loss():
    denoiser, batch, generator = small_batch()
    chance = torch.rand(batch.tokens.shape, generator=generator)
    inputs = batch.tokens.masked_fill(batch.answer & (chance < 0.5), denoiser.mask_token_id)

    def weights(inputs, clean=1.0, tail=1.0, decay=0.0):
        config = TrainConfig(clean_share=clean, eos_tail_share=tail, distance_decay=decay)
        return loss_weights(batch, inputs, denoiser.mask_token_id, config, generator)

    assert torch.equal(weights(inputs), batch.answer.float())
    assert torch.equal(weights(inputs, clean=0.0) > 0, batch.answer & (inputs != batch.tokens))
    assert torch.equal(weights(inputs, tail=0.0) > 0, batch.answer & ~batch.tail)
    half = weights(batch.tokens, clean=0.5).sum() / batch.answer.sum()
    assert 0.45 < half < 0.55
    assert torch.equal(weights(batch.tokens, decay=3.0), batch.answer.float())  # nothing is far
    # The decay, position by position.
    got = weights(inputs, decay=3.0)
    for i in range(len(inputs)):
        visible = (inputs[i] != denoiser.mask_token_id) | ~batch.answer[i]
        seen = torch.nonzero(visible).flatten().tolist()
        for n in torch.nonzero(batch.answer[i]).flatten().tolist():
            away = 0 if visible[n] else min(abs(n - m) for m in seen) - 1
            assert got[i, n] == pytest.approx(math.exp(-away / 3.0), rel=1e-4)


def test_causal_sequences_are_clean_and_count_in_full_from_within_the_answer():
    starts = set()
    config = TrainConfig(clean_share=0.0, eos_tail_share=1.0, distance_decay=3.0)
    denoiser, batch, _ = small_batch()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noisy = batch.tokens.masked_fill(batch.answer, denoiser.mask_token_id)
        inputs, start = add_causal_lm(batch, noisy, 0.5, generator)
        causal = start < 96
        assert torch.equal(inputs[causal], batch.tokens[causal])
        assert torch.equal(inputs[~causal], noisy[~causal])
        first, last = batch.prompt_lengths, batch.prompt_lengths + batch.answer.sum(dim=1)
        last = last - batch.tail.sum(dim=1)  # one past the first EOS
        assert (start[causal] >= first[causal]).all() and (start[causal] < last[causal]).all()
        starts |= set((start - first)[causal].tolist())
        weights = loss_weights(batch, inputs, denoiser.mask_token_id, config, generator, start)
        ahead = (torch.arange(96) >= start[:, None]) & batch.answer & ~batch.tail
        assert torch.equal(weights[causal], ahead[causal].float())
        assert (weights[~causal] > 0).equal(batch.answer[~causal])
    assert {0, 1, 2} <= starts


def test_a_causal_prediction_sees_nothing_of_what_follows():
    """The logits of a position do not move when what stands there or later does."""
    denoiser, batch, generator = small_batch(4)
    stir(denoiser)
    inputs, start = add_causal_lm(batch, batch.tokens, 1.0, generator)
    for i in range(4):
        at = int(start[i]) + 1
        other = inputs.clone()
        other[i, at:] = torch.randint(20, 60, other[i, at:].shape, generator=generator)
        chosen = torch.zeros_like(batch.answer)
        chosen[i, : at + 1] = batch.answer[i, : at + 1]
        args = (batch.prompt_lengths, chosen)
        got, moved = (answer_logits(denoiser, x, *args, start) for x in (inputs, other))
        torch.testing.assert_close(got, moved, atol=1e-5, rtol=1e-4)
        free = [answer_logits(denoiser, x, *args) for x in (inputs, other)]
        assert not torch.allclose(*free, atol=1e-3)  # with the denoiser's attention, they do


def test_a_region_may_end_behind_the_leftmost_masks():
    """Its logits are those of a batch that is no wider, and nothing behind its end counts."""
    denoiser, batch, generator = small_batch(8)
    stir(denoiser)
    first = batch.prompt_lengths + 2
    is_masked = torch.arange(96) >= first[:, None]
    inputs = batch.tokens.masked_fill(is_masked, denoiser.mask_token_id)
    mask = denoiser.mask_token_id
    cut = cut_regions(batch, inputs, mask, 1.0, generator)
    assert ((cut >= (first + 8).clamp(max=96)) & (cut <= (first + 64).clamp(max=96))).all()
    assert len(set((cut - first).tolist())) > 2
    assert (cut_regions(batch, inputs, mask, 0.0, generator) == 96).all()
    assert (cut_regions(batch, batch.tokens, mask, 1.0, generator) == 96).all()  # no MASK
    for i, end in enumerate(cut.tolist()):
        chosen = torch.zeros_like(batch.answer[i : i + 1])
        chosen[:, first[i] : end] = True
        one = inputs[i : i + 1], batch.prompt_lengths[i : i + 1], chosen
        got = answer_logits(denoiser, *one, cut[i : i + 1])
        narrow = answer_logits(denoiser, one[0][:, :end], one[1], chosen[:, :end])
        torch.testing.assert_close(got, narrow, atol=1e-4, rtol=1e-4)
    beyond = torch.arange(96) >= batch.prompt_lengths[:, None] + 64
    other = dataclasses.replace(batch, tokens=batch.tokens.masked_fill(beyond, 97))
    for share in (1.0, 0.0):
        config = TrainConfig(cut_share=share, corruption=CorruptionConfig(all_masked=1.0))
        config = dataclasses.replace(config, eos_tail_share=1.0, distance_decay=0.0)
        seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        losses = map(denoising_loss, [denoiser] * 2, [batch, other], [config] * 2, seeds)
        one, moved = (loss.item() for loss, _ in losses)
        assert (one == moved) == (share == 1.0)


def test_certainty_adds_the_entropy_of_masked_tokens_predicted_right():
    """And nothing else: not of visible tokens, and not where the prediction is wrong."""
    logits = torch.randn((6, 5), generator=torch.Generator().manual_seed(0))
    targets = logits.argmax(-1).where(torch.arange(6) < 4, 0)
    weights = torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0, 0.0])
    plain, right = token_losses(logits, targets)
    losses, same = token_losses(logits, targets, weights)
    probabilities = logits.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    torch.testing.assert_close(losses, plain + weights * right * entropy)
    assert right.tolist() == same.tolist() and 0 < right.sum() < 6
    denoiser, batch, _ = small_batch(4)
    noise = CorruptionConfig(all_masked=0.0, mask_probability=0.0, structural_probability=0.0)
    for corruption, equal in ((noise, True), (CorruptionConfig(all_masked=1.0), False)):
        values = []
        for certainty in (0.0, 50.0):
            config = TrainConfig(certainty=certainty, corruption=corruption, clean_share=1.0)
            generator = torch.Generator().manual_seed(0)
            values.append(denoising_loss(denoiser, batch, config, generator)[0].item())
        assert (values[0] == values[1]) == equal


def test_soft_targets_are_the_bare_backbones_next_tokens():
    denoiser, _, _ = small_batch(1)
    packed = pack(denoiser.backbone, PAIRS[:5], 96)
    stir(denoiser)  # of no account: the adapter is off
    known = with_likely_tokens(denoiser, packed, 200)
    bare = load_backbone("tiny").model
    for n, end in enumerate(packed.ends.tolist()):
        with torch.no_grad():
            best = bare(packed.tokens[n : n + 1, :end].long()).logits[0].topk(16)
        torch.testing.assert_close(known.likely[n, 1 : end + 1], best.indices.int())
        shares = known.shares[n, 1 : end + 1].float()
        torch.testing.assert_close(shares, best.values.softmax(-1), atol=1e-3, rtol=1e-2)
    batch = take(known, [3, 1], 64)
    assert torch.equal(batch.likely, known.likely[[3, 1], :64].long())
    assert torch.equal(batch.shares, known.shares[[3, 1], :64].float())


def test_a_soft_target_is_a_part_of_the_loss_and_only_behind_all_that_is_visible():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((6, 5), generator=generator)
    likely = torch.rand((6, 5), generator=generator).topk(3).indices
    shares = torch.rand((6, 3), generator=generator).softmax(-1)
    targets, soft = logits.argmin(-1), torch.tensor([0.0, 0.25, 0.5, 1.0, 0.0, 1.0])
    losses, _ = token_losses(logits, targets, soft=soft, likely=likely, shares=shares)
    wanted = (1 - soft)[:, None] * F.one_hot(targets, 5)
    wanted.scatter_add_(1, likely, soft[:, None] * shares)
    torch.testing.assert_close(losses, F.cross_entropy(logits, wanted, reduction="none"))

    denoiser, batch, generator = small_batch(8)
    mask, kinds = denoiser.mask_token_id, batch.kinds.clone()
    kinds[:2] = CHOICE
    batch = dataclasses.replace(batch, kinds=kinds)
    hidden = torch.rand(batch.tokens.shape, generator=generator) < 0.9
    hidden |= torch.arange(96) > batch.prompt_lengths[:, None] + 4
    inputs = batch.tokens.masked_fill(batch.answer & hidden, mask)
    causal_from = torch.full((8,), 96)
    causal_from[5:] = batch.prompt_lengths[5:] + 1
    inputs[5:] = batch.tokens[5:]
    got = behind_all_visible(batch, inputs, mask, causal_from)
    for i, (row, start) in enumerate(zip(inputs.tolist(), causal_from.tolist(), strict=True)):
        for n in range(96):
            answered = n >= batch.prompt_lengths[i] and batch.kinds[i] == USUAL
            answered &= not batch.tail[i, n]
            assert got[i, n] == (answered and (n >= start or set(row[n:]) == {mask})), (i, n)


def test_validation_agrees_with_a_plain_loop_when_everything_is_masked(monkeypatch):
    monkeypatch.setattr("lad.training.loss.MASKED_FRACTIONS", (1.0,))
    denoiser = fresh()
    stir(denoiser)
    packed = pack(denoiser.backbone, PAIRS[:5], 96)
    got = validate(denoiser, packed, batch_size=2)["1"]  # the last batch repeats a pair
    assert got == validate(denoiser, packed, batch_size=2)["1"]
    losses, right = [], []
    for tokens, p, end in zip(packed.tokens, packed.prompt_lengths, packed.ends, strict=True):
        tokens = tokens[None].long()
        masked = torch.full_like(tokens[:, p:], denoiser.mask_token_id)
        with torch.no_grad():
            logits = denoiser.logits(tokens[:, :p], masked)[0, : end - p + 1]
        targets = tokens[0, p : end + 1]
        losses += F.cross_entropy(logits, targets, reduction="none").tolist()
        right += (logits.argmax(-1) == targets).tolist()
    assert got["n"] == len(losses) and got["answers"] == 5
    assert got["ce"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert got["accuracy"] == pytest.approx(sum(right) / len(right))


def test_the_error_of_a_validation_is_over_answers_and_nothing_counted_is_said(monkeypatch):
    """Answers that are all right or all wrong vary as answers do, not as their tokens."""
    denoiser = fresh()
    data = pack(denoiser.backbone, [Pair(str(n), n % 2 * "b" or "aaa") for n in range(8)], 96)

    def logits(_, noisy, lengths, counted):
        right = lengths.new_tensor(range(8)) < 4
        rows = counted.nonzero()[:, 0]
        tokens = torch.where(right[rows], data.tokens[counted].long(), 0)
        return F.one_hot(tokens, 300).float()

    monkeypatch.setattr("lad.training.loss.answer_logits", logits)
    monkeypatch.setattr("lad.training.loss.MASKED_FRACTIONS", (1.0, 0.0))
    found = validate(denoiser, data, batch_size=8)
    assert found["1"]["n"] == 24 and found["1"]["accuracy"] == 0.5
    # Sizes 4, 2, 4, 2, ...: the root of the sum of (size / 2)^2, by all tokens.
    assert found["1"]["error"] == pytest.approx(math.sqrt(4 * 4 + 4 * 1) / 24)
    nothing = dict.fromkeys(("ce", "accuracy", "error")) | {"n": 0, "answers": 0}
    assert found["0"] == nothing
    assert validation_curves([{"step": 1, "validation": found}]).axes  # the rest is drawn
    with pytest.raises(InvalidInput, match="validation of a token"):
        validation_curves([{"step": 1, "validation": {"0": nothing}}])


def losses_of(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


def test_training_lowers_the_loss_and_touches_the_adapter_alone():
    denoiser = fresh()
    frozen = {k: v.clone() for k, v in denoiser.model.state_dict().items() if "lora_" not in k}
    before = torch.random.get_rng_state()
    rows = train(denoiser, PAIRS, TrainConfig(steps=40, **SHORT | {"validate_every": 15}))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert losses_of(rows)[-1] < 0.6 * losses_of(rows)[0]
    assert all(torch.equal(denoiser.model.state_dict()[k], v) for k, v in frozen.items())
    assert [row["step"] for row in rows if "validation" in row] == [15, 30, 40]
    assert [row["learning_rate"] for row in rows if "loss" in row][-1] == 0
    assert not any(p.requires_grad for p in denoiser.model.parameters())


WHOLE = SHORT | {"steps": 16, "log_every": 4, "validate_every": 6, "accumulate": 2}
WHOLE |= {"causal_lm_fraction": 0.3, "checkpoint_minutes": 1e-9}  # a checkpoint after every step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: its folder, rows and adapter."""
    torch.set_num_threads(1)
    folder, denoiser = tmp_path_factory.mktemp("whole"), fresh()
    rows = train(denoiser, PAIRS, TrainConfig(**WHOLE), folder)
    return folder, rows, adapter(denoiser)


def timeless(rows) -> list[dict]:
    return [row | {"seconds": 0} for row in rows]


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").open()]


def check_same(whole, folder, rows, denoiser) -> None:
    _, expected_rows, expected = whole
    assert timeless(rows) == timeless(expected_rows) and read_log(folder) == rows
    got = adapter(denoiser)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert load_denoiser("tiny", folder / "adapter").config.context == 128


def test_a_resumed_run_takes_the_steps_of_the_uninterrupted_one(whole, tmp_path):
    """Stopped by SIGTERM."""

    def stop(row):
        if row["step"] == 8:  # twice: in the row of the loss and in that of the signal
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(**WHOLE)
    with pytest.raises(SystemExit, match="143"):
        train(fresh(), PAIRS, config, tmp_path, on_row=stop)
    assert (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "adapter").exists()
    assert timeless(read_log(tmp_path))[-1] == {"step": 8, "stopped": "SIGTERM", "seconds": 0}
    with pytest.raises(InvalidInput, match="an unfinished run: --resume goes on with it"):
        train(fresh(), PAIRS, config, tmp_path)
    again = fresh()
    rows = train(again, PAIRS, config, tmp_path, resume=True)
    check_same(whole, tmp_path, rows, again)
    for resume in (False, True):
        with pytest.raises(InvalidInput, match="a finished run's adapter: choose another --out"):
            train(fresh(), PAIRS, config, tmp_path, resume=resume)


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(whole, tmp_path):
    """Killed by SIGKILL, with a checkpoint after every step."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import *
torch.set_num_threads(1)
def on_row(row):
    if row["step"] == 8: os.kill(os.getpid(), signal.SIGKILL)
train(fresh(), PAIRS, TrainConfig(**WHOLE), sys.argv[1], on_row=on_row)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (tmp_path / ".checkpoint.pt.partial").write_bytes(b"half of a checkpoint")
    half = tmp_path / ".adapter.partial" / "new" / "adapter_model.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half of an adapter")
    left = []  # at the first log row, when no checkpoint and no adapter has been written anew
    again, config = fresh(), TrainConfig(**WHOLE)
    rows = train(
        again, PAIRS, config, tmp_path, True, lambda _: left.append([*tmp_path.glob(".*")])
    )
    assert left[0] == []
    check_same(whole, tmp_path, rows, again)


def test_what_fails_after_a_boundary_loses_nothing(tmp_path, monkeypatch):
    """The adapter stands before the last log row; a checkpoint before every validation."""
    real = trainer.validate

    def fail(*_):
        raise RuntimeError("no memory left")

    config = TrainConfig(steps=4, **SHORT | {"validate_every": 2})
    monkeypatch.setattr(trainer, "validate", fail)
    with pytest.raises(RuntimeError):
        train(fresh(), PAIRS, config, tmp_path)
    monkeypatch.setattr(trainer, "validate", real)
    denoiser = fresh()
    with pytest.raises(RuntimeError):
        train(denoiser, PAIRS, config, tmp_path, True, lambda row: row["step"] == 4 and fail())
    log = read_log(tmp_path)
    assert [(row["step"], *(row.keys() & {"validation", "loss"})) for row in log] == [
        (0,), (2, "validation"), (4, "loss")
    ]  # fmt: skip
    kept = adapter(load_denoiser("tiny", tmp_path / "adapter", merge=False))
    for name, value in adapter(denoiser).items():
        torch.testing.assert_close(kept[name], value.bfloat16().float())


def command(folder: Path, pairs) -> list[str]:
    """`lad train` with four short steps."""
    (folder / "pairs").write_text(json_lines(pairs))
    (folder / "yaml").write_text("training: {steps: 4, widths: [96], batch_tokens: 96}")
    options = {"pairs": "pairs", "config": "yaml", "out": "out"}
    return ["train", "--model=tiny", *(f"--{k}={folder / v}" for k, v in options.items())]


TOO_LONG, EMPTY = Pair("a", "x" * 200), Pair("b", "")
HELD = hold_out(PAIRS)[1]


@pytest.mark.parametrize(
    ("pairs", "counts"),
    [
        ([*PAIRS, TOO_LONG, EMPTY], (100 - len(HELD), len(HELD), 2)),
        ([PAIRS[0], *(dataclasses.replace(pair, answer="") for pair in HELD)], (1, 0, len(HELD))),
        (HELD[:1], (1, 0, 0)),  # chance holds out all there is
    ],
)
def test_what_fits_is_trained_on_and_what_does_not_is_counted(tmp_path, capsys, pairs, counts):
    status, _, err = run(capsys, *command(tmp_path, pairs))
    assert status == 0, err
    kept, held, dropped = counts
    assert f"{kept} pairs, {held or 'none'} held out to validate, {dropped} dropped" in err
    log, card = read_log(tmp_path / "out"), (tmp_path / "out/adapter/denoiser.json").read_text()
    found = log[0]["data"]
    assert (found["pairs"], found["held_out"], found["dropped"]) == counts
    assert json.loads(card)["training"] == found
    assert any("validation" in row for row in log) == bool(held)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_a_checkpoint(tmp_path, capsys, monkeypatch, number, status):
    step = trainer.Trainer._take_step

    def stopped(self, *args):
        step(self, *args)
        if self.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.Trainer, "_take_step", stopped)
    before = signal.getsignal(signal.SIGINT)
    found, _, err = run(capsys, *command(tmp_path, PAIRS))
    assert found == status and signal.getsignal(signal.SIGINT) == before
    assert f"stopped by {number.name}" in err and "go on with the same command and --resume" in err
    assert not (tmp_path / "out" / "adapter").exists()
    found, _, err = run(capsys, *command(tmp_path, PAIRS), "--resume")
    assert found == 0 and "step      4" in err and "step      2" not in err


def test_the_average_of_the_weights_is_what_is_kept(monkeypatch):
    config = TrainConfig(steps=4, ema=0.5, **SHORT | {"log_every": 1})
    followed = fresh()
    expected = adapter(followed)

    step = trainer.Trainer._take_step

    def follow(self, *args):
        step(self, *args)
        decay = min(0.5, self.step / (9 + self.step))
        for name, value in adapter(followed).items():
            expected[name] = decay * expected[name] + (1 - decay) * value

    monkeypatch.setattr(trainer.Trainer, "_take_step", follow)
    train(followed, PAIRS, config)
    for name, value in adapter(followed).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-4)


def test_resuming_refuses_another_run_and_a_damaged_checkpoint(tmp_path):
    config = TrainConfig(steps=20, accumulate=4, **SHORT)

    def stop(row):
        if "loss" in row:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(fresh(), PAIRS, config, tmp_path, on_row=stop)
    with pytest.raises(InvalidInput, match="made with steps = 20, now it is 21: resume with"):
        train(fresh(), PAIRS, TrainConfig(steps=21, accumulate=4, **SHORT), tmp_path, resume=True)
    with pytest.raises(InvalidInput, match="made with pairs = "):
        train(fresh(), PAIRS[::-1], config, tmp_path, resume=True)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path)
    del state["origin"]["soft_targets"]  # as before there was such a setting
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    with pytest.raises(InvalidInput, match=r"made with soft_targets = 0\.0, now it is 0\.5"):
        soft = dataclasses.replace(config, soft_targets=0.5)
        train(fresh(), PAIRS, soft, tmp_path, resume=True)
    kept = pack(fresh().backbone, hold_out(PAIRS)[0], 128)
    trainer_of_three = trainer.Trainer(fresh(), config, kept)
    trainer_of_three.out = tmp_path
    trainer_of_three.accelerator = type("Three", (), {"num_processes": 3})
    with pytest.raises(InvalidInput, match=r"3 processes .* expected a number that divides 4"):
        trainer_of_three.load_checkpoint()
    data = path.read_bytes()
    flipped = (data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :] for n in (0, len(data) // 2))
    for damaged in (*flipped, data[:1000], data[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="sha256 differs"):
            train(fresh(), PAIRS, config, tmp_path, resume=True)


def test_what_cannot_be_trained_is_named(tmp_path, monkeypatch):
    config = TrainConfig(steps=10, **SHORT)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to"):
        train(fresh(), PAIRS, config, tmp_path / "file" / "out")
    denoiser = fresh()
    with torch.no_grad():
        next(p for n, p in denoiser.model.named_parameters() if "lora_A" in n).fill_(float("nan"))
    with pytest.raises(NumericalError, match="step 5"):
        train(denoiser, PAIRS, config)
    causal = TrainConfig(steps=1, causal_lm_fraction=0.5, **SHORT)
    with pytest.raises(InvalidInput, match=r"causal_lm_fraction = 0\.5 with target 'same'"):
        train(fresh(target="same"), PAIRS, causal)
    with pytest.raises(InvalidInput, match="widths up to 1024: expected at most 512"):
        train(fresh(), PAIRS, TrainConfig(widths=(1024,)))
    for repeats in ((0, 1, 1), (1, 10**8, 1)):
        with pytest.raises(InvalidInput, match="expected three whole numbers from 1 to 100"):
            TrainConfig(repeats=repeats)

    def explode(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore text.")

    monkeypatch.setattr(trainer, "denoising_loss", explode)
    settings = "gradient_checkpointing: true, loss_chunk: 1024, .*shard: true.* tiny:4bit"
    with pytest.raises(InvalidInput, match=rf"Tried to allocate 2\.00 GiB\. More text.*{settings}"):
        train(fresh(), PAIRS, TrainConfig(steps=1, **SHORT))


def test_how_a_step_is_computed_does_not_show(whole):
    denoiser = fresh()
    computed = {"fold_lora": False, "gradient_checkpointing": True, "loss_chunk": 16}
    config = TrainConfig(**WHOLE | computed)
    rows = train(denoiser, PAIRS, config)
    assert config.outcome() == TrainConfig(**WHOLE).outcome()
    assert losses_of(rows) == pytest.approx(losses_of(whole[1]), rel=1e-3)
    for name, value in adapter(denoiser).items():
        torch.testing.assert_close(value, whole[2][name], atol=1e-3, rtol=1e-2)
    assert not denoiser.model.training
    assert not any(getattr(m, "gradient_checkpointing", False) for m in denoiser.model.modules())


def test_settings_survive_yaml_and_unknown_ones_are_refused(tmp_path):
    config = TrainConfig(steps=3, corruption=CorruptionConfig(kinds=("swap",)))
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    for name, value in {"learning_rte": 1, "corruption": {"rat": 1}, "widths": []}.items():
        with pytest.raises(InvalidInput, match=r"'learning_rte'|'rat'|widths"):
            TrainConfig.from_dict({name: value})
    path = tmp_path / "c.yaml"
    for text in ("model: x", "- 1", "a: [", "\x00", "training: [1]", "denoiser: 0", 9999 * "["):
        path.write_text(text)
        with pytest.raises(InvalidInput, match=r"c\.yaml"):
            read_config(path)
    for text, expected in {
        "": {},
        "\ufefftraining:\n#  steps: 2": {},
        "training: {learning_rate: 1e-4}": {"learning_rate": 1e-4},
        "training: {gradient_clip: 2E+1, weight_decay: .5e0}": dict(
            gradient_clip=20.0, weight_decay=0.5
        ),
    }.items():
        path.write_text(text)
        assert TrainConfig.from_dict(read_config(path)["training"]) == TrainConfig(**expected)
    for text in ("steps: 1e400", "steps: .nan", "seed: 2020-01-01", "widths: 96", "corruption:"):
        path.write_text(f"training: {{{text}}}")
        with pytest.raises(InvalidInput, match=r"^\w+ = .*: expected "):
            TrainConfig.from_dict(read_config(path)["training"])


def test_texts_to_correct_are_never_masked_and_often_sound(denoiser):
    pairs = [Pair(REPAIR_PROMPT, f"One {a} and {b} more.") for a in WORDS for b in WORDS] + PAIRS
    batch = take(pack(denoiser.backbone, pairs, 96), list(range(len(pairs))), 96)
    config = TrainConfig(widths=(96,))
    noisy = noisy_inputs(denoiser, batch, config, torch.Generator().manual_seed(0))
    masked = (noisy == denoiser.mask_token_id).any(dim=1)
    assert batch.kinds.tolist() == [1] * 100 + [0] * 100
    assert not masked[:100].any() and masked[100:].sum() > 60
    sound = (noisy == batch.tokens).all(dim=1)[:100].sum()
    assert 30 <= sound <= 75, "4 in 10, and some whose noise changed nothing"


def test_answers_to_choose_are_mostly_masked_whole(denoiser):
    pairs = [Pair(f"Which?\nA: {a}\nB: no", f"A: {a}") for a in WORDS for _ in WORDS]
    batch = take(pack(denoiser.backbone, pairs, 96), list(range(100)), 96)
    assert set(batch.kinds.tolist()) == {2}
    config = TrainConfig(widths=(96,))
    noisy = noisy_inputs(denoiser, batch, config, torch.Generator().manual_seed(0))
    whole = ((noisy == denoiser.mask_token_id) | ~batch.answer).all(dim=1).sum()
    assert 45 <= whole <= 75
