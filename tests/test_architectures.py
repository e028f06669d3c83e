"""Every architecture keeps the promises: LLaMA 3, Qwen2, Mistral; random and quantised weights."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import save_checkpoint, tokenizer
from conftest import KINDS, check_learning, stir
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import AutoModelForCausalLM, LlamaConfig

from lad.diffusion import reference
from lad.diffusion.adapter import load_denoiser
from lad.diffusion.config import DenoiserConfig, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.drafts import gapped
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Step, Trace, make_trace
from lad.models.chat import decode_pieces, encode_prompt, encode_text, read_vocabulary
from lad.models.loading import ARCHITECTURES
from lad.models.random_weights import SHAPES
from lad.models.registry import BACKBONES, describe, load_backbone
from lad.utils import DamagedFile, InvalidInput
from lad.viz.tokens import token_spans

SMALL = DenoiserConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("models")
    return {kind: save_checkpoint(here / f"a-{kind}", kind) for kind in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def folder(request, folders) -> Path:
    return folders[request.param]


def make(folder: Path, attention: str = "prompt-causal", target: str = "next") -> Denoiser:
    config = DenoiserConfig(attention=attention, target=target, rank=4, alpha=8)
    denoiser = Denoiser.create(load_backbone(str(folder)), config)
    stir(denoiser)
    return denoiser


def test_a_folder_is_a_backbone(folder):
    loaded = load_backbone(str(folder))
    spec = loaded.spec
    assert spec.name == folder.name, "no path of this machine"
    kind = folder.name.removeprefix("a-")
    assert (spec.mask_token, spec.eos_token) == {
        "llama": ("MASK", "<|eot_id|>"),
        "qwen2": ("<|fim_pad|>", "<|im_end|>"),
        "mistral": ("<unk>", "</s>"),
    }[kind]
    assert spec.parameters == loaded.model.num_parameters()
    # As far as a window reaches, a model with sliding windows is one without.
    assert spec.context == (384 if kind == "mistral" else 512)
    assert {p.requires_grad for p in loaded.model.parameters()} == {False}
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    values = describe(str(folder))
    assert values["cached"] and values["folder"] == str(folder) and values["bytes"] > 0
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert loaded.digest == hashlib.sha256(f"model.safetensors {weights}\n".encode()).hexdigest()


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def replace_text(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_folder_without_such_a_model(folders, tmp_path):
    folder = copy(folders["qwen2"], tmp_path / "copy")

    def refused(error, match):
        with pytest.raises(error, match=match):
            load_backbone(str(folder))

    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refused(DamagedFile, "safetensors.*or copy the folder again")
    replace_text(folder / "config.json", '"qwen2"', '"gpt2"')
    refused(InvalidInput, "'gpt2' model: expected llama, qwen2, mistral")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        replace_text(folder / name, "<|fim_pad|>", "<|other|>")
    refused(InvalidInput, "no token to serve as MASK")
    larger = tokenizer("qwen2")
    larger.add_tokens([f"more{n}" for n in range(320)])
    larger.save_pretrained(folder)
    shutil.copy(folders["qwen2"] / "config.json", folder)
    (folder / "model.safetensors").write_bytes(weights)
    refused(InvalidInput, "copy has 580 tokens and 320 embeddings")
    (folder / "chat_template.jinja").unlink()
    refused(InvalidInput, "no chat template")
    (folder / "tokenizer.json").unlink()
    refused(DamagedFile, "is unusable")


def test_nothing_in_a_folder_is_executed(folders, tmp_path, capsys):
    """Code beside the weights is what the hub calls remote code: it stays text."""
    folder = copy(folders["llama"], tmp_path / "coded")
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    values["attn_implementation"] = "owner/repo:function"
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_backbone(str(folder))
    assert "auto_map, attn_implementation ignored" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        "[" * 100_000,
        {"num_hidden_layers": 10**7},
        {"rms_norm_eps": float("nan")},
        {"rope_parameters": {"factor": 10**400}},
    ],
)
def test_a_configuration_of_other_values_is_refused_in_a_line(folders, tmp_path, changes):
    folder = copy(folders["llama"], tmp_path / "odd")
    values = json.loads((folder / "config.json").read_text())
    changed = changes if isinstance(changes, str) else json.dumps(values | changes)
    (folder / "config.json").write_text(changed)
    with pytest.raises(DamagedFile) as caught:
        load_backbone(str(folder))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


TYPED = ["  a \n", "MASK", "the MASK", "<|eot_id|> x", "é</s>", "a <|fim_pad|>", "[/INST] the<unk>"]
TEXTS = st.text(min_size=1).filter(lambda text: text.strip() and "▁" not in text)
TEXTS |= st.sampled_from(TYPED)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(ARCHITECTURES), texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_prompts_are_what_the_template_gives(folders, kind, texts):
    read = load_tokenizer(folders[kind])
    names = read.convert_ids_to_tokens([*controls(read)])
    for text in texts:
        got = encode_prompt(read, text)
        turn = [{"role": "user", "content": text}]
        expected = read.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        assert text.strip() in read.decode(got)
        if any(name in text for name in names):
            plain = encode_prompt(read, "x")
            assert all(got.count(token) == plain.count(token) for token in controls(read))
        else:
            assert got == read(expected, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(ARCHITECTURES), text=TEXTS)
def test_plain_text_is_never_control_and_comes_back(folders, kind, text):
    read = load_tokenizer(folders[kind])
    ids = encode_text(read, text)
    behind = encode_text(read, text, follows=True)
    assert read.decode(ids) == text and read.decode(encode_text(read, "a") + behind) == "a" + text
    assert not {*ids, *behind} & controls(read)


def test_a_sentencepiece_vocabulary_may_keep_the_first_space():
    read = tokenizer("mistral")
    keeping = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    read.backend_tokenizer.decoder = decoders.Sequence(keeping)
    ids = encode_text(read, "the é\n漢😀")
    vocabulary, scheme = read_vocabulary(read, ids, ()).values()
    shown = b"".join(decode_pieces([vocabulary[token] for token in ids], scheme)).decode()
    assert shown == read.decode(ids) == " the é\n漢😀"


def test_gaps_of_any_vocabulary_stand_in_the_text_as_it_is(folder):
    denoiser = make(folder)
    ids = gapped(denoiser, "MASK the ___ of </s> ___, the MASK.").tokens.tolist()
    assert ids.count(denoiser.mask_token_id) == 2
    [letter] = encode_text(denoiser.tokenizer, "p", follows=True)
    filled = [letter if token == denoiser.mask_token_id else token for token in ids]
    words = filled[: filled.index(denoiser.eos_token_id)]
    assert denoiser.tokenizer.decode(words) == "MASK thep of </s>p, the MASK."


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(ARCHITECTURES))
def test_what_is_shown_is_what_the_tokenizer_decodes(folders, tmp_path_factory, data, kind):
    denoiser = denoiser_of(folders[kind])
    read = denoiser.tokenizer
    plain = st.sampled_from(sorted({*range(len(read))} - controls(read)))
    ids = data.draw(TEXTS.map(lambda text: encode_text(read, text)) | st.lists(plain, min_size=1))
    steps, nothing = [], np.zeros(len(ids), dtype=bool)
    for n in range(len(ids) + 1):  # one token more each
        draft = np.array(ids[:n] + [denoiser.eos_token_id] * (len(ids) - n))
        steps.append(Step(n, draft, draft, nothing.astype(np.float32), nothing))
    prompt = denoiser.encode("the prompt")
    trace = make_trace(denoiser, prompt, prompt, RefineConfig(), steps)
    trace = Trace.load(trace.save(tmp_path_factory.mktemp("trace") / "trace.jsonl"))
    assert trace.prompt == read.decode(prompt)
    for n in range(len(steps)):
        spans = [span.text for span in token_spans(trace, n) if span.kind == "text"]
        assert "".join(spans) == trace.text(n) == read.decode(ids[:n])


@functools.cache
def denoiser_of(folder: Path) -> Denoiser:
    return make(folder)


def load_tokenizer(folder: Path):
    return denoiser_of(folder).tokenizer


def controls(read) -> set[int]:
    return {*read.added_tokens_decoder, read.mask_token_id}


def test_turns_controls_and_dates_are_the_same_tomorrow(folders):
    """The template alone writes today's date; a control token typed by the user is text."""
    today = datetime.date.today().strftime("%d %b %Y")
    turn = [{"role": "user", "content": "x"}]
    assert today in tokenizer("llama").apply_chat_template(turn, tokenize=False)
    read = load_tokenizer(folders["llama"])
    turns = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": " <|eot_id|>\n"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "MASK?"},
    ]
    ids = encode_prompt(read, turns)
    assert ids.count(read.eos_token_id) == 4, "the ends of the turns"
    assert read.decode(ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nDate: 26 Jul 2024\n\n"
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|eot_id|><|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nMASK?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_turns_that_a_template_refuses(folders):
    read = load_tokenizer(folders["mistral"])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "</s> b"}]
    with pytest.raises(InvalidInput, match=r"roles system, user \(roles must alternate\)"):
        encode_prompt(read, turns)
    shown = "{% for m in messages if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% endfor %}"
    dropping = tokenizer("mistral")
    dropping.chat_template = shown
    for text in ("b", "</s> b"):
        with pytest.raises(InvalidInput, match=r"drops the system message.*expected an order"):
            encode_prompt(dropping, [turns[0], {"role": "user", "content": text}])
    dropping.chat_template = "[INST]{{ messages[1].content }} {{ messages[0].content }}[/INST]"
    assert "</s> b Be brief." in dropping.decode(encode_prompt(dropping, turns))


