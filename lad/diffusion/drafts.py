"""First drafts other than all MASK: a text to repair, a text with gaps, a fixed length.

    repair    the text is the first draft, and every token may change; EOS follows
    infill    the text is fixed, every gap is MASK; EOS follows
    length    MASK up to a length, EOS from there on

The draft fixes how long the text may become: a repair has spare positions behind the text, a gap
has the tokens it was given. Text is data: a typed control token, such as `<|im_end|>`, is text.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo), whose denoiser repairs visible tokens.

Shapes: a = positions of the answer region.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lad.diffusion.config import RANGES, RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.chat import encode_text
from lad.utils import InvalidInput

# Prompts for a text that comes without the question it answers. In a repair every token may change:
# a prompt that shows the damaged text gets it copied. The question itself works best.
INFILL_PROMPT = "Write a sentence."
REPAIR_PROMPT = "Correct this sentence."
UNCHANGED = (
    "nothing changed: expected swapped, doubled, displaced or replaced words; give the question "
    "that the text answers, or infill with ___ in place of what is wrong"
)
SPARE = 8  # positions behind a text, for its end to move and for the end to be seen
LONGEST_GAP = 256
GAP = re.compile(r"(?<![\\_])_{3,}|(?<!\\)\[(\d+)\]")
ESCAPE = re.compile(r"\\(?=___|\[\d+\])")


@dataclass(frozen=True, eq=False)
class Draft:
    """The start of a refinement."""

    tokens: Tensor  # (a,) int64, MASK where nothing is known
    fixed: Tensor | None = None  # (a,) bool, positions that never change; None when all may


def visible_text(denoiser: Denoiser, text: str, answer_length: int | None = None) -> Draft:
    """A text as a draft in which every token may change, for noiseless refinement to repair.

    `answer_length` is a, by default the text's tokens and `SPARE` more. Raises InvalidInput for an
    empty text, or one that leaves no position for its end.
    """
    ids = encode_text(denoiser.tokenizer, text.strip())
    if not ids:
        raise InvalidInput("the text is empty: expected at least one word to repair")
    return Draft(_ended(denoiser, ids, answer_length))


def gapped(denoiser: Denoiser, text: str, gap: int = 1, answer_length: int | None = None) -> Draft:
    """A text with gaps as a draft in which all else is fixed, white space included.

    A gap is written `___`, of `gap` tokens, or `[3]`, of that many; after a backslash both are
    text. One space before a gap is left out: a token brings its own. In a gap at the very end the
    answer may end early. `gap` is 1 to 256, `answer_length` a, by default what the text takes and
    `SPARE` more. Raises InvalidInput for no gap, one of another size, or no room for it all.
    """
    ids: list[int] = []
    free: list[bool] = []
    end = 0
    if not GAP.search(text):
        raise InvalidInput(
            f"no gap in {text[:60]!r}: expected ___ or, for three tokens, [3] where something is "
            "missing"
        )
    for found in GAP.finditer(text):
        size = gap if found[1] is None else int(found[1])
        if not 1 <= size <= LONGEST_GAP:
            raise InvalidInput(
                f"a gap of {size} tokens: expected a whole number from 1 to {LONGEST_GAP}; "
                f"\\[{size}] is text"
            )
        fixed_text = ESCAPE.sub("", text[end : found.start()].removesuffix(" "))
        words = encode_text(denoiser.tokenizer, fixed_text, bool(ids))
        ids += words + [denoiser.mask_token_id] * size
        free += [False] * len(words) + [True] * size
        end = found.end()
    words = encode_text(denoiser.tokenizer, ESCAPE.sub("", text[end:]), bool(ids))
    tokens = _ended(denoiser, ids + words, answer_length)
    fixed = torch.ones_like(tokens, dtype=torch.bool)
    fixed[: len(free)] = ~torch.tensor(free, device=tokens.device)
    return Draft(tokens, fixed)


def limited(denoiser: Denoiser, length: int, answer_length: int) -> Draft:
    """MASK on `length` positions, and a fixed EOS on all that follow.

    The denoiser sees from the first iteration where the answer ends; it may still end sooner.
    Raises InvalidInput for a length outside 1 to `answer_length`.
    """
    if not 1 <= length <= answer_length:
        raise InvalidInput(
            f"length = {length}: expected a whole number from 1 to {answer_length}, the answer "
            "region; raise answer_length for more"
        )
    fixed = torch.arange(answer_length, device=denoiser.device) >= length
    mask = torch.full_like(fixed, denoiser.mask_token_id, dtype=torch.int64)
    return Draft(mask.masked_fill(fixed, denoiser.eos_token_id), fixed)


def _ended(denoiser: Denoiser, ids: list[int], answer_length: int | None) -> Tensor:
    """`(a,)`: the ids, and EOS behind them."""
    a = len(ids) + SPARE if answer_length is None else answer_length
    if len(ids) >= a:
        raise InvalidInput(
            f"a text of {len(ids)} tokens in an answer region of {a}: expected room for it and its "
            "end; shorten it, or raise answer_length"
        )
    if a > (longest := RANGES["answer_length"][1]):
        most = longest - SPARE
        raise InvalidInput(f"a text of {len(ids)} tokens: expected at most {most}; shorten it")
    return torch.tensor(ids + [denoiser.eos_token_id] * (a - len(ids)), device=denoiser.device)


# -- checks ----------------------------------------------------------------------------------------


def check_prompt_fits(denoiser: Denoiser, ids: Tensor, config: RefineConfig) -> None:
    """Refuse `(p,)` prompt ids that leave no room for the answer region."""
    if ids.ndim != 1 or len(ids) == 0:
        raise InvalidInput(
            f"a prompt of shape {tuple(ids.shape)}: expected (p,) token ids of at least one "
            "token, as `denoiser.encode` gives them"
        )
    longest = min(
        config.context or denoiser.config.context, denoiser.causal_lm.config.max_position_embeddings
    )
    if len(ids) + config.answer_length > longest:
        raise InvalidInput(
            f"a prompt of {len(ids)} tokens and an answer region of {config.answer_length}: "
            f"expected at most {longest} together, the context window; shorten the prompt or the "
            "text, or lower answer_length, or raise context"
        )


def check_draft(denoiser: Denoiser, a: int, draft: Tensor | None, fixed: Tensor | None) -> None:
    """Refuse a draft that is not `(a,)` token ids, or fixed positions that cannot stay."""
    if draft is None:
        if fixed is not None:
            raise InvalidInput("fixed positions without a draft: expected the tokens they hold")
        return
    if draft.shape != (a,) or draft.is_floating_point() or draft.dtype == torch.bool:
        raise InvalidInput(
            f"a draft of shape {tuple(draft.shape)} and type {draft.dtype}: expected ({a},) token "
            "ids; pad it with MASK or EOS, or set answer_length"
        )
    v = denoiser.vocabulary_size
    if not bool(((draft >= 0) & (draft < v)).all()):
        raise InvalidInput(
            f"a draft with token ids from {int(draft.min())} to {int(draft.max())}: expected ids "
            f"from 0 to {v - 1}, the backbone's vocabulary"
        )
    if fixed is None:
        return
    if fixed.shape != (a,) or fixed.dtype != torch.bool:
        raise InvalidInput(
            f"fixed of shape {tuple(fixed.shape)} and type {fixed.dtype}: expected ({a},) bool"
        )
    if bool((draft[fixed] == denoiser.mask_token_id).any()):
        raise InvalidInput("a fixed position holds MASK: expected a token that can stay")
    is_eos = fixed & (draft == denoiser.eos_token_id)
    if bool((fixed & ~is_eos & (is_eos.cumsum(dim=0) > 0)).any()):
        raise InvalidInput("a fixed word stands behind a fixed EOS: expected the end to come last")
