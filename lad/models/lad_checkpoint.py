"""The authors' published checkpoint, a pickled module, as a backbone folder and an adapter.

It is a module with a peft LLaMA under the attribute `llama`: frozen weights, LoRA on the query and
value projections, and a trained head. A pickle is a program: `Unpickler` makes plain values, mapped
tensors and, of every class that the file names, an inert `Stub`. Nothing in the file is executed.

Reference: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lad.models import loading
from lad.models.download import HubModel, fetch_hub, new_folder
from lad.models.registry import get_backbone
from lad.utils import InvalidInput, damaged_file, sha256_file, write_json

# The prompt of the authors' demo, `format_chat_prompt` in legacy/inference/app.py of
# https://github.com/RuurdKuiper/lad-generic. Its last newline is masked and drawn there.
LAYOUT = (
    "{{ bos_token }}\n{% if messages[0]['role'] != 'system' %}"
    "<|start_header_id|>system<|end_header_id|>\nYou are a helpful assistant.\n{% endif %}"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n"
    "{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)
ENDS = ("<|eot_id|>", "<|end_of_text|>")  # of LLaMA 3: either may be what fills the context window
CONTEXT = 256  # that the adapter was trained with
LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.[^.]+\.weight")
NAMED = re.compile(r"(.*\b(llama|module)\.)?(base_model\.model\.)?(?P<name>(model|lm_head)\..+)")
# What a module with a peft LLaMA is made of, beside plain values: packages and single names.
STUB_PACKAGES = ("transformers.", "peft.", "accelerate.", "torch.", "__main__.")
STUB_NAMES = ("builtins.getattr", "builtins.set", "builtins.frozenset", "functools.partial")
STUB_NAMES += ("collections.OrderedDict",)
STORAGES = {"torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16}
STORAGES |= {"torch.FloatStorage": torch.float32, "torch.LongStorage": torch.int64}
# Instructions that only move values or make plain ones (see Python's `pickletools`).
PLAIN = b"\x80(.N\x88\x89KMJ\x8aGX})]ae\x85\x86\x87tqrhjcQ"
# A module of the 8 B model's shape has 0.3 MB of instructions and 1 MB of tensors' names.
MOST_BYTES, MOST_NAMES = 2_000_000, 10_000_000
REMEDY = (
    "nothing of it was run; expected a module that torch.save wrote; download it again from a "
    "source that you trust"
)


class Stub:
    """Stands for an object of any class: keeps its state, does nothing."""

    def __init__(self) -> None:
        self.state = {}

    def get(self, name: str) -> dict:
        """An attribute that is a dictionary, such as `_modules`; else an empty one."""
        value = self.state.get(name)
        return value if type(value) is dict else {}


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    tokenizer: str = "llama-3.1-8b",
    modules: Sequence[str] = (),
    layout: str = LAYOUT,
    eos: str | None = None,
) -> dict:
    """Convert a checkpoint to `out/backbone` and `out/adapter`; `out` appears whole or not at all.

    `tokenizer` is a folder, or a backbone, of which nothing else is fetched. Classes of `modules`
    are read as stubs, as those of `__main__` are. `layout` is a chat template; `eos` the token that
    ends an answer, by default decided by one forward pass (`measure_ends`). Raises InvalidInput
    where `out` exists or `file` does not, DamagedFile for a file that is no such checkpoint or asks
    for more than tensors.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise InvalidInput(f"{out} is there already: expected a new folder; choose another --out")
    if not file.is_file():
        raise InvalidInput(f"no file {file}: expected a checkpoint that torch.save wrote")
    refusals = partial(damaged_file, file, REMEDY, Exception)  # torch and transformers raise any
    with refusals():
        tensors, stubs = collect(read_checkpoint(file, modules))
        backbone, lora, trained_head = _sort_tensors(tensors)
        model, ignored = _make_model(stubs, backbone)
        settings = _read_lora(stubs, lora)
        sizes = [sum(t.nbytes for t in part) for part in (model.parameters(), lora.values())]
        if sum(sizes) > file.stat().st_size:  # else a few bytes could stand for any number
            raise ValueError("its tensors share storage, and would be more than the file has")
    folder = Path(tokenizer).expanduser()
    if not (folder / "tokenizer.json").is_file():
        hub = get_backbone(tokenizer).source
        if not isinstance(hub, HubModel):
            raise InvalidInput(f"tokenizer {tokenizer!r}: expected a model of the hub, or a folder")
        folder = fetch_hub(hub, weights=False)
    source = loading.read_tokenizer(folder)
    source.chat_template = layout
    mask = loading.single_token(source, loading.choose_mask(source, file.name), file.name)
    shares = {}
    if eos is None:
        with refusals():
            shares = measure_ends(model, lora, settings, source, mask)
        eos = max(shares, key=shares.__getitem__)
    loading.single_token(source, eos, file.name)
    source.eos_token = eos
    # transformers draws a bar while it saves, whatever its settings are.
    with (
        tqdm(total=sum(sizes), unit="B", unit_scale=True, leave=False, disable=None) as bar,
        new_folder(out) as new,
        loading.quiet_transformers(),
        redirect_stderr(io.StringIO()),
    ):
        source.save_pretrained(new / "backbone")
        model.save_pretrained(new / "backbone")
        bar.update(sizes[0])
        adapter = new / "adapter"
        LoraConfig(**settings, base_model_name_or_path="backbone").save_pretrained(adapter)
        save_file(lora, adapter / "adapter_model.safetensors", {"format": "pt"})
        # As `lad.diffusion.adapter` reads it.
        card = {"schema": 1, "attention": "bidirectional", "target": "same", "context": CONTEXT}
        card |= {"mask_token_id": mask, "eos_token_id": source.eos_token_id, "backbone": "backbone"}
        card["backbone_digest"] = loading.weights_digest(new / "backbone")
        card["adapter_sha256"] = sha256_file(adapter / "adapter_model.safetensors")
        kind = {"rank": settings["r"], "alpha": settings["lora_alpha"]}
        kind["layers"] = settings["target_modules"]
        write_json(adapter / "denoiser.json", card | kind)
    made = kind | {"trained_head": trained_head, "parameters": model.num_parameters()}
    made |= {"eos": eos, "eos_shares": shares, "ignored": ignored}
    return made | {"backbone": str(out / "backbone"), "adapter": str(out / "adapter")}


