"""Pairs of prompt and answer: reading, holding out, packing into batches.

On disk: JSON Lines in UTF-8, one `{"prompt": ..., "answer": ...}` a line, gzipped or not.
"""

from __future__ import annotations

import bisect
import codecs
import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor

from lad.diffusion.drafts import REPAIR_PROMPT
from lad.models.chat import encode_prompts, encode_texts
from lad.models.registry import LoadedBackbone
from lad.training.config import TrainConfig
from lad.utils import DamagedFile, InvalidInput, checked, one_line

ASSETS = Path(__file__).parents[1] / "assets"
USUAL, CORRECTION, CHOICE = range(3)  # kinds of pairs: places in `TrainConfig.corruptions`


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected at least one word")
    return text


@dataclass(frozen=True)
class Pair:
    """A user's prompt, which is not blank, and the answer to it."""

    prompt: Annotated[str, AfterValidator(_not_blank)]
    answer: str


@dataclass(frozen=True)
class Question:
    """A short question, and the words of which a right answer has one."""

    prompt: str
    facts: list[str]


@dataclass(frozen=True, eq=False)
class PackedPairs:
    """Pairs as token ids, ready to be cut to any width."""

    tokens: Tensor  # (n, context) int32, prompt with chat template, answer, then EOS to the end
    prompt_lengths: Tensor  # (n,) int64
    ends: Tensor  # (n,) int64, the position of the first EOS
    kinds: Tensor  # (n,) int64, see `kind_of`
    dropped: int  # pairs that `pack` left out
    # (n, context, k) int32 and float16: the backbone's likeliest tokens in each place, given those
    # before it, and their probabilities, which add up to 1; `lad.training.loss.with_likely_tokens`.
    likely: Tensor | None = None
    shares: Tensor | None = None

    @property
    def digest(self) -> str:
        """Hex sha256 of all numbers."""
        values = (self.tokens, self.prompt_lengths, self.ends, self.kinds)
        return hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in values)).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> PackedPairs:
        """The same pairs with every tensor changed: moved, or cut to fewer pairs."""
        changed = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device) -> PackedPairs:
        return self.map(lambda values: values.to(device))


def read_lines(name: str) -> list[str]:
    """The lines of a text file that comes with this package."""
    return (ASSETS / name).read_text(encoding="utf-8").split("\n")[:-1]


def held_out_prompts() -> list[str]:
    """A hundred everyday prompts to measure with; `lad distil` keeps them out of every pair."""
    return read_lines("held-out.txt")


def fact_questions() -> list[Question]:
    """A hundred short questions that the default backbone answers right in under 20 tokens."""
    return [checked(line, Question) for line in read_lines("facts.jsonl")]


def sentences_to_repair() -> list[str]:
    """A hundred plain sentences of 6 to 16 words, to damage and to repair."""
    return read_lines("sentences.txt")


def tested_texts() -> list[str]:
    """All prompts and sentences that this package is tested with: never in a training pair."""
    prompts = [question.prompt for question in fact_questions()]
    prompts += [pair.prompt for pair in read_pairs(ASSETS / "held-out-pairs.jsonl.gz")]
    return read_lines("prompts.txt") + held_out_prompts() + prompts + sentences_to_repair()


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
                if text := line.removeprefix(codecs.BOM_UTF8).strip():
                    pairs.append(checked(text, Pair))
                number += 1
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise DamagedFile(
            f"{path}, line {number}: {one_line(error)}; expected UTF-8 text with "
            '{"prompt": "...", "answer": "..."} on every line; correct it or make the file again'
        ) from error
    if not pairs:
        raise InvalidInput(f"{path} holds 0 pairs: expected at least one line")
    return pairs


