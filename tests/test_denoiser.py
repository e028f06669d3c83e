"""Attention, target, prompt cache, LoRA, and adapters on disk."""

import json

import pytest
import torch
from conftest import new_denoiser, run, stir, tiny_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lad import utils
from lad.diffusion import reference
from lad.diffusion.adapter import choice_adapter, find_adapter, load_denoiser, shipped_adapter
from lad.diffusion.config import ATTENTIONS, TARGETS, DenoiserConfig
from lad.diffusion.denoiser import Denoiser, pad_prompts
from lad.models.registry import load_backbone
from lad.utils import AdapterMismatch, AssetUnavailable, CacheError, DamagedFile, InvalidInput

kinds = st.tuples(st.sampled_from(ATTENTIONS), st.sampled_from(TARGETS))
lengths = st.tuples(st.integers(1, 12), st.integers(1, 16))  # prompt, answer


def tokens(count: int, seed: int) -> torch.Tensor:
    return torch.randint(256, (1, count), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(kinds, lengths, st.integers(0, 2**31))
def test_answer_logits_equal_the_whole_models(kind, length, seed):
    denoiser = tiny_denoiser(*kind)
    p, a = length
    ids = tokens(p + a, seed)
    ids[:, p + a // 2 :] = denoiser.mask_token_id
    with torch.no_grad():
        got = denoiser.logits(ids[:, :p], ids[:, p:])[0]
    expected = reference.answer_logits(denoiser, ids[0, :p], ids[0, p:].tolist())
    torch.testing.assert_close(got, expected)


@settings(max_examples=60, deadline=None)
@given(
    kinds,
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 10),
    st.integers(0, 2**31),
)
def test_prompts_of_different_lengths_get_the_logits_they_get_alone(kind, prompts, a, seed):
    denoiser = tiny_denoiser(*kind)
    ids = [tokens(p, seed + n)[0] for n, p in enumerate(prompts)]
    answers = torch.cat([tokens(a, seed + 9 + n) for n in range(len(ids))])
    padded, padding = pad_prompts(ids, filler=seed % 256)  # whatever stands there is not read
    assert (padding is None) == (len(set(prompts)) == 1)
    with torch.no_grad():
        cache = denoiser.read_prompt(padded, padding)
        # Read once, used twice; none where a prompt of one token is computed with the answer.
        is_cached = kind[0] != "bidirectional" and max(prompts) > (kind[1] == "next")
        assert (cache is not None) == is_cached
        got = [denoiser.logits(padded, answers, c, padding) for c in (None, cache, cache)]
        for row, own in enumerate(ids):
            alone = denoiser.logits(own[None], answers[row : row + 1])[0]
            for batch in got:
                torch.testing.assert_close(batch[row], alone, atol=1e-4, rtol=1e-4)


def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_switched_off():
    backbone = load_backbone("tiny")
    ids = tokens(12, 0)
    with torch.no_grad():
        bare = backbone.model(ids).logits.clone()
        denoiser = Denoiser.create(backbone, DenoiserConfig(rank=4, alpha=8))
        causal = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()

        def logits():
            return denoiser.causal_lm.lm_head(denoiser.hidden_states(ids, causal))

        torch.testing.assert_close(logits(), bare)
        stir(denoiser)
        assert (logits() - bare).abs().max() > 0.1
        with denoiser.adapter_off():
            torch.testing.assert_close(logits(), bare)


def test_merging_changes_speed_not_function():
    denoiser, ids = new_denoiser(), tokens(20, 0)

    def logits():
        with torch.no_grad():
            adapted = denoiser.logits(ids[:, :6], ids[:, 6:])
            with denoiser.adapter_off():
                return adapted, denoiser.logits(ids[:, :6], ids[:, 6:])

    apart = logits()
    denoiser.merge()
    torch.testing.assert_close(logits(), apart, atol=1e-4, rtol=1e-4)


def test_creating_leaves_the_global_generator_alone_and_obeys_its_seed():
    before = torch.random.get_rng_state()
    weights = [
        Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4), seed).model.state_dict()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    name = next(key for key in weights[0] if "lora_A" in key)
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(InvalidInput, match="empty"):
        tiny_denoiser().encode(prompt)


@pytest.mark.parametrize("content", [None, 5, [{"type": "text", "text": "hi"}], {}])
def test_a_prompt_that_is_no_text_is_refused(content):
    turn = {"role": "user", "content": content}
    for prompt in (content, [turn], [{"role": "user", "content": "hi"}, turn], [{"content": "hi"}]):
        with pytest.raises(InvalidInput, match=r"expected \{'role': \.\.\., 'content'"):
            tiny_denoiser().encode(prompt or None)


# -- adapters on disk ------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    denoiser = new_denoiser()
    denoiser.save(tmp_path / "adapter")
    return denoiser, tmp_path / "adapter"


