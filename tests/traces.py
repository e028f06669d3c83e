"""Hand-made traces for tests of what is shown: no model, no tokenizer."""

from collections.abc import Sequence

import numpy as np

from lad.diffusion.trace import Step, Trace

MASK, EOS, TURN = 0, 1, 2
NAMES = {MASK: b"<mask>", EOS: b"<eos>", TURN: b"<turn>"}


def make_trace(
    *drafts: Sequence[bytes | int],
    remask: Sequence[Sequence[int]] = (),
    confidence: float | Sequence[Sequence[float]] = 0.5,
    prompt: str = "Why?",
    iterations: int | None = None,
    stopped_early: bool = False,
) -> Trace:
    """A trace whose drafts are given as bytes a token (or MASK, EOS, TURN).

    Args:
        remask: for each iteration, the positions masked again after it.
        confidence: one for all, or `(i, a)`.
    """
    vocabulary = dict(NAMES)
    ids = {data: token for token, data in NAMES.items()}

    def read(piece: bytes | int) -> int:
        if isinstance(piece, int):
            return piece
        token = ids.setdefault(piece, len(vocabulary))
        vocabulary[token] = piece
        return token

    rows = np.array([[read(piece) for piece in draft] for draft in drafts])
    sure = np.broadcast_to(np.float32(confidence), rows.shape)
    steps, answer = [], np.full(rows.shape[1], MASK)
    for number, draft in enumerate(rows):
        again = np.zeros(len(draft), dtype=bool)
        again[list(remask[number]) if number < len(remask) else []] = True
        steps.append(Step(number, answer, draft, sure[number], again, seconds=0.25))
        answer = np.where(again, MASK, draft)
    return Trace(
        prompt=prompt,
        steps=steps,
        stopped_early=stopped_early,
        mask_token_id=MASK,
        eos_token_id=EOS,
        special_ids=frozenset(NAMES),
        vocabulary=vocabulary,
        prompt_ids=np.array([TURN]),
        config={"iterations": iterations or len(steps)},
    )


def words(text: str, length: int) -> list[bytes | int]:
    """One token a word, its space in front, then EOS up to `length` positions."""
    first, *rest = text.split()
    tokens = [first.encode(), *(f" {word}".encode() for word in rest)]
    return tokens + [EOS] * (length - len(tokens))
