"""The authors' kind of checkpoint becomes a denoiser; a hostile file becomes an error, unrun."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from conftest import run
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from lad.diffusion.adapter import load_denoiser
from lad.models import lad_checkpoint
from lad.models.lad_checkpoint import LAYOUT, Stub, collect, import_checkpoint, read_checkpoint
from lad.models.registry import load_backbone
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


def wrapped(folder: str, head: str = "saved", dtype: torch.dtype = torch.float32) -> Wrapper:
    """A random model with LoRA of a rank above its features, and a head that was trained."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    if head != "tied":
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.data.clone())
    lora = LoraConfig(
        r=160,
        lora_alpha=160,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["lm_head"] if head == "saved" else None,
    )
    made = get_peft_model(model, lora)
    for name, parameter in made.named_parameters():
        if "lora_B" in name or ("lm_head" in name and "original" not in name and head != "tied"):
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.data = parameter.data + 0.2 * noise
    return Wrapper(made).eval()


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.pth"
    torch.save(wrapped(tokenizer), path)
    return path


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["saved", "plain", "tied"])
def test_an_imported_checkpoint_is_the_model_that_was_pickled(tokenizer, tmp_path, head):
    module = wrapped(tokenizer, head)
    torch.save(module, tmp_path / "model.pth")
    told: list[tuple[int, int]] = []
    made = import_checkpoint(
        tmp_path / "model.pth",
        tmp_path / "out",
        tokenizer,
        HERE,
        on_progress=lambda *n: told.append(n),
    )
    assert told[-1][0] == told[-1][1] > 0
    assert (made["rank"], made["alpha"], made["layers"]) == (160, 160, ["q_proj", "v_proj"])
    assert made["trained_head"] == (head == "saved")
    denoiser = load_denoiser(made["backbone"], made["adapter"])
    assert (denoiser.config.attention, denoiser.config.target) == ("bidirectional", "same")
    assert denoiser.tokenizer.decode([denoiser.mask_token_id]) == "MASK"
    assert denoiser.tokenizer.decode([denoiser.eos_token_id]) == "<|eot_id|>"
    tokens = torch.randint(256, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        everything = torch.zeros(1, 1, 30, 30)  # nothing is hidden from anything
        expected = module.llama(input_ids=tokens, attention_mask=everything).logits
        got = denoiser.logits(tokens[:, :10], tokens[:, 10:])
    torch.testing.assert_close(got, expected[:, 10:], atol=1e-4, rtol=1e-3)


def test_prompts_are_laid_out_as_the_authors_do(saved, tokenizer, tmp_path):
    import_checkpoint(saved, tmp_path / "out", tokenizer, HERE)
    backbone = load_backbone(str(tmp_path / "out" / "backbone"))
    turn = [{"role": "user", "content": "Hi?"}]
    text = backbone.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n"
        "You are a helpful assistant.\n<|start_header_id|>user<|end_header_id|>\nHi?\n"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )
    assert backbone.tokenizer.chat_template == LAYOUT


def test_weights_keep_their_type_and_every_bit(tokenizer, tmp_path):
    module = wrapped(tokenizer, dtype=torch.bfloat16)
    torch.save(module, tmp_path / "model.pth")
    import_checkpoint(tmp_path / "model.pth", tmp_path / "out", tokenizer, HERE)
    weights = load_file(tmp_path / "out" / "backbone" / "model.safetensors")
    plain = module.llama.get_base_model()
    for name, weight in weights.items():
        source = name.replace("q_proj.", "q_proj.base_layer.")
        source = source.replace("v_proj.", "v_proj.base_layer.")
        source = source.replace("lm_head.", "lm_head.modules_to_save.default.")
        assert torch.equal(weight, plain.get_parameter(source)), name
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 2 * 2
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (160, ["q_proj", "v_proj"])


def test_the_command(saved, tokenizer, tmp_path, capsys):
    command = ("import-checkpoint", saved, f"--out={tmp_path / 'out'}", f"--tokenizer={tokenizer}")
    status, _, err = run(capsys, *command, "--json")
    assert status == 2 and f"--module {__name__}" in err
    status, out, _ = run(capsys, *command, "--json", f"--module={__name__}")
    assert status == 0 and json.loads(out)["rank"] == 160
    assert "is there already" in run(capsys, *command, f"--module={__name__}")[2]


# -- files that lie --------------------------------------------------------------------------------


def refused(path: Path, tokenizer: str, out: Path, match: str) -> None:
    """It is an error of one line, and nothing is left behind."""
    with pytest.raises(DamagedFile, match=match) as caught:
        import_checkpoint(path, out, tokenizer, HERE)
    assert "\n" not in str(caught.value) and "nothing of it was run" in str(caught.value)
    assert not out.exists()
    assert not [p for p in out.parent.glob(".out*") if p.is_dir()]


