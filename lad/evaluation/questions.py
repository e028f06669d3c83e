"""How a multiple-choice question is put to a model, and what counts as an answer.

LAD's format: the question, a line that asks for the best option, then one option a line as
`A: text`. The answer repeats the line of the right option, and its leading letter is what is
scored when an answer is generated. For likelihoods there are three targets:

    line     the whole line, `B: Water`: what LAD is trained to say
    letter   `B` alone: the same prompt, one token, no chance in the estimate
    text     `Water` alone, to a prompt that lists no options: what a model knows without having
             learnt to read letters, and how ARC and HellaSwag are usually scored by likelihood

References:
    LAD: LoRA-Adapted Diffusion, Kuiper et al., EMNLP 2025 System Demonstrations
    lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness, for the third
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from lad.evaluation.tasks import Item
from lad.utils import InvalidInput

__all__ = ["LETTERS", "TARGETS", "Question", "format_choices", "put"]

LETTERS = string.ascii_uppercase
TARGETS = ("line", "letter", "text")
ASKED = "Which of the options is the best answer to the question?"
# Here the question is a text that breaks off.
ASKED_FOR_REST = {"hellaswag": "Which of the options completes the text most plausibly?"}


@dataclass(frozen=True)
class Question:
    """An item as it is put to a model.

    Attributes:
        item: what is asked.
        rotation: by how many places the options are moved; place i shows option
            `(i + rotation) % k` of the item's k.
        prompt: what the model reads.
        lines: `A: text` of every place.
        answers: what is scored of every place: one of the targets.
        gold: the right place.
    """

    item: Item
    rotation: int
    prompt: str
    lines: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int

    @property
    def key(self) -> str:
        """Its name, unique within a run."""
        return f"{self.item.task}/{self.item.id}/{self.rotation}"


def put(item: Item, target: str = "line", rotation: int = 0) -> Question:
    """An item as a question.

    Args:
        target: one of `TARGETS`.
        rotation: see `Question`; any whole number.

    Raises:
        InvalidInput: an unknown target, or nothing to score: an empty option as "text".
    """
    if target not in TARGETS:
        raise InvalidInput(f"target = {target!r}: expected one of {', '.join(TARGETS)}")
    many = len(item.options)
    rotation %= many
    order = [(place + rotation) % many for place in range(many)]
    prompt, _ = format_choices(item, order)
    lines = tuple(_lines(item, order))
    answers = lines
    if target == "letter":
        answers = tuple(LETTERS[:many])
    elif target == "text":
        prompt, answers = item.question, tuple(item.options[option] for option in order)
        if not all(answers):
            raise InvalidInput(
                f"{item.task} {item.id}: an option is empty and has no tokens to score; expected "
                "some text, or --target line"
            )
    return Question(item, rotation, prompt, lines, answers, order.index(item.gold))


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
    lines = _lines(item, order)
    asked = ASKED_FOR_REST.get(item.task, ASKED)
    return "\n".join([item.question, asked, *lines]), lines[list(order).index(item.gold)]


def _lines(item: Item, order: Sequence[int]) -> list[str]:
    return [
        f"{letter}: {item.options[option]}"
        for letter, option in zip(LETTERS[: len(order)], order, strict=True)
    ]
