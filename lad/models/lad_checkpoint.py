"""The authors' published checkpoint, a pickled module, as a backbone folder and an adapter.

It is a module with a peft LLaMA under the attribute `llama`: frozen weights, LoRA on the query and
value projections, and a trained head. A pickle is a program: torch's restricted unpickler reads
it, every class that the file names is an inert `Stub`, and nothing in the file is executed.

Reference: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lad.models import loading
from lad.models.download import HubModel, fetch_hub, new_folder
from lad.models.registry import get_backbone
from lad.utils import DamagedFile, InvalidInput, one_line, sha256_file, write_json

# The authors' prompts have another layout than LLaMA's chat template, without a date. The
# checkpoint does not hold it, and this one was not compared with their code.
LAYOUT = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "<|start_header_id|>system<|end_header_id|>\nYou are a helpful assistant.\n{% endif %}"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n"
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.[^.]+\.weight")
NAMED = re.compile(r"(.*\b(llama|module)\.)?(base_model\.model\.)?(?P<name>(model|lm_head)\..+)")
# What a module with a peft LLaMA is made of, beside tensors: packages and single names.
STUB_PACKAGES = ("transformers", "peft", "accelerate", "torch.nn", "torch._C._nn", "__main__")
STUB_NAMES = ("builtins.getattr", "builtins.frozenset", "functools.partial", "torch.layout")


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
        return self.state.get(name) or {}


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    tokenizer: str = "llama-3.1-8b",
    modules: Sequence[str] = (),
    layout: str = LAYOUT,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict:
    """Convert a checkpoint to `out/backbone` and `out/adapter`; `out` appears whole or not at all.

    `tokenizer` is a folder, or a backbone, of which nothing else is fetched. Classes of `modules`
    are read as stubs, as those of `__main__` are. `layout` is a chat template; `on_progress` gets
    the bytes written so far and in all. Raises InvalidInput where `out` exists or `file` does not,
    DamagedFile for a file that is no such checkpoint or asks for more than tensors.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise InvalidInput(f"{out} is there already: expected a new folder; choose another --out")
    if not file.is_file():
        raise InvalidInput(f"no file {file}: expected a checkpoint that torch.save wrote")
    try:
        tensors, stubs = collect(read_checkpoint(file, modules))
        backbone, lora, trained_head = _sort_tensors(tensors)
        model = _make_model(stubs, backbone)
        settings = _read_lora(stubs, lora)
        sizes = [sum(t.nbytes for t in part) for part in (model.parameters(), lora.values())]
        if sum(sizes) > file.stat().st_size:  # else a few bytes could stand for any number
            raise ValueError("its tensors share storage, and would be more than the file has")
    except Exception as error:  # a hostile file can make torch and transformers raise anything
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to load it unsafely
            reason = "its pickle is broken, or holds more than modules and tensors"
        raise DamagedFile(
            f"{file} is refused: {reason}; nothing of it was run; expected a module that "
            "torch.save wrote; download it again from a source that you trust"
        ) from error
    folder = Path(tokenizer).expanduser()
    if not (folder / "tokenizer.json").is_file():
        hub = get_backbone(tokenizer).source
        if not isinstance(hub, HubModel):
            raise InvalidInput(f"tokenizer {tokenizer!r}: expected a model of the hub, or a folder")
        folder = fetch_hub(hub, weights=False)
    source = loading.read_tokenizer(folder)
    source.chat_template = layout
    mask = loading.choose_mask(source, file.name)
    # transformers draws a bar while it saves, whatever its settings are.
    with new_folder(out) as partial, loading.quiet_transformers(), redirect_stderr(io.StringIO()):
        source.save_pretrained(partial / "backbone")
        model.save_pretrained(partial / "backbone")
        on_progress(sizes[0], sum(sizes))
        adapter = partial / "adapter"
        LoraConfig(**settings, base_model_name_or_path="backbone").save_pretrained(adapter)
        save_file(lora, adapter / "adapter_model.safetensors", {"format": "pt"})
        on_progress(sum(sizes), sum(sizes))
        # As `lad.diffusion.adapter` reads it.
        card = {"schema": 1, "attention": "bidirectional", "target": "same", "context": 256}
        card |= {
            "backbone": "backbone",
            "backbone_digest": loading.weights_digest(partial / "backbone"),
            "mask_token_id": loading.single_token(source, mask, file.name),
            "eos_token_id": source.eos_token_id,
            "adapter_sha256": sha256_file(adapter / "adapter_model.safetensors"),
        }
        kind = {"rank": settings["r"], "alpha": settings["lora_alpha"]}
        kind["layers"] = settings["target_modules"]
        write_json(adapter / "denoiser.json", card | kind)
    made = kind | {"trained_head": trained_head, "parameters": model.num_parameters()}
    return made | {"backbone": str(out / "backbone"), "adapter": str(out / "adapter")}