class Evil:
    """Runs a shell command when it is unpickled."""

    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


CALLS = {
    "os.system": lambda path: Evil(os.system, f"touch {path}"),
    "builtins.exec": lambda path: Evil(exec, f"open({str(path)!r}, 'w')"),
    "builtins.eval": lambda path: Evil(eval, f"open({str(path)!r}, 'w')"),
    "subprocess.check_call|commands.check_call": lambda path: Evil(
        __import__("subprocess").check_call, ["touch", str(path)]
    ),
    "_io.open|io.open": lambda path: Evil(open, str(path), "w"),
    "importlib.import_module": lambda path: Evil(
        __import__("importlib").import_module, "antigravity"
    ),
    "pickle.loads|_pickle.loads": lambda path: Evil(
        pickle.loads, pickle.dumps(Evil(os.system, f"touch {path}"))
    ),
    "torch.load|torch.serialization.load": lambda path: Evil(torch.load, "other.pth"),
}


@pytest.mark.parametrize("name", CALLS)
def test_code_in_a_checkpoint_is_named_and_not_run(tokenizer, tmp_path, name):
    module = wrapped(tokenizer)
    module.extra = CALLS[name](tmp_path / "ran")
    torch.save(module, tmp_path / "evil.pth")
    pattern = name.replace("os.system", "(posix|nt|os).system").replace(".", r"\.")
    refused(tmp_path / "evil.pth", tokenizer, tmp_path / "out", pattern)
    assert not (tmp_path / "ran").exists(), "it was run"


def test_getattr_gives_no_attribute_of_anything(tokenizer, tmp_path):
    """getattr is admitted, for bound methods, but as a stub."""
    import transformers.utils.import_utils as inner

    assert inner.os is os
    module = wrapped(tokenizer)
    module.extra = Evil(getattr, Evil(getattr, inner.is_torch_available, "__globals__"), "get")
    module.more = functools.partial(inner.is_torch_available)
    torch.save(module, tmp_path / "odd.pth")
    root = read_checkpoint(tmp_path / "odd.pth", HERE)
    assert type(root.state["extra"]) is type(root.state["more"]) is Stub


