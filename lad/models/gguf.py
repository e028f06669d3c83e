"""A GGUF file converted to a folder that loads in a second.

transformers reads GGUF, but takes half a minute, most of it for the tokenizer: it is done once.

Reference: https://huggingface.co/docs/transformers/gguf
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path

from tqdm import tqdm

from lad.models.loading import quiet_transformers


def convert_gguf(gguf: Path, folder: Path, progress: bool = True) -> None:
    """Write a GGUF file's model and tokenizer into `folder` as transformers saves them.

    Weights are stored in bfloat16, which a CPU widens to float32: CPU and GPU run the same
    numbers, and an adapter meets the weights that it was trained on.

    Args:
        gguf: a file of the LLaMA family, quantised or not.
        folder: an empty folder.
        progress: draw a progress bar when stderr is a terminal.
    """
    bar = tqdm(total=3, desc=f"converting {gguf.name}, once", disable=None if progress else True)
    # transformers draws a bar of its own for the weights, whatever its settings are.
    with bar, redirect_stderr(io.StringIO()), quiet_transformers():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        bar.update()
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, **source, dtype=torch.bfloat16)
        bar.update()
        # The numbers are plain by now, but transformers refuses to save what it calls quantised.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bar.update()
