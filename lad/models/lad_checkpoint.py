"""The authors' published checkpoint, a pickled module, as a backbone folder and an adapter.

It is a module that keeps a peft LLaMA under the attribute `llama`: the frozen weights, LoRA on the
query and value projections, and a head that was trained too. What comes out is

    OUT/backbone   the hub's layout: config.json, tokenizer, weights with the trained head
    OUT/adapter    LoRA and denoiser.json: bidirectional attention, same-position target

so `lad refine --model OUT/backbone --adapter OUT/adapter` runs it. The pickle is never executed
(lad/models/unpickling.py), and the weights stream from the one file to the other: memory stays small.

Their prompts are laid out otherwise than by LLaMA's own chat template, without a date in the system
turn; the folder's `chat_template.jinja` holds such a layout. The checkpoint does not carry it, and
the one here was not compared with their code: another can be given.

Reference: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations;
https://huggingface.co/docs/safetensors for the format written here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lad.diffusion.adapter import SCHEMA, DenoiserConfig
from lad.models.download import new_folder
from lad.models.hub import HubModel, fetch_hub
from lad.models.loading import choose_mask, digest_of, read_tokenizer, single_token
from lad.models.registry import get_backbone
from lad.models.unpickling import ITEM_SIZES, LazyTensor, Stub, TorchArchive, walk
from lad.utils import InvalidInput

__all__ = ["LAYOUT", "import_checkpoint"]

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

Progress = Callable[[int, int], object]


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    tokenizer: str = "llama-3.1-8b",
    modules: Sequence[str] = (),
    layout: str = LAYOUT,
    on_progress: Progress = lambda done, total: None,
) -> dict:
    """Convert a checkpoint; `out` appears whole or not at all.

    Args:
        file: a module, or its state dict, that `torch.save` wrote.
        out: a folder that is not there yet.
        tokenizer: a backbone's name, whose tokenizer (only that) is fetched, or a folder with one.
        modules: where the pickled class is from, if not from `__main__`: admitted as stubs.
        layout: chat template, in Jinja.
        on_progress: called with bytes written so far and in all.

    Returns:
        Plain values: the folders, `parameters`, `rank`, `alpha`, `layers`, `trained_head`.

    Raises:
        InvalidInput: no such file, or `out` is there already.
        DamagedFile: the file is not such a checkpoint, damaged, or asks for more than tensors.
        AssetUnavailable, CacheError: the tokenizer cannot be had, or the disk refuses.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise InvalidInput(f"{out} is there already: expected a new folder; choose another --out")
    with TorchArchive(file, modules) as archive:
        contents = Contents(archive)
        source = tokenizer_folder(tokenizer)
        read = read_tokenizer(source, f"run `lad fetch {tokenizer}`")
        with new_folder(out) as partial:
            if partial is None:
                raise InvalidInput(f"{out} is there already: choose another --out")
            read.chat_template = layout
            for name in ("backbone", "adapter"):
                (partial / name).mkdir()
            read.save_pretrained(partial / "backbone")
            contents.config.save_pretrained(partial / "backbone")
            total = sum(t.bytes for t in (*contents.backbone.values(), *contents.lora.values()))
            written = 0

            def tell(count: int) -> None:
                nonlocal written
                written += count
                on_progress(written, total)

            digests = {
                part: stream_safetensors(partial / part / name, archive, tensors, tell)
                for part, name, tensors in (
                    ("backbone", "model.safetensors", contents.backbone),
                    ("adapter", "adapter_model.safetensors", contents.lora),
                )
            }
            card = {
                "schema": SCHEMA,
                "backbone": "backbone",
                "backbone_digest": digest_of({"model.safetensors": digests["backbone"]}),
                "mask_token_id": single_token(read, choose_mask(read, file.name), file.name),
                "eos_token_id": read.eos_token_id,
                "adapter_sha256": digests["adapter"],
                **contents.denoiser.to_dict(),
            }
            write_card(partial / "adapter", card)
    return {
        "backbone": str(out / "backbone"),
        "adapter": str(out / "adapter"),
        "parameters": sum(_count(t) for t in contents.backbone.values()),
        "adapter_parameters": sum(_count(t) for t in contents.lora.values()),
        "rank": contents.denoiser.rank,
        "alpha": contents.denoiser.alpha,
        "layers": list(contents.denoiser.layers),
        "trained_head": contents.trained_head,
    }


