"""The authors' kind of checkpoint becomes a denoiser; a hostile file becomes an error, unrun."""

from __future__ import annotations

import functools
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from conftest import run
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lad.diffusion.adapter import load_denoiser
from lad.models.lad_checkpoint import ENDS, Stub, collect, import_checkpoint, read_checkpoint
from lad.utils import DamagedFile, InvalidInput

HERE = [__name__]


class Wrapper(nn.Module):
    """A module that keeps a peft LLaMA under `llama`, as the authors' does."""

    def __init__(self, llama: nn.Module) -> None:
        super().__init__()
        self.llama = llama
        self.config = llama.config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("source") / "llama", "llama"))


def wrapped(folder: str, head: str = "saved") -> Wrapper:
    """A random model with LoRA of a rank above its features, and a head that was trained."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    if head != "tied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.clone())
    lora = LoraConfig(r=160, lora_alpha=160, target_modules=["q_proj", "v_proj"])
    lora.modules_to_save = ["lm_head"] if head == "saved" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)  # peft draws lora_A
        made = get_peft_model(model, lora)
    for name, parameter in made.named_parameters():
        if "lora_B" in name or ("lm_head" in name and "original" not in name and head != "tied"):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + 0.2 * noise
    return Wrapper(made).eval()


@pytest.mark.parametrize("head", ["saved", "plain", "tied"])
def test_an_imported_checkpoint_is_the_model_that_was_pickled(tokenizer, tmp_path, head):
    module = wrapped(tokenizer, head)
    torch.save(module, tmp_path / "model.pth")
    made = import_checkpoint(tmp_path / "model.pth", tmp_path / "out", tokenizer, HERE, eos=ENDS[0])
    assert (made["rank"], made["alpha"], made["layers"]) == (160, 160, ["q_proj", "v_proj"])
    assert made["trained_head"] == (head == "saved")
    denoiser = load_denoiser(made["backbone"], made["adapter"])
    assert (denoiser.config.attention, denoiser.config.target) == ("bidirectional", "same")
    assert denoiser.tokenizer.decode([denoiser.mask_token_id]) == "MASK"
    assert denoiser.tokenizer.decode([denoiser.eos_token_id]) == ENDS[0]
    turn = [{"role": "user", "content": "Hi?"}]
    assert denoiser.tokenizer.decode(denoiser.encode(turn)) == (
        "<|begin_of_text|>\n<|start_header_id|>system<|end_header_id|>\n"
        "You are a helpful assistant.\n<|start_header_id|>user<|end_header_id|>\nHi?\n"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )
    tokens = torch.randint(256, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        everything = torch.zeros(1, 1, 30, 30)  # nothing is hidden from anything
        expected = module.llama(input_ids=tokens, attention_mask=everything).logits
        got = denoiser.logits(tokens[:, :10], tokens[:, 10:])
    torch.testing.assert_close(got, expected[:, 10:], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("end", "other"), [ENDS, ENDS[::-1]])
def test_an_answer_ends_with_what_fills_a_masked_one(tokenizer, tmp_path, end, other):
    module, source = wrapped(tokenizer), AutoTokenizer.from_pretrained(tokenizer)
    masked, everything = torch.full((1, 64), source.encode("MASK")[0]), torch.zeros(1, 1, 64, 64)
    llama = module.llama.get_base_model()
    state = llama.model(masked, attention_mask=everything).last_hidden_state[0, -1]
    head = llama.lm_head.modules_to_save["default"].weight.data
    head.zero_()[source.convert_tokens_to_ids(end)] = state
    torch.save(module, tmp_path / "model.pth")
    made = import_checkpoint(tmp_path / "model.pth", tmp_path / "a", tokenizer, HERE)
    assert made["eos"] == end and made["eos_shares"][end] > 0.5 and made["eos_shares"][other] == 0
    denoiser = load_denoiser(made["backbone"], made["adapter"])
    assert denoiser.tokenizer.decode([denoiser.eos_token_id]) == end
    made = import_checkpoint(tmp_path / "model.pth", tmp_path / "b", tokenizer, HERE, eos=other)
    assert made["eos"] == other and made["eos_shares"] == {}


def test_the_command_and_code_that_a_configuration_names(tokenizer, tmp_path, capsys):
    module = wrapped(tokenizer)
    config = module.llama.get_base_model().config.__dict__
    config["_attn_implementation_internal"] = "owner/repo:function"
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    torch.save(module, tmp_path / "model.pth")
    command = ("import-checkpoint", tmp_path / "model.pth", f"--out={tmp_path / 'out'}")
    command += (f"--tokenizer={tokenizer}", "--eos=<|eot_id|>")
    status, _, err = run(capsys, *command, "--json")
    assert status == 2 and f"--module {__name__}" in err
    status, out, _ = run(capsys, *command, f"--module={__name__}")
    assert status == 0 and "auto_map ignored: no code is loaded" in out and "rank 160" in out
    config = (tmp_path / "out" / "backbone" / "config.json").read_text()
    assert "owner/repo" not in config and "auto_map" not in config
    assert "is there already" in run(capsys, *command, f"--module={__name__}")[2]


def refused(path: Path, tokenizer: str, out: Path, match: str) -> None:
    """It is an error of one line, and nothing is left behind."""
    with pytest.raises(DamagedFile, match=match) as caught:
        import_checkpoint(path, out, tokenizer, HERE)
    assert "\n" not in str(caught.value) and "nothing of it was run" in str(caught.value)
    assert not out.exists()
    assert not [p for p in out.parent.glob(".out*") if p.is_dir()]


class Evil:
    """Calls something when it is unpickled."""

    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    ("name", "call", "argument"),
    [
        ("(posix|nt|os).system", os.system, "touch {}"),
        (r"_?io\.open", open, "{}"),
    ],
)
def test_code_in_a_checkpoint_is_named_and_not_run(tokenizer, tmp_path, name, call, argument):
    module = wrapped(tokenizer)
    module.extra = Evil(call, argument.format(tmp_path / "ran"))
    torch.save(module, tmp_path / "evil.pth")
    refused(tmp_path / "evil.pth", tokenizer, tmp_path / "out", name)
    assert not (tmp_path / "ran").exists(), "it was run"


def test_admitted_functions_do_nothing_and_a_module_that_holds_itself_ends(tokenizer, tmp_path):
    import transformers.utils.import_utils as inner

    assert inner.os is os
    module = wrapped(tokenizer)
    module.extra = Evil(getattr, Evil(getattr, inner.is_torch_available, "__globals__"), "get")
    module.less = Evil(torch.load, "other.pth")
    module.more = functools.partial(inner.is_torch_available)
    module.llama._modules["again"] = module
    torch.save(module, tmp_path / "odd.pth")
    root = read_checkpoint(tmp_path / "odd.pth", HERE)
    assert {type(root.state[name]) for name in ("extra", "more", "less")} == {Stub}
    assert not any("again.llama" in name for name in collect(root)[0])


def test_a_damaged_archive_and_other_things_that_torch_saves(tokenizer, tmp_path):
    saved, path, out = tmp_path / "model.pth", tmp_path / "bad.pth", tmp_path / "out"
    module = wrapped(tokenizer)
    torch.save(module, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        biggest = max(old.infolist(), key=lambda info: info.file_size)
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    refused(path, tokenizer, out, "is compressed")
    whole = saved.read_bytes()
    for share in (0.0, 0.3, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, tokenizer, out, "or is cut")
    # torch does not check the checksums of a mapped file: the importer does.
    data = bytearray(whole)
    data[biggest.header_offset + 30 + len(biggest.filename) + 5000] ^= 1
    path.write_bytes(data)
    refused(path, tokenizer, out, "CRC")
    torch.save(module, path, _use_new_zipfile_serialization=False)
    refused(path, tokenizer, out, "no archive of torch 1.6")
    torch.save(nn.Linear(3, 3), path)
    refused(path, tokenizer, out, "'weight' belongs to no LLaMA")
    torch.save(module.state_dict(), path)
    refused(path, tokenizer, out, "it holds no module")
    with pytest.raises(InvalidInput, match="no file"):
        import_checkpoint(tmp_path / "none.pth", out, tokenizer)
    with pytest.raises(InvalidInput, match="tokenizer 'tiny'"):
        import_checkpoint(saved, out, "tiny", HERE)
    assert not out.exists()


DOUBLED = ()  # its repr and hash take 2^60 steps
for _ in range(60):
    DOUBLED = (DOUBLED, DOUBLED)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("num_hidden_layers", 3, "Missing key.*layers.2"),
        ("num_hidden_layers", 2.0, r"num_hidden_layers = 2\.0"),
        ("vocab_size", DOUBLED, "vocab_size = "),
        ("rope_parameters", {"factor": DOUBLED}, "rope_parameters.factor"),
        (None, None, "share storage"),
    ],
)
def test_a_module_that_lies(tokenizer, tmp_path, name, value, match):
    module = wrapped(tokenizer)
    llama = module.llama.get_base_model()
    if name is None:  # one number for whole matrices
        for weight_name, weight in llama.named_parameters():
            if "mlp" in weight_name:
                weight.data = torch.ones(1, 1).expand(weight.shape)
    else:
        llama.config.__dict__[name] = value
    torch.save(module, tmp_path / "lies.pth")
    refused(tmp_path / "lies.pth", tokenizer, tmp_path / "out", match)


DEEP = b")" + b"\x85" * 200_000  # its hash overflows the stack of C
TWICE = b")" + b"q\0h\0\x86" * 60  # as DOUBLED
MODULE = b"c__main__\nM\n)\x81}X\x08\0\0\0_modules"  # then the value, and "sb"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
TENSOR += b"X\1\0\0\0000NK\1tQK\0"  # then size and stride, and "tR"
COLLIDING = [pickle.dumps(n * (2**61 - 1), 2)[2:-1] + b"N" for n in range(60_000)]
SHARING = [b"X\4\0\0\0%04d" % n + MODULE + b"h\1sb" for n in range(9_000)]


@pytest.mark.parametrize(
    ("instructions", "match"),
    [
        (b"}" + DEEP + b"K\1s", "no module"),
        (b"}(" + b"".join(COLLIDING) + b"u", "no module"),
        (b"c__builtin__\nset\n](" + DEEP + b"e\x85R", "no LLaMA"),
        (TENSOR + TWICE + TWICE + b"tR", "whole numbers"),
        (MODULE + b"}(" + b"X\1\0\0\0a" + DEEP + b"usb", "no LLaMA"),
        (MODULE + b"}q\1(" + b"".join(SHARING) + b"usb", "too many"),
        ((MODULE + b"}X\1\0\0\0a") * 9_000 + b"N" + b"ssb" * 9_000, "nested too deeply"),
        (b"N" * 2_000_000, "2,000,000 bytes"),
        (b"c__builtin__\nset\n)R(K\1K\1u", "no attribute 'update'"),
        (b"\x95" + bytes(8) + b"N", "149"),
    ],
)
def test_a_bomb_is_refused_in_time(tokenizer, tmp_path, instructions, match):
    path, program = tmp_path / "bomb.pth", b"\x80\2" + instructions + b"."
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", program, len(program))
    writer.write_record("data/0", b"0000", 4)
    writer.write_end_of_file()
    started = time.process_time()
    refused(path, tokenizer, tmp_path / "out", match)
    assert time.process_time() - started < 10
