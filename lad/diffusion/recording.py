"""From the steps of a run to a trace that can be read without a model."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.trace import Step, Trace
from lad.models.chat import Prompt

__all__ = ["make_trace", "token_bytes"]


def make_trace(
    denoiser: Denoiser,
    prompt: Prompt | Tensor,
    prompt_ids: Tensor,
    config: RefineConfig,
    steps: list[Step],
) -> Trace:
    """Bundle steps that ran with what is needed to read them without a model."""
    seen = [array for step in steps for array in (step.inputs, step.draft)]
    used = set(np.unique(np.concatenate([*seen, prompt_ids.cpu().numpy()])).tolist())
    added = denoiser.tokenizer.added_tokens_decoder
    special = {t for t in used if t == denoiser.mask_token_id or (t in added and added[t].special)}
    if isinstance(prompt, Tensor):
        text = denoiser.tokenizer.decode(prompt_ids.tolist())
    else:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return Trace(
        prompt=text,
        steps=steps,
        stopped_early=len(steps) < config.iterations,
        mask_token_id=denoiser.mask_token_id,
        eos_token_id=denoiser.eos_token_id,
        special_ids=frozenset(special),
        vocabulary={t: token_bytes(denoiser.tokenizer, t, t in special) for t in used},
        prompt_ids=prompt_ids.cpu().numpy(),
        config=config.to_dict(),
        provenance={
            "model": denoiser.backbone.spec.name,
            "backbone_digest": denoiser.backbone.digest,
            "adapter_sha256": denoiser.adapter_sha256,
            "device": denoiser.device.type,
            "dtype": str(denoiser.causal_lm.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    )


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells each of the 256 bytes as one printable character (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(tokenizer, token_id: int, special: bool = False) -> bytes:
    """The bytes one token stands for; a special token's are its name."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # a padded vocabulary has ids without a token
        return f"<{token_id}>".encode()
    if special or not all(character in BYTE_OF_CHARACTER for character in token):
        return token.encode()
    return bytes(BYTE_OF_CHARACTER[character] for character in token)
