"""From a GGUF file to a folder that loads in a second, and proof later that it is still whole.

`transformers` reads GGUF, but takes half a minute, most of it for the tokenizer: it is done once.
Beside the usual files the folder holds a manifest, `lad.json`: where the weights came from, under
which licence, what converted them, and size and sha256 of every file.

Reference: https://huggingface.co/docs/transformers/gguf
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from tqdm import tqdm

from lad.utils import DamagedFile, one_line, sha256_file

__all__ = ["MANIFEST", "convert_gguf", "quiet_transformers", "verify_folder"]

MANIFEST = "lad.json"


def convert_gguf(gguf: Path, folder: Path, facts: dict, progress: bool = True) -> None:
    """Write what `gguf` holds as safetensors, configuration, tokenizer and manifest.

    Weights are stored in bfloat16, and a CPU widens those same numbers to float32: both devices
    run one model, and the adapter meets the weights it was trained on.

    Args:
        gguf: a file of the LLaMA family, quantised or not.
        folder: where to write; it exists and is empty.
        facts: goes into the manifest as it is: `backbone`, `source`, `source_sha256`, `licence`.
        progress: draw a progress bar when stderr is a terminal.
    """
    bar = tqdm(total=3, desc=f"converting {gguf.name}, once", disable=None if progress else True)
    # transformers draws a bar of its own for the weights, whatever it is told.
    with bar, redirect_stderr(io.StringIO()), quiet_transformers():
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

        at = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **at)
        bar.update()
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **at, dtype=torch.bfloat16)
        bar.update()
        # A model that came out of a GGUF counts as quantised and refuses to be saved; its numbers
        # are plain by now, so they are written without it.
        config = model.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            config.pop(key, None)
        LlamaConfig(**config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        bar.update()
    files = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "gguf")}
    manifest = {**facts, "converted_with": versions, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def verify_folder(folder: Path, source_sha256: str, remedy: str) -> None:
    """Check every file that `convert_gguf` wrote, by size and sha256 (0.2 s for 270 MB).

    Raises:
        DamagedFile: a file is missing, truncated or altered, or made from another source; the
            message ends in `remedy`.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["source_sha256"] != source_sha256:
            raise ValueError("made from another file")
        for name, expected in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise ValueError(f"{name} has {size:,} bytes, expected {expected['bytes']:,}")
            if sha256_file(path) != expected["sha256"]:
                raise ValueError(f"{name} does not have the sha256 of its manifest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{folder} is damaged ({one_line(error)}): {remedy}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' warnings and progress bars, which say nothing a reader could act on."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
