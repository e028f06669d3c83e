"""The authors' published checkpoint, a pickled module, as a backbone folder and an adapter.

It is a module with a peft LLaMA under the attribute `llama`: frozen weights, LoRA on the query and
value projections, and a trained head. The result is

    OUT/backbone   the hub's layout: config.json, tokenizer, weights with the trained head
    OUT/adapter    LoRA and denoiser.json: bidirectional attention, same-position target

so `lad refine --model OUT/backbone --adapter OUT/adapter` runs it.

A pickle is a program. torch's restricted unpickler reads it, and every class that the file names
is an inert `Stub`: nothing in the file is executed. Weights stay in the file (mmap) until written.

Their prompts have another layout than LLaMA's chat template, without a date in the system turn.
The checkpoint does not hold it, and `LAYOUT` was not compared with their code: pass another if
theirs differs.

References: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations;
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from lad.models.download import HubModel, fetch_hub, new_folder
from lad.models.loading import (
    choose_mask,
    quiet_transformers,
    read_tokenizer,
    single_token,
    weights_digest,
)
from lad.models.registry import get_backbone
from lad.utils import DamagedFile, InvalidInput, one_line, sha256_file, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM

LAYOUT = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] != 'system' %}"
    "<|start_header_id|>system<|end_header_id|>\nYou are a helpful assistant.\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n{{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.[^.]+\.weight")
NAMED = re.compile(r"(.*\b(llama|module)\.)?(base_model\.model\.)?(?P<name>(model|lm_head)\..+)")
# What a module with a peft LLaMA is made of, beside tensors: packages and single names.
STUB_PACKAGES = ("transformers", "peft", "accelerate", "torch.nn", "torch._C._nn", "__main__")
STUB_NAMES = ("builtins.getattr", "builtins.frozenset", "functools.partial", "torch.layout")
MAX_PICKLE_BYTES = 64 * 2**20  # the description of an 8 B module takes 1 or 2 MB


class Stub:
    """Stands for an object or function of any class: keeps its state, does nothing."""

    def __new__(cls, *args) -> Stub:
        stub = super().__new__(cls)
        stub.state = {}
        return stub

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}

    def get(self, name: str) -> dict:
        """An attribute that is a dictionary, such as `_modules`; else an empty one."""
        value = self.state.get(name)
        return value if isinstance(value, dict) else {}


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    tokenizer: str = "llama-3.1-8b",
    modules: Sequence[str] = (),
    layout: str = LAYOUT,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict:
    """Convert a checkpoint; `out` appears whole or not at all.

    Args:
        file: a module that `torch.save` wrote.
        out: a folder that does not exist yet.
        tokenizer: a backbone's name, whose tokenizer (only that) is fetched, or a folder with one.
        modules: where the pickled class is from, if not from `__main__`: read as stubs.
        layout: chat template, in Jinja.
        on_progress: called with bytes written so far and in all, after each file.

    Returns:
        Plain values: the folders, `parameters`, `rank`, `alpha`, `layers`, `trained_head`.

    Raises:
        InvalidInput: no such file, or `out` exists.
        DamagedFile: the file is not such a checkpoint, damaged, or asks for more than tensors.
        AssetUnavailable, CacheError: no tokenizer can be had, or the disk refuses.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    file, out = Path(file), Path(out)
    if out.exists():
        raise InvalidInput(f"{out} is there already: expected a new folder; choose another --out")
    if not file.is_file():
        raise InvalidInput(f"no file {file}: expected a checkpoint that torch.save wrote")
    try:
        tensors, stubs = collect(read_checkpoint(file, modules))
        backbone, lora, trained_head = sort_tensors(tensors)
        model = make_model(stubs, backbone)
        settings = read_lora(stubs, lora, dict(model.named_parameters()))
        check_stored({**dict(model.named_parameters()), **lora}, file.stat().st_size)
    except Exception as error:  # a hostile file can make torch and transformers raise anything
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to load it unsafely
            reason = "its pickle is broken, or holds more than modules and tensors"
        raise DamagedFile(
            f"{file} is refused: {reason}; nothing of it was run; expected a module that "
            "torch.save wrote; download it again from a source that you trust"
        ) from error
    source = read_tokenizer(tokenizer_folder(tokenizer))
    source.chat_template = layout
    sizes = [sum(t.nbytes for t in part) for part in (model.parameters(), lora.values())]
    # transformers draws a bar while it saves, whatever its settings are.
    with new_folder(out) as partial, quiet_transformers(), redirect_stderr(io.StringIO()):
        if partial is None:
            raise InvalidInput(f"{out} is there already: choose another --out")
        source.save_pretrained(partial / "backbone")
        model.save_pretrained(partial / "backbone")
        on_progress(sizes[0], sum(sizes))
        adapter = partial / "adapter"
        peft_config = LoraConfig(**settings, base_model_name_or_path="backbone")
        peft_config.target_modules = settings["target_modules"]  # in order; peft makes it a set
        peft_config.save_pretrained(adapter)
        save_file(lora, adapter / "adapter_model.safetensors", {"format": "pt"})
        on_progress(sum(sizes), sum(sizes))
        card = {  # as `lad.diffusion.adapter` reads it
            "schema": 1,
            "backbone": "backbone",
            "backbone_digest": weights_digest(partial / "backbone"),
            "mask_token_id": single_token(source, choose_mask(source, file.name), file.name),
            "eos_token_id": source.eos_token_id,
            "adapter_sha256": sha256_file(adapter / "adapter_model.safetensors"),
            "attention": "bidirectional",
            "target": "same",
            "rank": settings["r"],
            "alpha": settings["lora_alpha"],
            "layers": settings["target_modules"],
            "context": 256,
        }
        write_json(adapter / "denoiser.json", card)
    return {
        "backbone": str(out / "backbone"),
        "adapter": str(out / "adapter"),
        "parameters": model.num_parameters(),
        "adapter_parameters": sum(t.numel() for t in lora.values()),
        "rank": card["rank"],
        "alpha": card["alpha"],
        "layers": card["layers"],
        "trained_head": trained_head,
    }