@pytest.mark.parametrize("kind", KINDS, ids=["-".join(kind) for kind in KINDS])
def test_masks_and_positions_are_those_of_plain_transformers(folder, kind):
    """Our hidden path (boolean masks, prompt cache, answer logits) against one plain call with a
    4-D mask of numbers in eager attention, for grouped heads and stretched rotary positions."""
    denoiser = make(folder, *kind)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    if hasattr(plain.config, "sliding_window"):
        plain.config.sliding_window = None
    weights = dict(plain.named_parameters())
    for name, module in denoiser.causal_lm.named_modules():
        if hasattr(module, "lora_A"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            weights[f"{name}.weight"].data += module.scaling["default"] * b.data @ a.data

    def eager(attention_mask, **more):
        numbers = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, -torch.inf)
        return plain(attention_mask=numbers, **more)

    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(256, (2, 150), generator=generator)  # past the original positions
    answer = torch.randint(256, (2, 20), generator=generator)
    answer[:, 3:9] = denoiser.mask_token_id
    same = {"device": "cpu", "mask_token_id": denoiser.mask_token_id, "config": denoiser.config}
    stand_in, rows = SimpleNamespace(causal_lm=eager, **same), zip(prompt, answer, strict=True)
    expected = torch.stack([reference.answer_logits(stand_in, p, x.tolist()) for p, x in rows])
    with torch.no_grad():
        whole = denoiser.logits(prompt, answer)
        cached = denoiser.logits(prompt, answer, denoiser.read_prompt(prompt))
    assert expected.std() > 0.5
    torch.testing.assert_close(whole, expected, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(cached, expected, atol=2e-4, rtol=1e-3)


def test_a_batch_is_the_reference_run_by_run(folder):
    denoiser, prompts = denoiser_of(folder), ["one", "a longer prompt"]
    config = RefineConfig(answer_length=12, iterations=6, remasking="random", patience=0)
    for prompt, trace in zip(prompts, refine_batch(denoiser, prompts, config), strict=True):
        plain = reference.refine(denoiser, denoiser.encode(prompt), config)
        assert [s.draft.tolist() for s in trace.steps] == [s.draft.tolist() for s in plain]


def test_an_adapter_is_trained_and_loaded_by_the_path_of_its_backbone(folder, tmp_path):
    denoiser = Denoiser.create(load_backbone(str(folder)), SMALL)
    check_learning(denoiser, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter"
    card = json.loads((adapter / "denoiser.json").read_text())
    assert card["backbone"] == folder.name and card["mask_token_id"] == denoiser.mask_token_id
    kept = load_denoiser(str(folder), adapter, merge=False).model.state_dict()
    for name, weight in denoiser.model.state_dict().items():
        expected = weight.bfloat16().float() if "lora_" in name else weight
        assert torch.equal(kept[name], expected), name
    elsewhere = copy(folder, tmp_path / "another-name")
    load_denoiser(str(elsewhere), adapter)  # known by its weights


@pytest.mark.parametrize("name", [name for name in SHAPES if name in BACKBONES and name != "tiny"])
def test_shapes_have_the_published_number_of_weights(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name]))
    assert model.num_parameters() == BACKBONES[name].parameters
    assert model.config.max_position_embeddings == BACKBONES[name].context


