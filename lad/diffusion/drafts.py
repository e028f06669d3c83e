"""What a left-to-right model cannot start from: a damaged text to mend, a text with gaps to fill.

    repair    the text is the first draft, every token of it free to change; what follows is EOS
    infill    the text's words stay where they are; every gap is MASK, and EOS closes the answer
    length    nothing but MASK up to a length, and EOS from there on

How long a text may become is fixed with the draft: mending has spare positions behind the text to
grow into, a gap has as many tokens as it was given. Text is data: a control token that is typed,
such as `<|im_end|>`, is read as the plain text it is.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo), whose denoiser mends what is visible.

Shapes: a = positions of the answer region.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lad.diffusion.denoiser import Denoiser
from lad.utils import InvalidInput

__all__ = ["INFILL_PROMPT", "REPAIR_PROMPT", "SPARE", "Draft", "gapped", "limited", "visible_text"]

# What a text is taken to answer when nobody says. A prompt that asks for nothing in particular is
# enough where most words are fixed. A text that may change everywhere is pulled away by it, to
# whatever the denoiser would rather write ("The company is at 100 degrees Celsius."); naming the
# text keeps to it. Best of all is the question that the text answers.
INFILL_PROMPT = "Write a sentence."
REPAIR_PROMPT = "Repeat: {text}"
SPARE = 8  # positions behind a text, for its end to move and for the end to be seen
LONGEST_GAP = 256
GAP = re.compile(r"_{3,}|\[(\d+)\]")


@dataclass(frozen=True, eq=False)
class Draft:
    """Where a refinement starts.

    Attributes:
        tokens: `(a,)` int64, MASK where nothing is known.
        fixed: `(a,)` bool, positions that never change; None when all may.
    """

    tokens: Tensor
    fixed: Tensor | None = None


def visible_text(denoiser: Denoiser, text: str, answer_length: int | None = None) -> Draft:
    """A text as a draft that may change everywhere: what noiseless refinement mends.

    Args:
        answer_length: a; by default the text's tokens and `SPARE` more.

    Raises:
        InvalidInput: an empty text, or one that leaves no position for its end.
    """
    ids = _encode(denoiser, text.strip())
    if not ids:
        raise InvalidInput("the text is empty: expected at least one word to repair")
    return Draft(_ended(denoiser, ids, answer_length))


def gapped(denoiser: Denoiser, text: str, gap: int = 1, answer_length: int | None = None) -> Draft:
    """A text with gaps as a draft whose words are fixed.

    A gap is written `___`, of `gap` tokens, or `[3]`, of that many. White space before a gap is
    left out: a token brings its own. In a gap at the very end the answer may end early.

    Args:
        gap: tokens of a gap without a number, 1 to 256.
        answer_length: a; by default what the text takes and `SPARE` more.

    Raises:
        InvalidInput: no gap, one of no tokens or more than 256, or no room for it all.
    """
    ids: list[int] = []
    free: list[bool] = []
    rest = text.strip()
    if not GAP.search(rest):
        raise InvalidInput(
            f"no gap in {text!r}: expected ___ or, for three tokens, [3] where something is missing"
        )
    while found := GAP.search(rest):
        size = gap if found[1] is None else int(found[1])
        if not 1 <= size <= LONGEST_GAP:
            raise InvalidInput(
                f"a gap of {size} tokens: expected a whole number from 1 to {LONGEST_GAP}"
            )
        words = _encode(denoiser, rest[: found.start()].rstrip())
        ids += words + [denoiser.mask_token_id] * size
        free += [False] * len(words) + [True] * size
        rest = rest[found.end() :]
    words = _encode(denoiser, rest)
    tokens = _ended(denoiser, ids + words, answer_length)
    fixed = torch.ones_like(tokens, dtype=torch.bool)
    fixed[: len(free)] = ~torch.tensor(free, device=tokens.device)
    return Draft(tokens, fixed)


def limited(denoiser: Denoiser, length: int, answer_length: int) -> Draft:
    """Nothing known but the end: MASK on `length` positions, and a fixed EOS on all that follow.

    The denoiser sees from the first iteration where the answer ends; it may still end sooner.

    Raises:
        InvalidInput: a length outside 1 to `answer_length`.
    """
    if not 1 <= length <= answer_length:
        raise InvalidInput(
            f"length = {length}: expected a whole number from 1 to {answer_length}, the answer "
            "region; raise answer_length for more"
        )
    fixed = torch.arange(answer_length, device=denoiser.device) >= length
    mask = torch.full_like(fixed, denoiser.mask_token_id, dtype=torch.int64)
    return Draft(mask.masked_fill(fixed, denoiser.eos_token_id), fixed)


def _encode(denoiser: Denoiser, text: str) -> list[int]:
    if not text:
        return []
    tokenizer = denoiser.tokenizer
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _ended(denoiser: Denoiser, ids: list[int], answer_length: int | None) -> Tensor:
    """`(a,)`: the ids, and EOS behind them."""
    a = len(ids) + SPARE if answer_length is None else answer_length
    if len(ids) >= a:
        raise InvalidInput(
            f"a text of {len(ids)} tokens in an answer region of {a}: expected room for it and its "
            "end; shorten it, or raise answer_length"
        )
    return torch.tensor(ids + [denoiser.eos_token_id] * (a - len(ids)), device=denoiser.device)