# -- reading, without running anything -------------------------------------------------------------


def read_checkpoint(file: Path, modules: Sequence[str] = ()) -> object:
    """The pickled object, every class in it a `Stub`; raises for anything but plain storage."""
    import torch

    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of torch 1.6 or later, or is cut")
    # torch maps the file and checks no checksum; a compressed member would be unpacked first.
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, as torch never does")
            if member.filename.endswith("/data.pkl") and member.file_size > MAX_PICKLE_BYTES:
                raise ValueError(f"its data.pkl has {member.file_size:,} bytes")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} fails its checksum (CRC)")
    packages = (*STUB_PACKAGES, *modules)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    for name in names:
        if name not in STUB_NAMES and not name.startswith(tuple(f"{p}." for p in packages)):
            raise ValueError(
                f"it asks for {name}, which is not admitted (if that is the class of the model: "
                f"--module {name.rpartition('.')[0]})"
            )
    with torch.serialization.safe_globals([(Stub, name) for name in names]):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def collect(root: object) -> tuple[dict[str, Tensor], list[Stub]]:
    """Tensors of a pickled module by their dotted names, and all modules in it."""
    import torch

    if not isinstance(root, Stub):
        raise ValueError("it holds no module, but for example a bare state dict")
    tensors, stubs = {}, {}
    queue = [("", root)]
    while queue:
        prefix, module = queue.pop()
        if not isinstance(module, Stub) or module in stubs:  # a module may contain itself
            continue
        stubs[module] = True
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in module.get(kind).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{prefix}{key}"] = value.detach()
                else:
                    queue.append((f"{prefix}{key}.", value))
    return tensors, list(stubs)