def rebuild(source: Path, to: Path, change, method: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an archive whose members went through `change(name, data)`; None drops one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w", method) as new:
        for info in old.infolist():
            data = change(info.filename.partition("/")[2], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return to


def test_a_damaged_archive(saved, tokenizer, tmp_path):
    def inflate(name, data):
        return bytes(50_000_000) if name == "data/0" else data

    path, out = tmp_path / "bad.pth", tmp_path / "out"
    rebuild(saved, path, inflate, zipfile.ZIP_DEFLATED)
    refused(path, tokenizer, out, "is compressed")  # a zip bomb
    for name in ("data.pkl", "data/3"):
        rebuild(saved, path, lambda n, data, name=name: None if n == name else data)
        refused(path, tokenizer, out, f"locating file {name}")
    whole = saved.read_bytes()
    for share in (0.0, 0.3, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, tokenizer, out, "or is cut")
    # The directory at the end of the archive claims more bytes than the file has.
    data = bytearray(whole)
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(b"data/0"))
    struct.pack_into("<II", data, at + 20, 2**31, 2**31)
    path.write_bytes(data)
    refused(path, tokenizer, out, "refused")
    # torch does not check the checksums of a mapped file: the importer does.
    with zipfile.ZipFile(saved) as archive:
        biggest = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(whole)
    data[biggest.header_offset + 30 + len(biggest.filename) + 5000] ^= 1
    path.write_bytes(data)
    refused(path, tokenizer, out, "CRC")


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"


def archive_of(path: Path, body: bytes, storage: bytes = bytes(400)) -> Path:
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        new.writestr("a/data/0", storage)
        new.writestr("a/version", b"3\n")
    return path


def one_tensor(size: tuple[int, ...], stride: tuple[int, ...], count: int = 100, offset: int = 0):
    """A pickle, opcode by opcode, of one tensor."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + struct.pack("<i", count) + b"tQJ"
        + struct.pack("<i", offset) + numbers(size) + numbers(stride) + b"\x89)tR"
    )  # fmt: skip


def test_a_tensor_by_hand_is_read(tmp_path):
    path = archive_of(tmp_path / "fine.pth", one_tensor((10, 10), (10, 1)))
    assert torch.equal(read_checkpoint(path), torch.zeros(10, 10))


@pytest.mark.parametrize(
    "body",
    [
        one_tensor((10, 11), (11, 1)),
        one_tensor((10, 10), (10, 1), offset=1),
        one_tensor((10, -10), (10, 1)),
        one_tensor((10, 10), (10, 1)).replace(b"\x00\x000X", b"\x00\x007X"),
        b"cos\nsystem\n(X\x02\x00\x00\x00lstR",
        b"cposix\nsystem\n(X\x02\x00\x00\x00lstR",
        b"(X\x02\x00\x00\x00lsios\nsystem\n",  # INST
        b"\x82\x01",  # EXT1
        b"Pmine\n",  # PERSID
        b"\x96" + struct.pack("<Q", 2**60),  # BYTEARRAY8
        b"\x97",  # NEXT_BUFFER
        b"]r\xff\xff\xff\x7f0",  # a memo's number alone allocates nothing
        b"ctorch.nn\nLinear\n}b",  # state for a class, not for an object
        b"ctorch.nn\nLinear\nN}X\x01\x00\x00\x00ai\x86b",
    ],
)  # fmt: skip
def test_a_pickle_that_lies(tmp_path, body):
    with pytest.raises((ValueError, RuntimeError, pickle.UnpicklingError)):
        read_checkpoint(archive_of(tmp_path / "bad.pth", body))


def test_a_description_that_is_long_or_deep(tokenizer, tmp_path, monkeypatch):
    path = archive_of(tmp_path / "deep.pth", b"]" * 100_000 + b"a" * 99_999)
    refused(path, tokenizer, tmp_path / "out", "holds no module")
    monkeypatch.setattr(lad_checkpoint, "MAX_PICKLE_BYTES", 1000)
    refused(path, tokenizer, tmp_path / "out", r"data\.pkl has")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda llama, one, two: setattr(two, "weight", one.weight), "share storage"),
        # One number for a whole matrix; a matrix by columns.
        (lambda llama, one, two: setattr(two.weight, "data", torch.ones(1, 1).expand(192, 128)),
         "strides|share storage"),
        (lambda llama, one, two: setattr(two.weight, "data", torch.ones(128, 192).t()), "strides"),
        (lambda llama, one, two: one.weight.data[3].fill_(float("nan")), "has NaN"),
        (lambda llama, one, two: one.weight.data[3].fill_(float("inf")), "has NaN"),
        (lambda llama, one, two: setattr(llama.config, "num_hidden_layers", 3), "Missing.*layers"),
        (lambda llama, one, two: setattr(llama.config, "num_hidden_layers", 10**9), "layers of"),
    ],
)  # fmt: skip
def test_a_module_that_lies(tokenizer, tmp_path, change, match):
    module = wrapped(tokenizer)
    llama = module.llama.get_base_model()
    change(llama, *(layer.mlp.up_proj for layer in llama.model.layers))
    torch.save(module, tmp_path / "lies.pth")
    refused(tmp_path / "lies.pth", tokenizer, tmp_path / "out", match)


def test_a_module_that_holds_itself_ends(tmp_path, tokenizer):
    module = wrapped(tokenizer)
    module.llama._modules["again"] = module
    torch.save(module, tmp_path / "loop.pth")
    tensors, modules = collect(read_checkpoint(tmp_path / "loop.pth", HERE))
    assert len(modules) < 200 and not any("again.llama" in name for name in tensors)


def test_other_things_that_torch_saves(tokenizer, tmp_path):
    torch.save(nn.Linear(3, 3), tmp_path / "linear.pth")
    refused(tmp_path / "linear.pth", tokenizer, tmp_path / "out", "'weight' belongs to no LLaMA")
    module = wrapped(tokenizer)
    torch.save(module.state_dict(), tmp_path / "state.pth")
    refused(tmp_path / "state.pth", tokenizer, tmp_path / "out", "it holds no module")
    torch.save(module, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", tokenizer, tmp_path / "out", "no archive of torch 1.6")
    with pytest.raises(InvalidInput, match="no file"):
        import_checkpoint(tmp_path / "none.pth", tmp_path / "out", tokenizer)
    buffer = io.BytesIO()
    pickle.dump(Evil(os.system, "true"), buffer)
    (tmp_path / "bare.pth").write_bytes(buffer.getvalue())
    refused(tmp_path / "bare.pth", tokenizer, tmp_path / "out", "no archive of torch 1.6")


def test_a_tokenizer_that_is_none(saved, tmp_path):
    with pytest.raises(InvalidInput, match="tokenizer 'tiny'"):
        import_checkpoint(saved, tmp_path / "out", "tiny", HERE)
    assert not (tmp_path / "out").exists()