def read_checkpoint(file: Path, modules: Sequence[str] = ()) -> object:
    """The pickled object, every class in it a `Stub`; raises for anything but plain storage."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of torch 1.6 or later, or is cut")
    # torch maps the file and checks no checksum; a compressed member would be unpacked first.
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed, as torch never does")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} fails its checksum (CRC)")
    packages = tuple(f"{package}." for package in (*STUB_PACKAGES, *modules))
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    for name in names:
        if name not in STUB_NAMES and not name.startswith(packages):
            module = name.rpartition(".")[0]
            raise ValueError(f"it asks for {name} (the class of the model? --module {module})")
    with torch.serialization.safe_globals([(Stub, name) for name in names]):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def collect(root: object) -> tuple[dict[str, Tensor], list[Stub]]:
    """Tensors of a pickled module by their dotted names, and all modules in it."""
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


def _sort_tensors(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """Tensors of backbone and LoRA under their published names, and if the head was trained."""
    backbone, lora, trained_head = {}, {}, False
    for key, tensor in tensors.items():
        found = NAMED.fullmatch(key)
        if found is None or ("lora_" in key and not LORA.fullmatch(found["name"])):
            raise ValueError(f"tensor {key!r} belongs to no LLaMA with plain LoRA")
        name = found["name"]
        if match := LORA.fullmatch(name):
            lora[f"base_model.model.{match['layer']}.lora_{match['side']}.weight"] = tensor
        # Left out: what is computed from the configuration, and the head before training.
        elif "rotary_emb." not in name and ".original_module." not in name:
            trained_head |= name.startswith("lm_head.modules_to_save.")
            name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
            backbone[name.replace(".base_layer.", ".")] = tensor
    return backbone, lora, trained_head


def _make_model(stubs: Sequence[Stub], backbone: dict[str, Tensor]) -> LlamaForCausalLM:
    """A LLaMA of the pickled configuration (its plain values) with exactly these tensors."""
    (values, *_) = [s.state["config"].state for s in stubs if "lm_head" in s.get("_modules")]
    table = backbone["model.embed_tokens.weight"]
    head = backbone.setdefault("lm_head.weight", table)
    names = {*LlamaConfig.__annotations__, "rope_theta", "rope_scaling"}
    values = {name: value for name, value in values.items() if name in names}
    config = LlamaConfig(**values | {"tie_word_embeddings": head.data_ptr() == table.data_ptr()})
    if config.num_hidden_layers > len(backbone):
        raise ValueError(f"{config.num_hidden_layers:,} layers of {len(backbone)} tensors")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(backbone, assign=True)
    model.tie_weights()
    return model


def _read_lora(stubs: Sequence[Stub], lora: dict[str, Tensor]) -> dict:
    """Rank, alpha and layers of the adapter, under peft's names."""
    ranks = {t.shape[".lora_B." in name] for name, t in lora.items()}
    layers = [stub for stub in stubs if "lora_A" in stub.get("_modules")]
    scales = {scale for layer in layers for scale in layer.get("scaling").values()}
    if len(ranks) != 1 or len(scales) != 1:
        raise ValueError(f"LoRA of ranks {sorted(ranks)} and scales {sorted(scales)}, not one each")
    rank, scale = ranks.pop(), scales.pop()
    if scale * rank != int(scale * rank):
        raise ValueError(f"LoRA scale {scale} is not a whole alpha over the rank {rank}")
    layers = sorted({name.split(".lora_")[0].split(".")[-1] for name in lora})
    return {"r": rank, "lora_alpha": int(scale * rank), "target_modules": layers}