def read_checkpoint(file: Path, modules: Sequence[str] = ()) -> object:
    """The pickled object, every class in it a `Stub`; raises for anything but plain storage."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of torch 1.6 or later, or is cut")
    # Tensors are mapped, so no checksum is seen later; a compressed member would be unpacked.
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("a part of it is compressed, as torch never does")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} fails its checksum (CRC)")
    reader = torch._C.PyTorchFileReader(str(file))
    mapped = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    if reader.get_record_size("data.pkl") > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes describe its modules")
    unpickler = Unpickler(io.BytesIO(reader.get_record("data.pkl")))
    unpickler.packages = (*STUB_PACKAGES, *(f"{module}." for module in modules))
    unpickler.reader, unpickler.mapped = reader, mapped
    return unpickler.load()


class Unpickler(pickle._Unpickler):
    """Python's unpickler with few instructions, and its own where something is called or hashed.

    Its time and memory are in proportion to the length of what it reads: only text is hashed.
    """

    dispatch: ClassVar = {code: pickle._Unpickler.dispatch[code] for code in PLAIN}

    def find_class(self, module: str, name: str) -> str:
        """Any admitted class or function, as its name."""
        name = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if name in STUB_NAMES or name.startswith(self.packages):
            return name
        module = name.rpartition(".")[0]
        raise ValueError(f"it asks for {name} (the class of the model? --module {module})")

    def persistent_load(self, reference: object) -> Tensor:
        """The numbers of a storage, mapped."""
        match reference:
            case ("storage", str() as kind, str() as key, *_):
                start = self.reader.get_record_offset(f"data/{key}")
                size = self.reader.get_record_size(f"data/{key}")
                return torch.empty(0, dtype=STORAGES[kind]).set_(self.mapped[start : start + size])
        raise ValueError("it refers to something that is no storage")

    def load_call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = make(self.stack[-1], arguments)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is Stub and type(state) is dict:
            self.stack[-1].state = state

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        # Other keys name no tensor; the hash of a deep tuple may never end, chosen numbers collide.
        pairs = zip(items[::2], items[1::2], strict=True)
        self.stack[-1].update((key, value) for key, value in pairs if type(key) is str)

    dispatch |= {pickle.REDUCE[0]: load_call, pickle.NEWOBJ[0]: load_call}
    dispatch |= {pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem}
    dispatch |= {pickle.SETITEMS[0]: load_setitems}


def make(name: object, arguments: object) -> Tensor | dict | Stub:
    """What calling a class or function gives: a tensor, an empty dictionary, or a stub."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (Tensor() as storage, start, size, stride, *_):
            if not all(type(n) is int for n in (start, *size[:9], *stride[:9])):
                raise ValueError("a tensor's shape has something else than whole numbers")
            return storage.as_strided(size[:9], stride[:9], start)
        case str(), (Tensor() as data, *_) if name.startswith("torch._utils._rebuild_parameter"):
            return data
        case "torch._tensor._rebuild_from_type_v2", (inner, _, more, _):
            return make(inner, more)
    return Stub()