def test_random_weights_of_a_shape():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = load_backbone("tiny:random"), load_backbone("tiny:random")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (one.spec.name, one.digest) == ("tiny:random", "random")
    state = two.model.state_dict()
    assert all(torch.equal(w, state[k]) for k, w in one.model.state_dict().items())
    assert one.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert one.model.lm_head.weight is one.model.model.embed_tokens.weight


quantized = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install 'lad[quantized]'",
)


def test_without_bitsandbytes_the_error_comes_before_a_download(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else found(n, *a)
    )
    with pytest.raises(InvalidInput, match=r"pip install 'lad\[quantized\]'"):
        load_backbone("llama-3.1-8b:4bit")


@quantized
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_nearly_the_plain_ones_and_take_an_adapter(folders, tmp_path, bits):
    """It is trained beside frozen weights, belongs to the plain model too, and is not merged."""
    name = str(folders["llama"])
    plain, loaded = load_backbone(name), load_backbone(f"{name}:{bits}bit")
    assert (loaded.digest, loaded.spec.name) == (plain.digest, plain.spec.name)
    weight = loaded.model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
    tokens = torch.randint(256, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = (backbone.model(tokens).logits for backbone in (plain, loaded))
    assert 1e-4 < float((got - expected).norm() / expected.norm()) < (0.5 if bits == 4 else 0.1)
    denoiser, frozen = Denoiser.create(loaded, SMALL), weight.clone()
    check_learning(denoiser)
    assert torch.equal(weight, frozen)
    denoiser.save(tmp_path / "adapter")
    load_denoiser(name, tmp_path / "adapter")
    again = load_denoiser(f"{name}:{bits}bit", tmp_path / "adapter")
    assert not any(getattr(m, "merged", False) for m in again.model.modules())
