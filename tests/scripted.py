"""Models with known answers, for tests of benchmarks: what they say is a function of the prompt."""

from collections.abc import Callable

import torch

from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.tasks import Item
from lad.models.registry import load_backbone

SURE = 12.0  # logit of what is said; everything else has 0


def scripted(say: Callable[[str], str | None]) -> Denoiser:
    """A denoiser that answers `say(prompt)` wherever it is asked; None: it knows nothing at all."""
    made = Denoiser.create(load_backbone("tiny"), DenoiserConfig(rank=4))

    def logits(prompt, answer, cache=None, padding=None, answer_lengths=None):
        out = torch.zeros((*answer.shape, made.vocabulary_size))
        for row, ids in enumerate(prompt.tolist()):
            text = made.tokenizer.decode(ids).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
            said = say(text)
            if said is not None:
                ids = made.tokenizer(said, add_special_tokens=False)["input_ids"]
                ids += [made.eos_token_id] * answer.shape[1]
                out[row, range(answer.shape[1]), ids[: answer.shape[1]]] = SURE
        return out

    made.logits = logits
    made.read_prompt = lambda prompt, padding=None: None
    return made


def line_of(letter: str) -> Callable[[str], str]:
    """Says the line of that letter, or A's where there is none."""

    def say(text: str) -> str:
        lines = [line for line in text.split("\n") if line[1:2] == ":"]
        return next((line for line in lines if line.startswith(letter)), lines[0])

    return say


def oracle(items: list[Item]) -> Callable[[str], str]:
    """Says the right line, wherever it stands; to a prompt without options, the right text."""
    right = {item.question: item.options[item.gold] for item in items}

    def say(text: str) -> str:
        gold = right[text.split("\n")[0]]
        lines = [line for line in text.split("\n")[1:] if line[3:] == gold]
        return lines[0] if lines else gold

    return say


def some_items(n: int = 60) -> list[Item]:
    """Questions of 3, 4 and 5 options whose right answers stand anywhere."""
    items = []
    for number in range(n):
        many = 3 + number % 3
        options = tuple(f"{'xyzuvw'[i]}{number * (i + 1) % 97}" for i in range(many))
        gold = (number * 7 + number // 4) % many
        items.append(Item("arc-easy", f"q{number}", f"Question {number}?", options, gold))
    return items