class Contents:
    """What a checkpoint holds, sorted and checked: `config`, `backbone`, `lora`, `denoiser`."""

    def __init__(self, archive: TorchArchive) -> None:
        self.archive = archive
        tensors, modules = walk(archive.load())
        self.backbone: dict[str, LazyTensor] = {}
        self.lora: dict[str, LazyTensor] = {}
        self.trained_head = False
        for key, tensor in tensors.items():
            self._sort(key, tensor)
        self.config = self._config(modules)
        self._check_shapes()
        kept = [*self.backbone.values(), *self.lora.values()]
        held = sum(archive.members[name].file_size for name in {t.storage for t in kept})
        if sum(t.bytes for t in kept) > held:
            raise archive.damaged("its tensors share storage, and would be more than the file has")
        self.denoiser = self._denoiser(modules)

    def _sort(self, key: str, tensor: LazyTensor) -> None:
        """Put one tensor where it belongs, under the name that it has there."""
        found = NAMED.fullmatch(key)
        if found is None:
            raise self.archive.damaged(f"tensor {key!r} belongs to no LLaMA")
        name = found["name"]
        if lora := LORA.fullmatch(name):
            self.lora[f"base_model.model.{lora['layer']}.lora_{lora['side']}.weight"] = tensor
            return
        if "lora_" in name:
            raise self.archive.damaged(f"{key!r} is of another kind of LoRA, which is not run here")
        if "rotary_emb." in name or ".original_module." in name:
            return  # computed from the configuration; the head before it was trained
        if ".modules_to_save." in name:
            name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
            self.trained_head |= name.startswith("lm_head.")
        self.backbone[name.replace(".base_layer.", ".")] = tensor

    def _config(self, modules: dict[str, Stub]):
        """The configuration, as the pickled model knew it, as far as it is plain values."""
        from transformers import LlamaConfig

        held = [m.state.get("config") for m in modules.values() if "lm_head" in _parts(m)]
        states = [c.state for c in held if isinstance(c, Stub) and "hidden_size" in c.state]
        if not states:
            raise self.archive.damaged("no LLaMA configuration is in it, as in a bare state dict")
        known = {k: v for k, v in states[0].items() if k[:1] != "_" and _is_plain(v)}
        head, table = (
            self.backbone.get(n) for n in ("lm_head.weight", "model.embed_tokens.weight")
        )
        tied = head is None or (table is not None and head == table)
        if tied:
            self.backbone.pop("lm_head.weight", None)
        drop = ("model_type", "transformers_version", "dtype", "torch_dtype", "architectures")
        known = {k: v for k, v in known.items() if k not in drop} | {"tie_word_embeddings": tied}
        try:
            config = LlamaConfig(**known)
        except Exception as error:
            raise self.archive.damaged(f"its configuration is none ({error})") from error
        config.architectures = ["LlamaForCausalLM"]
        return config

    def _check_shapes(self) -> None:
        """The tensors are those of a LLaMA of that configuration, all of them and no others."""
        import torch
        from transformers import LlamaForCausalLM

        try:
            with torch.device("meta"):
                model = LlamaForCausalLM(self.config)
        except Exception as error:
            raise self.archive.damaged(f"its configuration makes no LLaMA ({error})") from error
        expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
        got = {name: tensor.shape for name, tensor in self.backbone.items()}
        wrong = sorted(n for n in expected.keys() | got.keys() if expected.get(n) != got.get(n))
        if wrong:
            raise self.archive.damaged(
                f"{len(wrong)} tensors are not those of its configuration, first {wrong[0]}: "
                f"shape {got.get(wrong[0])}, not {expected.get(wrong[0])}"
            )
        for name, tensor in self.lora.items():
            layer, _, side = name.removeprefix("base_model.model.").rpartition(".lora_")
            out, into = expected.get(f"{layer}.weight", (None, None))
            fits = len(tensor.shape) == 2 and tensor.shape[side[0] == "A"] == (
                into if side[0] == "A" else out
            )
            if not fits:
                raise self.archive.damaged(f"{name} of shape {tensor.shape} fits no layer")

    def _denoiser(self, modules: dict[str, Stub]) -> DenoiserConfig:
        """Rank, scale and layers; the rest is what the authors trained."""
        ranks = {t.shape[0] for n, t in self.lora.items() if ".lora_A." in n}
        ranks |= {t.shape[1] for n, t in self.lora.items() if ".lora_B." in n}
        sides = [{n.rpartition(".lora_")[0] for n in self.lora if f".lora_{s}." in n} for s in "AB"]
        if len(ranks) != 1 or sides[0] != sides[1]:
            raise self.archive.damaged(f"LoRA of ranks {sorted(ranks)}, not of one rank everywhere")
        (rank,) = ranks
        scales = set()
        for module in modules.values():
            scaling = module.state.get("scaling")
            if "lora_A" in _parts(module) and isinstance(scaling, dict):
                scales |= {v for v in scaling.values() if isinstance(v, int | float)}
        if len(scales) != 1 or not (alpha := scales.pop() * rank) or alpha != int(alpha):
            raise self.archive.damaged(f"LoRA scales {sorted(scales)}, not one of alpha over rank")
        layers = sorted({name.split(".")[-1] for name in sides[0]})
        return DenoiserConfig("bidirectional", "same", rank, int(alpha), tuple(layers), 256)


def tokenizer_folder(name: str) -> Path:
    """A folder with the tokenizer of a backbone, or the folder itself."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    source = get_backbone(name).source
    if not isinstance(source, HubModel):
        raise InvalidInput(
            f"tokenizer {name!r}: expected a model of the hub, or a folder with a tokenizer.json"
        )
    return fetch_hub(source, weights=False)


def stream_safetensors(
    path: Path, archive: TorchArchive, tensors: dict[str, LazyTensor], tell: Callable[[int], object]
) -> str:
    """Write tensors as they come out of the archive; returns the file's hex sha256."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    # The widest numbers first keeps every tensor aligned to its own.
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], name))
    end = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        put(len(text).to_bytes(8, "little") + text)
        for name in order:
            for data in archive.stream(tensors[name]):
                put(data)
                tell(len(data))
    return digest.hexdigest()


def write_card(folder: Path, card: dict) -> None:
    """`denoiser.json`, and peft's own description of the adapter."""
    from peft import LoraConfig

    described = LoraConfig(
        r=card["rank"],
        lora_alpha=card["alpha"],
        target_modules=card["layers"],
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
        base_model_name_or_path=card["backbone"],
    )
    described.target_modules = sorted(described.target_modules)
    described.save_pretrained(folder)
    (folder / "denoiser.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _parts(module: Stub) -> Sequence[str]:
    held = module.state.get("_modules")
    return list(held) if isinstance(held, dict) else []


def _count(tensor: LazyTensor) -> int:
    return tensor.bytes // ITEM_SIZES[tensor.dtype]


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