def edit(folder, **changes):
    path = folder / "denoiser.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_saved_is_what_is_loaded(saved, merge):
    denoiser, folder = saved
    again = load_denoiser("tiny", folder, merge=merge)
    assert again.config == denoiser.config
    assert again.adapter_sha256 == denoiser.adapter_sha256
    ids = tokens(20, 0)
    with torch.no_grad():
        torch.testing.assert_close(  # stored in bfloat16
            again.logits(ids[:, :6], ids[:, 6:]),
            denoiser.logits(ids[:, :6], ids[:, 6:]),
            atol=0.2,
            rtol=0.05,
        )
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_an_adapter_is_replaced_by_a_new_one(saved):
    denoiser, folder = saved
    first = denoiser.adapter_sha256
    stir(denoiser, seed=2)
    denoiser.save(folder)
    assert load_denoiser("tiny", folder).adapter_sha256 == denoiser.adapter_sha256 != first
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


LORA = {"use_rslora": True, "lora_alpha": 9, "r": 8, "target_modules": ["q_proj"]}
LORA |= {"alpha_pattern": {"q_proj": 3}, "fan_in_fan_out": True}


@pytest.mark.parametrize("key", LORA)
def test_two_descriptions_of_an_adapter_must_agree(saved, key):
    path = saved[1] / "adapter_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {key: LORA[key]}))
    with pytest.raises(AdapterMismatch, match=rf"adapter_config\.json says {key} = "):
        load_denoiser("tiny", saved[1])
    if key == "r":
        edit(saved[1], rank=8)
        with pytest.raises(AdapterMismatch, match=r"do not fit its .*rank 8"):
            load_denoiser("tiny", saved[1])


def test_an_adapter_is_a_folder_or_else_a_shipped_name(saved, monkeypatch):
    denoiser, folder = saved
    name = "smollm2-135m-choice"
    assert find_adapter(name) == choice_adapter("smollm2-135m:4bit") == shipped_adapter(name)
    assert choice_adapter("tiny") is None
    monkeypatch.chdir(folder.parent)
    folder.rename(name)
    assert load_denoiser("tiny", name).adapter_sha256 == denoiser.adapter_sha256


def test_the_mean_of_adapters(saved, tmp_path, capsys):
    folders, states = [saved[1]], [load_file(saved[1] / "adapter_model.safetensors")]
    for seed in (7, 8):
        other = new_denoiser()
        stir(other, seed)
        folders.append(other.save(tmp_path / f"{seed}"))
        states.append(load_file(folders[-1] / "adapter_model.safetensors"))
    command, out = ("average", *folders, "--model=tiny"), tmp_path / "mean"
    assert run(capsys, *command, f"--out={out}")[:2] == (0, f"wrote {out}\n")
    for key, value in load_file(out / "adapter_model.safetensors").items():
        mean = sum(state[key].float() for state in states) / len(states)
        torch.testing.assert_close(value.float(), mean, atol=0, rtol=2**-8)
    cards = [json.loads((folder / "denoiser.json").read_text()) for folder in (out, *folders)]
    assert cards[0]["mean_of"] == [card["adapter_sha256"] for card in cards[1:]]
    assert load_denoiser("tiny", out).config == saved[0].config
    assert "is there already: expected a new folder" in run(capsys, *command, f"--out={out}")[2]
    again = ("average", folders[0], "--model=tiny", f"--out={tmp_path / 'again'}")
    assert "expected two or more" in run(capsys, *again)[2]
    wider = new_denoiser(rank=8).save(tmp_path / "wider")
    assert f"{wider} was made with rank = 8, now it is 4" in run(capsys, *again, wider)[2]


def test_a_failing_save_keeps_the_old_adapter_and_leaves_nothing(saved, monkeypatch):
    denoiser, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(denoiser.model, "save_pretrained", full)
    with pytest.raises(CacheError, match="No space left"):
        denoiser.save(folder)
    (folder.parent / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write to"):
        denoiser.save(folder.parent / "file" / "adapter")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter", "file"]


def test_weights_that_are_damaged_not_there_or_nan(saved):
    _, folder = saved
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)

    def refused(match):
        with pytest.raises(DamagedFile, match=match):
            load_denoiser("tiny", folder)

    path.write_bytes(path.read_bytes()[:-100])
    refused("sha256 differs")
    path.unlink()
    refused("safetensors is unusable")
    weights[sorted(weights)[0]][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    edit(folder, adapter_sha256=utils.sha256_file(path))
    refused("NaN")


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"backbone": "llama-3.1-8b"}, AdapterMismatch, "llama-3.1-8b"),
        ({"backbone_digest": "0" * 64}, AdapterMismatch, "backbone_digest"),
        ({"mask_token_id": 5}, AdapterMismatch, "mask_token_id"),
        ({"rank": 8}, AdapterMismatch, r"r = 4, denoiser\.json 8"),
        ({"layers": ["q_proj"]}, AdapterMismatch, "q_proj"),
        ({"attention": "sideways"}, DamagedFile, "sideways"),
        ({"schema": 7}, DamagedFile, "schema = 7"),
    ],
)
def test_a_card_that_does_not_fit_is_an_error_not_noise(saved, changes, error, named):
    _, folder = saved
    edit(folder, **changes)
    with pytest.raises(error, match=named):
        load_denoiser("tiny", folder)


def test_paths_and_names_that_are_nothing(tmp_path):
    with pytest.raises(InvalidInput, match="no adapter"):
        load_denoiser("tiny", tmp_path)
    with pytest.raises(InvalidInput, match="unknown model"):
        load_denoiser("gpt-5", tmp_path)
    with pytest.raises(AssetUnavailable, match="lad train"):
        load_denoiser("tiny")
