"""What a refinement is given, checked and put into one batch whose rows leave as they finish.

Shapes: b = rows still at work, p = positions of the longest prompt, a = positions of the answer
region, v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser, pad_prompts
from lad.models.chat import Prompt
from lad.utils import InvalidInput

__all__ = ["Rows", "prepare"]


@dataclass
class Rows:
    """The rows still at work; every tensor has one row each.

    Attributes:
        index: which prompt each row answers.
        prompt_ids: `(p_i,)` each, as they were given, of rows that have left too.
        prompts: `(b, p)` int64, padded on the left by `padding` `(b,)`, None when nobody is.
        answer: `(b, a)` int64, the next input.
        fixed: `(b, a)` bool, or None when nothing is.
        endless: `(b, a)` bool, positions where the answer cannot end, or None.
        shown: `(b, a)` bool, positions that were visible in some input.
        width: `(b,)` int64 on the host, positions that are still computed; the tensors above are
            as wide as the widest row.
        positions: a of the whole answer region.
        generators: one a row.
    """

    index: list[int]
    prompt_ids: list[Tensor]
    prompts: Tensor
    padding: Tensor | None
    answer: Tensor
    fixed: Tensor | None
    endless: Tensor | None
    shown: Tensor
    width: np.ndarray
    positions: int
    generators: list[torch.Generator]

    def keep(self, rows: np.ndarray) -> Tensor:
        """Drop all rows but these; returns them as an index on the device."""
        chosen = torch.from_numpy(rows).to(self.prompts.device)
        self.index = [self.index[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]
        self.width = self.width[rows]
        for name in ("prompts", "padding", "answer", "fixed", "endless", "shown"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[chosen])
        return chosen

    def narrow(self, eos_token_id: int) -> None:
        """Cut off what no row computes any more; what only wider rows compute is EOS."""
        widest = int(self.width.max())
        if widest < self.answer.shape[1]:
            for name in ("answer", "fixed", "endless", "shown"):
                value = getattr(self, name)
                if value is not None:
                    setattr(self, name, value[:, :widest])
        if self.beyond is not None:
            self.answer = self.answer.masked_fill(self.beyond, eos_token_id)

    @property
    def beyond(self) -> Tensor | None:
        """`(b, ·)` bool: positions that only wider rows compute; None when there are none."""
        if (self.width == self.answer.shape[1]).all():
            return None
        position = torch.arange(self.answer.shape[1], device=self.answer.device)
        return position >= torch.from_numpy(self.width).to(self.answer.device)[:, None]

    def uniforms(self, count: int) -> Tensor | None:
        """`(b, count, ·)` float32 in [0, 1) from each row's own generator, for every position.

        They are drawn on the CPU, so that one seed gives one answer on every device.
        """
        if count == 0:
            return None
        drawn = [torch.rand(count, self.positions, generator=own) for own in self.generators]
        drawn = torch.stack(drawn)[..., : self.answer.shape[1]]
        if self.answer.is_cuda:  # from other memory it would be sent when the device has time
            drawn = drawn.pin_memory()
        return drawn.to(self.answer.device, non_blocking=True)


def prepare(
    denoiser: Denoiser,
    prompts: Sequence[Prompt | Tensor],
    config: RefineConfig,
    drafts: Sequence[Tensor | None],
    fixed: Sequence[Tensor | None],
    first: int = 0,
) -> Rows:
    """Check everything a run is given and put it into one batch.

    Args:
        prompts, drafts, fixed: one each a row, as in `lad.diffusion.sampler.refine`.
        first: index of the first prompt.

    Raises:
        InvalidInput: see `lad.diffusion.sampler.refine`.
    """
    ids = [
        prompt.to(denoiser.device) if isinstance(prompt, Tensor) else denoiser.encode(prompt)
        for prompt in prompts
    ]
    longest = min(
        config.context or denoiser.config.context, denoiser.causal_lm.config.max_position_embeddings
    )
    for own in ids:
        if own.ndim != 1 or len(own) == 0:
            raise InvalidInput(
                f"a prompt of shape {tuple(own.shape)}: expected (p,) token ids of at least one "
                "token, as `denoiser.encode` gives them"
            )
        if len(own) + config.answer_length > longest:
            raise InvalidInput(
                f"a prompt of {len(own)} tokens and an answer region of {config.answer_length}: "
                f"expected at most {longest} together, the context window; shorten the prompt, or "
                "lower answer_length, or raise context"
            )
    padded, padding = pad_prompts(ids)
    answer = torch.full(
        (len(ids), config.answer_length), denoiser.mask_token_id, device=denoiser.device
    )
    held = torch.zeros_like(answer, dtype=torch.bool)
    for row, (draft, stays) in enumerate(zip(drafts, fixed, strict=True)):
        _check_draft(denoiser, config.answer_length, draft, stays)
        if draft is not None:
            answer[row] = draft
        if stays is not None:
            held[row] = stays
    any_fixed = any(stays is not None for stays in fixed)
    # A fixed word behind the end would not be part of the answer.
    words = held & (answer != denoiser.eos_token_id)
    behind = words.flip(-1).cumsum(dim=-1).flip(-1) > 0  # a fixed word stands here or later
    return Rows(
        index=list(range(first, first + len(ids))),
        prompt_ids=ids,
        prompts=padded,
        padding=padding,
        answer=answer,
        fixed=held if any_fixed else None,
        endless=behind & ~held if any_fixed else None,
        shown=answer != denoiser.mask_token_id,
        width=np.full(len(ids), config.answer_length),
        positions=config.answer_length,
        generators=[torch.Generator().manual_seed(config.seed) for _ in ids],
    )


def _check_draft(denoiser: Denoiser, a: int, draft: Tensor | None, fixed: Tensor | None) -> None:
    v = denoiser.vocabulary_size
    if draft is None:
        if fixed is not None:
            raise InvalidInput("fixed positions without a draft: expected the tokens they hold")
        return
    if draft.shape != (a,) or draft.is_floating_point() or draft.dtype == torch.bool:
        raise InvalidInput(
            f"a draft of shape {tuple(draft.shape)} and type {draft.dtype}: expected ({a},) token "
            "ids; pad it with MASK or EOS, or set answer_length"
        )
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
    ends = fixed & (draft == denoiser.eos_token_id)
    if bool((fixed & ~ends & (ends.cumsum(dim=0) > 0)).any()):
        raise InvalidInput("a fixed word stands behind a fixed EOS: expected the end to come last")
