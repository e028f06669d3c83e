"""Pairs of prompt and answer: reading, holding out, packing into batches.

On disk: JSON Lines in UTF-8, one `{"prompt": ..., "answer": ...}` a line, gzipped or not.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lad.diffusion.drafts import REPAIR_PROMPT
from lad.models.chat import encode_prompts, encode_texts
from lad.models.registry import LoadedBackbone
from lad.training.config import TrainConfig
from lad.utils import MALFORMED, DamagedFile, InvalidInput, one_line

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Pair:
    """A user's prompt and the answer to it."""

    prompt: str
    answer: str


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Pairs as token ids, ready to be cut to any width."""

    tokens: Tensor  # (n, context) int32, prompt with chat template, answer, then EOS to the end
    prompt_lengths: Tensor  # (n,) int64
    ends: Tensor  # (n,) int64, the position of the first EOS
    is_repair: Tensor  # (n,) bool, texts to correct: corrupted by `TrainConfig.repair_corruption`
    dropped: int  # pairs that `pack` left out

    @property
    def digest(self) -> str:
        """Hex sha256 of all numbers."""
        values = (self.tokens, self.prompt_lengths, self.ends, self.is_repair)
        return hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in values)).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> PackedPairs:
        values = (self.tokens, self.prompt_lengths, self.ends, self.is_repair)
        return PackedPairs(*(value.to(device) for value in values), self.dropped)


def read_lines(name: str) -> list[str]:
    """The lines of a text file that comes with this package."""
    return (ASSETS / name).read_text(encoding="utf-8").split("\n")[:-1]


def everyday_prompts() -> list[str]:
    """Short plain questions, for demonstrations."""
    return read_lines("prompts.txt")


def held_out_prompts() -> list[str]:
    """A hundred everyday prompts to measure with; `lad distil` keeps them out of every pair."""
    return read_lines("held-out.txt")


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a JSON Lines file; InvalidInput without any, DamagedFile for a line of none.

    Blank lines and byte order marks are passed over.
    """
    path, pairs, number = Path(path), [], 1
    if not path.is_file():
        raise InvalidInput(f"no pairs at {path}: expected a JSON Lines file of prompt and answer")
    try:
        with open(path, "rb") as file:
            is_zipped = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_zipped else open)(path, "rb") as file:
            for line in file:
                if text := line.decode("utf-8-sig").strip():
                    row = json.loads(text)
                    pair = Pair(row["prompt"], row["answer"])
                    (pair.prompt + pair.answer).encode()  # half a surrogate pair is no text
                    if not pair.prompt.strip():
                        raise ValueError("the prompt is empty")
                    pairs.append(pair)
                number += 1
    except (*MALFORMED, EOFError, OSError, zlib.error) as error:
        raise DamagedFile(
            f"{path}, line {number}: {one_line(error)}; expected UTF-8 text with "
            '{"prompt": "...", "answer": "..."} on every line; correct it or make the file again'
        ) from error
    if not pairs:
        raise InvalidInput(f"{path} holds 0 pairs: expected at least one line")
    return pairs


def hold_out(pairs: Sequence[Pair], every: int = 50) -> tuple[list[Pair], list[Pair]]:
    """(training, held out); the digest of a prompt's first line holds out about one in `every`.

    Other orders of a multiple-choice question's options go with it.
    """
    sides = [], []
    for pair in pairs:
        line = pair.prompt.strip().lower().split("\n")[0]
        digest = hashlib.sha256(line.encode()).digest()
        sides[int.from_bytes(digest[:4], "big") % every == 0].append(pair)
    return sides


def encode_pairs(tokenizer, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt under its chat template, and of its answer."""
    prompts = encode_prompts(tokenizer, [pair.prompt for pair in pairs])
    answers = encode_texts(tokenizer, [pair.answer for pair in pairs])
    return list(zip(prompts, answers, strict=True))


def pack(
    backbone: LoadedBackbone, pairs: Sequence[Pair], context: int, least: int = 1
) -> PackedPairs:
    """Pairs tokenised under the backbone's chat template; InvalidInput if `least` are not left.

    Dropped are those too long, without an answer, or with the MASK token in it, which a denoiser
    never draws.
    """
    encoded, mask = encode_pairs(backbone.tokenizer, pairs), backbone.mask_token_id
    fits = [bool(a) and mask not in a and len(p) + len(a) < context for p, a in encoded]
    kept = list(itertools.compress(encoded, fits))
    if len(kept) < least:
        raise InvalidInput(f"none of {len(pairs)} pairs fits a context of {context} tokens")
    tokens = torch.full((len(kept), context), backbone.eos_token_id, dtype=torch.int32)
    for i, (prompt, answer) in enumerate(kept):
        tokens[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    bounds = torch.tensor([(len(p), len(p) + len(a)) for p, a in kept], dtype=torch.int64)
    lengths, ends = bounds.view(-1, 2).T.contiguous()
    is_repair = torch.tensor([p.prompt == REPAIR_PROMPT for p in itertools.compress(pairs, fits)])
    return PackedPairs(tokens, lengths, ends, is_repair.bool(), len(pairs) - len(kept))


def batches(
    ends: Sequence[int], config: TrainConfig, parts: int = 1
) -> Iterator[tuple[int, list[int]]]:
    """Endless (width, indices of pairs), the same in every process.

    Pairs of similar length share a batch, so little is spent on EOS; some are put one width up, so
    that the denoiser sees long EOS tails too and learns where an answer ends. A batch has `parts`
    of `config.batch_tokens` positions, one for each process and forward pass.
    """
    widths = config.widths  # fixed shapes let a compiled model be reused
    for epoch in itertools.count():
        shuffle = random.Random(f"{config.seed}-{epoch}")
        buckets: dict[int, list[int]] = {width: [] for width in widths}
        for index, end in enumerate(ends):
            level = next(i for i, width in enumerate(widths) if end < width)
            level = min(level + (shuffle.random() < config.widen), len(widths) - 1)
            buckets[widths[level]].append(index)
        queue = []
        for width, bucket in buckets.items():
            size = max(config.batch_tokens // width, 1) * parts
            shuffle.shuffle(bucket)
            # The last pairs of a bucket wait for the next epoch; too few for a batch are repeated.
            # Rare lengths must not be repeated more often than the rest is seen.
            if 0 < len(bucket) < size and shuffle.random() < len(bucket) / size:
                queue.append((width, [bucket[i % len(bucket)] for i in range(size)]))
            for first in range(0, len(bucket) - size + 1, size):
                queue.append((width, bucket[first : first + size]))
        shuffle.shuffle(queue)
        yield from queue
