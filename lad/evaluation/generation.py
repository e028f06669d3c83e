"""Answers to questions in words, of which the leading letter is scored.

A denoiser refines its answer, a backbone writes it greedily from left to right; the same rule reads
both. What does not begin with the letter of an option is unparsable: it counts as wrong, and is
reported as what it is.

Every answer has a region as long as the question's longest line and its EOS, rounded up to 8: room
for any of the lines, and nothing that tells which is right.

Reference: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import LlamaForCausalLM

from lad.diffusion.config import RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.diffusion.sampler import refine_batch
from lad.diffusion.trace import Trace
from lad.evaluation.answers import greedy_answers
from lad.evaluation.questions import LETTERS, Question
from lad.models.chat import encode_prompts
from lad.utils import InvalidInput

__all__ = [
    "Generated",
    "parse_letter",
    "refine_answers",
    "refine_traces",
    "regions",
    "write_answers",
]

REGION_STEP = 8
# The letter alone, or followed by what sets it apart from a word: "B", "B: x", "(b) x", "**B.** x".
# "A cat" is no answer A, and neither is "As".
LEADING = re.compile(r"[\s*_(\[\"']*([A-Za-z])(?:\s*$|[\s*_\"']*[:.,;)\]\n–-])")


@dataclass(frozen=True)
class Generated:
    """An answer in words.

    Attributes:
        text: up to its EOS.
        forwards: passes it took.
    """

    text: str
    forwards: int


def parse_letter(text: str, options: int) -> int | None:
    """Which option an answer names with its leading letter; None when it names none.

    Args:
        options: how many there are: a letter beyond theirs names none.
    """
    found = LEADING.match(text)
    place = LETTERS.index(found[1].upper()) if found else options
    return place if place < options else None


def regions(tokenizer, questions: Sequence[Question], most: int) -> list[int]:
    """Positions of each question's answer region: see above, and at most `most`."""
    lines = [line for question in questions for line in question.lines]
    lengths = iter(
        map(len, tokenizer(lines, add_special_tokens=False)["input_ids"] if lines else ())
    )
    longest = [max(next(lengths) for _ in question.lines) + 1 for question in questions]
    return [min(most, -(-length // REGION_STEP) * REGION_STEP) for length in longest]


def refine_answers(
    denoiser: Denoiser, questions: Sequence[Question], config: RefineConfig, batch_size: int
) -> Iterator[tuple[int, Generated]]:
    """Every question's index with its answer by refinement; short ones first.

    Args, errors: as `refine_traces`.
    """
    for index, trace in refine_traces(denoiser, questions, config, batch_size):
        yield index, Generated(trace.answer, trace.nfe)


def refine_traces(
    denoiser: Denoiser, questions: Sequence[Question], config: RefineConfig, batch_size: int
) -> Iterator[tuple[int, Trace]]:
    """The same with everything that happened on the way.

    Args:
        config: its `answer_length` is the most a region may have, and its `context` is as long as
            it may be: questions do not care what the adapter was trained on.
        batch_size: answers refined together.

    Raises:
        InvalidInput: a question that leaves no room for its answer.
        NumericalError: NaN or infinite logits.
    """
    context = min(RANGES["context"][1], denoiser.causal_lm.config.max_position_embeddings)
    prompts = encode_prompts(denoiser.tokenizer, [question.prompt for question in questions])
    lengths = regions(denoiser.tokenizer, questions, config.answer_length)
    _check_lengths(questions, prompts, lengths, context)
    for part, length in _batches(prompts, lengths, batch_size):
        own = replace(config, answer_length=length, context=context)
        texts = [questions[index].prompt for index in part]
        yield from zip(part, refine_batch(denoiser, texts, own, batch_size=batch_size), strict=True)


def write_answers(
    backbone: LlamaForCausalLM,
    tokenizer,
    questions: Sequence[Question],
    most_tokens: int,
    eos_token_id: int,
    batch_size: int,
) -> Iterator[tuple[int, Generated]]:
    """The same from left to right, the likeliest token after the other, in as large a region.

    Raises:
        InvalidInput: a question that leaves no room for its answer.
    """
    prompts = encode_prompts(tokenizer, [question.prompt for question in questions])
    lengths = regions(tokenizer, questions, most_tokens)
    _check_lengths(questions, prompts, lengths, backbone.config.max_position_embeddings)
    for part, length in _batches(prompts, lengths, batch_size):
        own = [prompts[index] for index in part]
        answers = greedy_answers(backbone, own, length, eos_token_id, len(own))
        texts = tokenizer.batch_decode(answers.tokens, skip_special_tokens=True)
        for index, text, forwards in zip(part, texts, answers.forwards, strict=True):
            yield index, Generated(text, forwards)


def _batches(
    prompts: Sequence[list[int]], lengths: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Indices of questions with one region and prompts of like length, and that region."""
    if batch_size < 1:
        raise InvalidInput(f"batch_size = {batch_size}: expected a whole number from 1 up")
    for length in sorted(set(lengths)):
        same = [index for index, own in enumerate(lengths) if own == length]
        same.sort(key=lambda index: len(prompts[index]))
        for first in range(0, len(same), batch_size):
            yield same[first : first + batch_size], length


def _check_lengths(
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    most: int,
) -> None:
    for question, prompt, length in zip(questions, prompts, lengths, strict=True):
        if len(prompt) + length > most:
            raise InvalidInput(
                f"{question.key} has {len(prompt)} tokens and an answer region of {length}, "
                f"expected at most {most} together; use a smaller --n, another --seed or task"
            )