def hold_out(pairs: Sequence[Pair], every: int = 50) -> tuple[list[Pair], list[Pair]]:
    """(training, held out): about one pair in `every` is held out, by a hash of its prompt.

    The hash is of the prompt's first line, so the other orders of a multiple-choice question's
    options go with it, and a pair stays on its side when the file grows.
    """
    training, held_out = [], []
    for pair in pairs:
        first_line = pair.prompt.strip().lower().split("\n")[0]
        digest = hashlib.sha256(first_line.encode()).digest()
        is_held_out = int.from_bytes(digest[:4], "big") % every == 0
        (held_out if is_held_out else training).append(pair)
    return training, held_out


def encode_pairs(tokenizer, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt under its chat template, and of its answer."""
    prompts = encode_prompts(tokenizer, [pair.prompt for pair in pairs])
    answers = encode_texts(tokenizer, [pair.answer for pair in pairs])
    return list(zip(prompts, answers, strict=True))


def kind_of(pair: Pair) -> int:
    """A text to correct, an answer chosen from lines of its prompt, or the usual.

    Each has its own noise: a text to correct is not masked, and of a line to choose any visible
    part tells which it is.
    """
    if pair.prompt == REPAIR_PROMPT:
        return CORRECTION
    return CHOICE if pair.answer in pair.prompt.split("\n")[1:] else USUAL


def pack(
    backbone: LoadedBackbone, pairs: Sequence[Pair], context: int, least: int = 1
) -> PackedPairs:
    """Pairs tokenised under the backbone's chat template; InvalidInput if `least` are not left.

    Dropped are those too long, without an answer, or with the MASK token in it, which a denoiser
    never draws.
    """
    kept, kinds = [], []
    for pair, (prompt, answer) in zip(pairs, encode_pairs(backbone.tokenizer, pairs), strict=True):
        fits = len(prompt) + len(answer) < context  # and an EOS
        if fits and answer and backbone.mask_token_id not in answer:
            kept.append((prompt, answer))
            kinds.append(kind_of(pair))
    if len(kept) < least:
        raise InvalidInput(f"none of {len(pairs)} pairs fits a context of {context} tokens")
    tokens = torch.full((len(kept), context), backbone.eos_token_id, dtype=torch.int32)
    lengths = torch.tensor([len(prompt) for prompt, _ in kept], dtype=torch.int64)
    ends = lengths + torch.tensor([len(answer) for _, answer in kept], dtype=torch.int64)
    for row, (prompt, answer) in zip(tokens, kept, strict=True):
        row[: len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    return PackedPairs(tokens, lengths, ends, torch.tensor(kinds).long(), len(pairs) - len(kept))


def batches(
    ends: Sequence[int], kinds: Sequence[int], config: TrainConfig, parts: int = 1
) -> Iterator[tuple[int, list[int]]]:
    """Endless (width, indices of pairs), epoch after epoch, the same in every process.

    A pair goes into the bucket of the shortest width that holds it and an EOS, so little is spent
    on EOS; some go one width up, so that the denoiser sees long EOS tails too and learns where an
    answer ends. A batch is of one bucket and has `parts` of `config.batch_tokens` positions, one
    for each process and forward pass. Few fixed widths let a compiled model be reused.
    """
    widths = config.widths
    for epoch in itertools.count():
        random = Random(f"{config.seed}-{epoch}")
        buckets: dict[int, list[int]] = {width: [] for width in widths}
        for index, (end, kind) in enumerate(zip(ends, kinds, strict=True)):
            for _ in range(config.repeats[kind]):
                level = bisect.bisect_right(widths, end) + (random.random() < config.widen)
                buckets[widths[min(level, len(widths) - 1)]].append(index)
        epoch_batches = []
        for width, bucket in buckets.items():
            size = max(config.batch_tokens // width, 1) * parts
            random.shuffle(bucket)
            # Too few for one batch are repeated, but not in every epoch: rare lengths must not be
            # seen more often than the rest. What is left over waits for the next epoch.
            if 0 < len(bucket) < size and random.random() < len(bucket) / size:
                bucket = list(itertools.islice(itertools.cycle(bucket), size))
            for first in range(0, len(bucket) - size + 1, size):
                epoch_batches.append((width, bucket[first : first + size]))
        random.shuffle(epoch_batches)
        yield from epoch_batches