def sort_tensors(
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """Tensors of backbone and LoRA under their published names, and if the head was trained."""
    backbone, lora, trained_head = {}, {}, False
    for key, tensor in tensors.items():
        found = NAMED.fullmatch(key)
        if found is None:
            raise ValueError(f"tensor {key!r} belongs to no LLaMA")
        name = found["name"]
        if match := LORA.fullmatch(name):
            lora[f"base_model.model.{match['layer']}.lora_{match['side']}.weight"] = tensor
            continue
        if "lora_" in name:
            raise ValueError(f"{key!r} is of another kind of LoRA, which is not supported")
        if "rotary_emb." in name or ".original_module." in name:
            continue  # computed from the configuration; the head before training
        if ".modules_to_save." in name:
            name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
            trained_head |= name.startswith("lm_head.")
        backbone[name.replace(".base_layer.", ".")] = tensor
    return backbone, lora, trained_head


def make_model(stubs: Sequence[Stub], backbone: dict[str, Tensor]) -> LlamaForCausalLM:
    """A LLaMA of the pickled configuration (its plain values) with exactly these tensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    configs = [stub.state.get("config") for stub in stubs if "lm_head" in stub.get("_modules")]
    values = next((config.state for config in configs if isinstance(config, Stub)), {})
    if "hidden_size" not in values:
        raise ValueError("no LLaMA configuration is in it")
    table = backbone["model.embed_tokens.weight"]
    head = backbone.setdefault("lm_head.weight", table)
    drop = ("model_type", "transformers_version", "dtype", "torch_dtype")
    values = {k: v for k, v in values.items() if k[:1] != "_" and k not in drop and is_plain(v)}
    config = LlamaConfig(**values | {"tie_word_embeddings": head.data_ptr() == table.data_ptr()})
    if config.num_hidden_layers > len(backbone):
        raise ValueError(f"{config.num_hidden_layers:,} layers of {len(backbone)} tensors")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(backbone, assign=True)
    model.tie_weights()
    return model


def read_lora(stubs: Sequence[Stub], lora: dict[str, Tensor], weights: dict[str, Tensor]) -> dict:
    """Rank, alpha and layers of the adapter, under peft's names; raises if `weights` differ."""
    ranks = {t.shape[".lora_B." in name] for name, t in lora.items()}
    sides = [{n.rpartition(".lora_")[0] for n in lora if f".lora_{s}." in n} for s in "AB"]
    if len(ranks) != 1 or sides[0] != sides[1]:
        raise ValueError(f"LoRA of ranks {sorted(ranks)}, not of one rank everywhere")
    (rank,) = ranks
    for layer in sides[0]:
        out, features = weights[f"{layer.removeprefix('base_model.model.')}.weight"].shape
        a, b = (lora[f"{layer}.lora_{side}.weight"].shape for side in "AB")
        if (a, b) != ((rank, features), (out, rank)):
            raise ValueError(f"LoRA of shapes {tuple(a)} and {tuple(b)} does not fit {layer}")
    scales = set()
    for stub in stubs:
        if "lora_A" in stub.get("_modules"):
            scales |= {v for v in stub.get("scaling").values() if isinstance(v, int | float)}
    alphas = {scale * rank for scale in scales}
    if len(alphas) != 1 or not all(alpha > 0 and alpha == int(alpha) for alpha in alphas):
        raise ValueError(f"LoRA scales {sorted(scales)}, not one of alpha over rank")
    layers = sorted({layer.split(".")[-1] for layer in sides[0]})
    return {"r": rank, "lora_alpha": int(alphas.pop()), "target_modules": layers}


def check_stored(tensors: dict[str, Tensor], file_size: int) -> None:
    """Raise unless every tensor is finite and has its own place in the file."""
    import torch

    # Else a few bytes could stand for any number of them.
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > file_size or len({t.data_ptr() for t in tensors.values()}) < len(tensors):
        raise ValueError("its tensors share storage, and would be more than the file has")
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}, which is not contiguous")
        if not torch.stack(tensor.aminmax()).isfinite().all():  # without a copy of it
            raise ValueError(f"{name} has NaN or infinity")


def is_plain(value: object) -> bool:
    """True for JSON's types."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def tokenizer_folder(name: str) -> Path:
    """A folder with the tokenizer of a backbone on the hub, or the folder itself."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    source = get_backbone(name).source
    if not isinstance(source, HubModel):
        raise InvalidInput(
            f"tokenizer {name!r}: expected a model of the hub, or a folder with a tokenizer.json"
        )
    return fetch_hub(source, weights=False)
