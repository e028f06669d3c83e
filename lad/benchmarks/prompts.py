"""How a multiple-choice question is put to a model: LAD's format.

The question, a line that asks for the best option, then one option a line as `A: text`. The answer
repeats the line of the right option, and its leading letter is what is scored.

Reference: LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from lad.benchmarks.tasks import Item
from lad.errors import InvalidInput

__all__ = ["LETTERS", "format_choices"]

LETTERS = string.ascii_uppercase
ASKED = "Which of the options is the best answer to the question?"
# Here the question is a text that breaks off.
ASKED_FOR_REST = {"hellaswag": "Which of the options completes the text most plausibly?"}


def format_choices(item: Item, order: Sequence[int] | None = None) -> tuple[str, str]:
    """Prompt and right answer.

    Args:
        item: the question.
        order: which option stands first, second, ...: a permutation of their indices; by default
            the order they came in.

    Raises:
        InvalidInput: `order` is no permutation of the options.
    """
    order = range(len(item.options)) if order is None else order
    if sorted(order) != list(range(len(item.options))):
        raise InvalidInput(
            f"order = {list(order)}: expected each of 0 to {len(item.options) - 1} once"
        )
    lines = [
        f"{letter}: {item.options[option]}"
        for letter, option in zip(LETTERS[: len(order)], order, strict=True)
    ]
    asked = ASKED_FOR_REST.get(item.task, ASKED)
    return "\n".join([item.question, asked, *lines]), lines[list(order).index(item.gold)]
