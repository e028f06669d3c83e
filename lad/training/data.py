"""Pairs of prompt and answer: reading, holding out, self-distilling, and packing for a step.

Training answers are the backbone's own ("self-distillation"): what it would have said left to right
is what the denoiser must learn to refine towards. Such answers have low entropy, which drawing many
tokens in parallel needs.

On disk: JSON Lines, one `{"prompt": ..., "answer": ...}` a line, gzipped if the name ends in .gz.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lad.models.chat import encode_prompts
from lad.models.registry import LoadedBackbone
from lad.utils import DamagedFile, InvalidInput

__all__ = [
    "PackedPairs",
    "Pair",
    "batches",
    "everyday_prompts",
    "held_out_prompts",
    "hold_out",
    "pack",
    "read_pairs",
    "self_distil",
]


@dataclass(frozen=True)
class Pair:
    """A user's prompt and the answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Pairs as token ids, ready to be cut to any width.

    Attributes:
        tokens: `(n, context)` int32, prompt with chat template, answer, then EOS to the end.
        prompt_lengths: `(n,)` int64.
        ends: `(n,)` int64, the position of the first EOS.
        dropped: pairs that did not fit the context.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    ends: Tensor
    dropped: int

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> PackedPairs:
        """The same on another device; a training step then copies nothing from the host."""
        moved = (t.to(device) for t in (self.tokens, self.prompt_lengths, self.ends))
        return PackedPairs(*moved, self.dropped)


def everyday_prompts() -> list[str]:
    """Short plain questions that come with the package, for demonstrations."""
    path = Path(__file__).parents[1] / "assets" / "prompts.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def held_out_prompts() -> list[str]:
    """A hundred everyday prompts to measure by; `lad distil` keeps them out of every pair."""
    path = Path(__file__).parents[1] / "assets" / "held-out.txt"
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def read_pairs(path: str | Path) -> list[Pair]:
    """Read a JSON Lines file of pairs.

    Raises:
        InvalidInput: no such file, or no pairs in it.
        DamagedFile: a line that is no pair, or a truncated gzip, named with its line number.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInput(f"no pairs at {path}: expected a JSON Lines file of prompt and answer")
    pairs: list[Pair] = []
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if not (isinstance(row["prompt"], str) and isinstance(row["answer"], str)):
                    raise TypeError("prompt and answer must be text")
                pairs.append(Pair(row["prompt"], row["answer"]))
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error) as error:
        raise DamagedFile(
            f"{path}, line {len(pairs) + 1}: {error!r}; expected "
            '{"prompt": "...", "answer": "..."} on every line; make the file again'
        ) from error
    if not pairs:
        raise InvalidInput(f"{path} holds 0 pairs: expected at least one line")
    return pairs


def hold_out(pairs: Sequence[Pair], every: int = 50) -> tuple[list[Pair], list[Pair]]:
    """Split into (training, held out), about one prompt in `every` held out.

    The split hangs on the prompt's own digest, so a prompt lands on one side whatever file, order
    or run it comes from, and the same prompt never stands on both.
    """
    train, held = [], []
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt.strip().lower().encode()).digest()
        (held if int.from_bytes(digest[:4], "big") % every == 0 else train).append(pair)
    return train, held


def pack(backbone: LoadedBackbone, pairs: Sequence[Pair], context: int) -> PackedPairs:
    """Tokenise pairs under the backbone's chat template; those longer than the context are dropped.

    Raises:
        InvalidInput: none fits.
    """
    tokenizer = backbone.tokenizer
    prompts = encode_prompts(tokenizer, [pair.prompt for pair in pairs])
    answers = tokenizer([pair.answer for pair in pairs], add_special_tokens=False)["input_ids"]
    fits = [len(p) + len(a) < context for p, a in zip(prompts, answers, strict=True)]
    rows = [(p, a) for p, a, fit in zip(prompts, answers, fits, strict=True) if fit and a]
    if not rows:
        raise InvalidInput(f"none of {len(pairs)} pairs fits a context of {context} tokens")
    tokens = torch.full((len(rows), context), backbone.eos_token_id, dtype=torch.int32)
    for row, (prompt, answer) in enumerate(rows):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    return PackedPairs(
        tokens,
        torch.tensor([len(p) for p, _ in rows]),
        torch.tensor([len(p) + len(a) for p, a in rows]),
        len(pairs) - len(rows),
    )


def batches(
    ends: Sequence[int],
    widths: Sequence[int],
    batch_tokens: int,
    widen: float,
    seed: int,
    processes: int = 1,
) -> Iterator[tuple[int, list[int]]]:
    """Endless (width, rows) of global batches, the same on every process.

    Rows of similar length share a batch, so little is spent on EOS; some are put one width up, so
    that the denoiser sees long EOS tails too and learns where an answer ends.

    Args:
        ends: position of each row's first EOS.
        widths: the lengths batches come in; fixed shapes let a compiled model be reused.
        batch_tokens: positions per process and batch.
        widen: share of rows put one width up.
    """
    widths = sorted(widths)
    epoch = 0
    while True:
        shuffle = random.Random(f"{seed}-{epoch}")
        buckets: dict[int, list[int]] = {width: [] for width in widths}
        for row, end in enumerate(ends):
            level = next(i for i, width in enumerate(widths) if end < width)
            level = min(level + (shuffle.random() < widen), len(widths) - 1)
            buckets[widths[level]].append(row)
        queue = []
        for width, rows in buckets.items():
            size = max(batch_tokens // width, 1) * processes
            shuffle.shuffle(rows)
            # A bucket's last rows wait for the next epoch; one too small for a batch repeats.
            if 0 < len(rows) < size:
                # Rare lengths must not be repeated more often than the rest is seen.
                if shuffle.random() < len(rows) / size:
                    queue.append((width, [rows[i % len(rows)] for i in range(size)]))
                continue
            for first in range(0, len(rows) - size + 1, size):
                queue.append((width, rows[first : first + size]))
        shuffle.shuffle(queue)
        yield from queue
        epoch += 1


@torch.inference_mode()
def self_distil(
    backbone: LoadedBackbone, prompts: Sequence[str], max_tokens: int = 48, batch_size: int = 16
) -> list[Pair]:
    """The backbone's own greedy answers, kept when they end within `max_tokens`.

    Call it before an adapter is put on the backbone.
    """
    tokenizer, pairs = backbone.tokenizer, []
    for first in range(0, len(prompts), batch_size):
        chunk = list(prompts[first : first + batch_size])
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in chunk
        ]
        inputs = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        ).to(backbone.model.device)
        produced = backbone.model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=backbone.eos_token_id,
            pad_token_id=backbone.eos_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        for prompt, ids in zip(chunk, produced.tolist(), strict=True):
            if backbone.eos_token_id in ids:
                ids = ids[: ids.index(backbone.eos_token_id)]
                answer = tokenizer.decode(ids, skip_special_tokens=True).strip()
                if answer:
                    pairs.append(Pair(prompt, answer))
    return pairs