def collect(root: object) -> tuple[dict[str, Tensor], list[Stub]]:
    """Tensors of a pickled module by their dotted names, and all modules in it."""
    if not isinstance(root, Stub):
        raise ValueError("it holds no module, but for example a bare state dict")
    tensors, stubs, length = {}, {}, 0
    queue = [("", root)]
    while queue:
        prefix, module = queue.pop()
        if not isinstance(module, Stub) or module in stubs:  # a module may contain itself
            continue
        stubs[module] = True
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in module.get(kind).items():
                name = f"{prefix}{key}"
                length += len(name)
                if length > MOST_NAMES:
                    raise ValueError("its modules are nested too deeply, or too many")
                if isinstance(value, Tensor):
                    tensors[name] = value.detach()
                else:
                    queue.append((f"{name}.", value))
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


def _make_model(
    stubs: Sequence[Stub], backbone: dict[str, Tensor]
) -> tuple[LlamaForCausalLM, list[str]]:
    """A LLaMA of the pickled configuration with exactly these tensors; what of it was ignored."""
    configs = [s.state["config"].state for s in stubs if "lm_head" in s.get("_modules")]
    if not configs:
        raise ValueError("it holds no LLaMA")
    values, ignored = loading.check_config(configs[0])
    table = backbone["model.embed_tokens.weight"]
    head = backbone.setdefault("lm_head.weight", table)
    tied = head.data_ptr() == table.data_ptr()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**values | {"tie_word_embeddings": tied}))
    model.load_state_dict(backbone, assign=True)
    model.tie_weights()
    return model, ignored


def measure_ends(
    model: LlamaForCausalLM, lora: dict[str, Tensor], settings: dict, tokenizer, mask: int
) -> dict[str, float]:
    """Share of an answer's positions at which each of `ENDS` is likeliest, when all are MASK.

    What a denoiser was trained to fill its context window with behind an answer is most of it.
    """
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([prompt + [mask] * (CONTEXT - len(prompt))])
    everything = torch.zeros(1, 1, CONTEXT, CONTEXT)  # nothing is hidden from anything

    def add_lora(module, inputs, output, a, b):
        return output + settings["lora_alpha"] / settings["r"] * linear(linear(*inputs, a), b)

    for name in {name.rpartition(".lora_")[0] for name in lora}:
        sides = {side: lora[f"{name}.lora_{side.upper()}.weight"] for side in "ab"}
        layer = model.get_submodule(name.removeprefix("base_model.model."))
        layer.register_forward_hook(partial(add_lora, **sides))
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config)  # of numbers that no file has
    # Weights stay where the file is mapped, and are widened or narrowed one by one.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        best = model(tokens, attention_mask=everything, use_cache=False).logits[0, len(prompt) :]
    best, vocabulary = best.argmax(-1), tokenizer.get_vocab()
    ends = [end for end in (tokenizer.eos_token, *ENDS) if end in vocabulary]
    return {end: (best == vocabulary[end]).float().mean().item() for end in ends}


def _read_lora(stubs: Sequence[Stub], lora: dict[str, Tensor]) -> dict:
    """Rank, alpha and layers of the adapter, under peft's names."""
    ranks = {t.shape[".lora_B." in name] for name, t in lora.items()}
    layers = [stub for stub in stubs if "lora_A" in stub.get("_modules")]
    scales = {float(scale) for layer in layers for scale in layer.get("scaling").values()}
    if len(ranks) != 1 or len(scales) != 1:
        raise ValueError(f"LoRA of ranks {sorted(ranks)} and scales {sorted(scales)}, not one each")
    rank, scale = ranks.pop(), scales.pop()
    if scale * rank != int(scale * rank):
        raise ValueError(f"LoRA scale {scale} is not a whole alpha over the rank {rank}")
    layers = sorted({name.split(".lora_")[0].split(".")[-1] for name in lora})
    return {"r": rank, "lora_alpha": int(scale * rank), "target_modules": layers}
