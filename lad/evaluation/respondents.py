"""Who is asked: a denoiser, or the backbone it sits on, by the same two ways of scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser
from lad.evaluation.generation import Generated, refine_answers, write_answers
from lad.evaluation.likelihood import Score, ask, exact_scores, masked_scores
from lad.evaluation.questions import Question
from lad.models.registry import LoadedBackbone

__all__ = ["Backbone", "Denoising", "Respondent"]

BATCH = {"cpu": 8, "cuda": 256}  # answers in words that are made together


class Respondent(Protocol):
    """What a benchmark asks of a model; both ways may answer in any order."""

    def scores(
        self, questions: Sequence[Question], target: str
    ) -> Iterator[tuple[int, list[Score]]]:
        """Every question's index, with the log-likelihood of each of its options."""

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Generated]]:
        """Every question's index, with an answer in words."""


@dataclass(frozen=True)
class Denoising:
    """A denoiser.

    Attributes:
        config: how answers are refined.
        samples, seed: masks an option, 0 for left to right, and what they are drawn from.
        batch_size: answers refined together; by default 8 on a CPU and 256 elsewhere.
    """

    denoiser: Denoiser
    config: RefineConfig
    samples: int = 16
    seed: int = 0
    batch_size: int | None = None

    def scores(
        self, questions: Sequence[Question], target: str
    ) -> Iterator[tuple[int, list[Score]]]:
        """By masked log-likelihood: see `lad.evaluation.likelihood`."""
        own = self.denoiser
        asks = ask(own.tokenizer, questions, target, own.mask_token_id, own.eos_token_id)
        return masked_scores(own, asks, self.samples, self.seed)

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Generated]]:
        """By refinement."""
        size = self.batch_size or BATCH.get(self.denoiser.device.type, 8)
        return refine_answers(self.denoiser, questions, self.config, size)


@dataclass(frozen=True)
class Backbone:
    """A causal LM from left to right.

    Attributes:
        most_tokens: of an answer in words, EOS counted.
        batch_size: as in `Denoising`.
    """

    backbone: LoadedBackbone
    most_tokens: int = 64
    batch_size: int | None = None

    def scores(
        self, questions: Sequence[Question], target: str
    ) -> Iterator[tuple[int, list[Score]]]:
        """By exact log-likelihood."""
        own = self.backbone
        asks = ask(own.tokenizer, questions, target, own.mask_token_id, own.eos_token_id)
        return exact_scores(own.model, asks)

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Generated]]:
        """Greedily."""
        own = self.backbone
        size = self.batch_size or BATCH.get(own.model.lm_head.weight.device.type, 8)
        return write_answers(
            own.model, own.tokenizer, questions, self.most_tokens, own.eos_token_id, size
        )
