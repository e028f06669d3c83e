"""The forward process: structural noise on the answer, the prompt never touched.

LAD trains its denoiser on text that is damaged the way drafts are damaged: tokens masked, swapped
with a neighbour, doubled, replaced at random, or overwritten by a span copied from nearby. Masks
alone would teach filling gaps; the rest teaches repairing what is *visible*, which is why
refinement can work without masking anything again ("noiseless").

Drawing and applying are apart. `draw_plan` makes every random decision at once from an explicit
generator; `apply_plan` is a pure function of tokens and plan, vectorised here and written as plain
loops in `lad/diffusion/reference.py`, so one can be tested against the other token for token.

Source: LAD: LoRA-Adapted Diffusion (EMNLP 2025 demo) and the authors' training scripts.

Shapes: b = batch, t = positions of the context window. The answer of a row is one contiguous run of
positions; in training it runs to the end of the window, filled up with EOS.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lad.utils import InvalidInput

__all__ = ["KINDS", "CorruptionConfig", "Plan", "apply_plan", "corrupt", "draw_plan"]

KINDS = ("swap", "duplicate", "replace", "shift")
LONGEST_SPAN = 3
WIDEST_FRONTIER = 64  # positions between clean text and the masks of the rest, `suffix_share`
FARTHEST_SHIFT = 4


@dataclass(frozen=True)
class CorruptionConfig:
    """How much of each noise. The defaults are the paper's.

    Attributes:
        all_masked: probability that the whole answer becomes MASK, and nothing else happens.
        mask_probability: otherwise, probability that some positions are masked.
        mask_fraction: the share of positions masked is then drawn from U(low, high).
        block_share: of those rows, the share whose masked positions stand in one block, as when a
            gap is filled in.
        suffix_share: of those rows, the share masked like an answer written from left to right,
            some positions at a time: clean up to a random point, then up to 64 positions of which
            a random part is masked, then masks to the end; `mask_fraction` has no say in them.
        structural_probability: otherwise, probability that the kinds below act at all.
        rate: a kind acts on a position with probability `severity * rate` (the paper's p/4).
        kinds: which structural kinds act, of `KINDS`.
    """

    all_masked: float = 0.1
    mask_probability: float = 0.5
    mask_fraction: tuple[float, float] = (0.0, 0.5)
    block_share: float = 0.0
    suffix_share: float = 0.0
    structural_probability: float = 1.0
    rate: float = 0.25
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        shares = ("block_share", "suffix_share")
        chances = ("all_masked", "mask_probability", "structural_probability", "rate")
        for name in shares + chances:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidInput(f"{name} = {value}: expected a probability between 0 and 1")
        if self.block_share + self.suffix_share > 1:
            raise InvalidInput(
                f"block_share + suffix_share = {self.block_share + self.suffix_share}: "
                "expected at most 1 together"
            )
        low, high = self.mask_fraction
        if not 0 <= low <= high <= 1:
            raise InvalidInput(
                f"mask_fraction = {self.mask_fraction}: expected 0 <= low <= high <= 1"
            )
        unknown = set(self.kinds) - set(KINDS)
        if unknown:
            raise InvalidInput(f"kinds = {self.kinds}: expected any of {', '.join(KINDS)}")
        # Lists come out of YAML and JSON; tuples keep the configuration hashable.
        object.__setattr__(self, "mask_fraction", (float(low), float(high)))
        object.__setattr__(self, "kinds", tuple(self.kinds))

    def to_dict(self) -> dict:
        """Plain values, for logs and model cards."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """Every random decision of one corruption, in the order in which they are applied.

    Attributes:
        severity: `(b,)` float32, the p of each row.
        mask: `(b, t)` bool, positions that become MASK.
        swap: `(b, t)` bool, exchange positions i and i + 1, taken left to right.
        copy_left: `(b, t)` bool, take the left neighbour's token.
        copy_right: `(b, t)` bool, take the right neighbour's token, after the left copies.
        replace: `(b, t)` bool, take `replacement` instead.
        replacement: `(b, t)` int64, random tokens, never MASK.
        shift_from, shift_to, shift_length: `(b,)` int64, the span copied; length 0 for none.
    """

    severity: Tensor
    mask: Tensor
    swap: Tensor
    copy_left: Tensor
    copy_right: Tensor
    replace: Tensor
    replacement: Tensor
    shift_from: Tensor
    shift_to: Tensor
    shift_length: Tensor


def draw_plan(
    answer: Tensor,
    vocabulary_size: int,
    mask_token_id: int,
    generator: torch.Generator,
    config: CorruptionConfig | None = None,
    severity: float | Tensor | None = None,
) -> Plan:
    """Draw the noise for a batch.

    Every decision is drawn whatever the configuration, and only then switched off, so that with one
    seed turning a kind off leaves the others as they were.

    Args:
        answer: `(b, t)` bool, True on the answer region, contiguous in each row.
        vocabulary_size: number of token ids to replace from.
        mask_token_id: the MASK token, which no replacement ever is.
        generator: on the device of `answer`; the global generator is not touched.
        config: amounts of noise; the paper's by default.
        severity: fixes p, one number or `(b,)`; by default each row draws it from U(0, 1).
    """
    config = config or CorruptionConfig()
    b, t = answer.shape
    device = answer.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    p = uniform(b)
    if severity is not None:
        p = torch.as_tensor(severity, dtype=torch.float32, device=device).expand(b)
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise InvalidInput(f"severity = {severity}: expected p between 0 and 1")
    length = answer.sum(dim=1)  # (b,)
    start = answer.int().argmax(dim=1)  # (b,)

    everything = uniform(b) < config.all_masked
    some = (uniform(b) < config.mask_probability) & ~everything
    low, high = config.mask_fraction
    count = ((low + (high - low) * uniform(b)) * length).floor() * some
    # Exactly `count` positions: those with the lowest scores, the prompt's pushed out of reach.
    scores = uniform(b, t).masked_fill(~answer, 2.0)
    rank = scores.argsort(dim=1).argsort(dim=1)
    mask = (rank < count[:, None]) | everything[:, None]

    structural = (uniform(b) < config.structural_probability) & ~everything
    probability = (p * config.rate * structural)[:, None]  # (b, 1)
    after = torch.zeros_like(answer)  # True where the right neighbour is answer too
    after[:, :-1] = answer[:, 1:]
    before = torch.zeros_like(answer)  # True where the left neighbour is answer too
    before[:, 1:] = answer[:, :-1]
    swap = (uniform(b, t) < probability) & answer & after
    copies = (uniform(b, t) < probability) & answer
    leftwards = uniform(b, t) < 0.5
    replace = (uniform(b, t) < probability) & answer
    replacement = torch.randint(vocabulary_size - 1, (b, t), generator=generator, device=device)
    replacement += replacement >= mask_token_id  # skip MASK

    span = (1 + (uniform(b) * LONGEST_SPAN).long()).clamp(max=LONGEST_SPAN).minimum(length)
    room = (length - span).clamp(min=0)
    shift_from = (uniform(b) * (room + 1)).long().minimum(room)
    distance = (1 + (uniform(b) * FARTHEST_SHIFT).long()).clamp(max=FARTHEST_SHIFT)
    direction = torch.where(uniform(b) < 0.5, -1, 1)
    shift_to = (shift_from + direction * distance).clamp(min=0).minimum(room)
    shifted = uniform(b) < probability[:, 0]

    # Drawn last, so that the figures made before these shapes existed stay what they were.
    shape, kept = uniform(b), uniform(b)
    place, width = uniform(b), uniform(b)
    survives = uniform(b, t) < kept[:, None]
    offset = torch.arange(t, device=device) - start[:, None]  # (b, t), position in the answer
    first = (place * (length - count + 1)).floor()  # (b,), of a block of `count`
    block = (offset >= first[:, None]) & (offset < (first + count)[:, None])
    cut = (place * length).floor()
    frontier = 1 + (width * WIDEST_FRONTIER).floor()
    ahead = offset >= cut[:, None]
    suffix = ahead & ~(survives & (offset < (cut + frontier)[:, None]))
    is_block = some & (shape < config.block_share)
    is_suffix = some & (shape >= 1 - config.suffix_share)
    mask = torch.where(is_block[:, None], block, mask)
    mask = torch.where(is_suffix[:, None], suffix, mask)

    def active(kind: str) -> bool:
        return kind in config.kinds

    return Plan(
        severity=p,
        mask=mask & answer,
        swap=swap & active("swap"),
        copy_left=copies & leftwards & before & active("duplicate"),
        copy_right=copies & ~leftwards & after & active("duplicate"),
        replace=replace & active("replace"),
        replacement=replacement,
        shift_from=start + shift_from,
        shift_to=start + shift_to,
        shift_length=span * shifted * active("shift"),
    )


def apply_plan(tokens: Tensor, plan: Plan, mask_token_id: int) -> Tensor:
    """Apply a plan to `(b, t)` int64 tokens; returns the damaged `(b, t)` copy.

    No loop over positions and no transfer to the host, so a training step can call it on the GPU.
    """
    _, t = tokens.shape
    position = torch.arange(t, device=tokens.device)  # (t,)
    noisy = tokens.masked_fill(plan.mask, mask_token_id)

    # Swaps from left to right: a run of swaps carries the run's first token to its end. The token
    # being carried past position i is the one where the current run of swaps began.
    arriving = torch.zeros_like(plan.swap)
    arriving[:, 1:] = plan.swap[:, :-1]
    carried = torch.where(arriving, 0, position).cummax(dim=1).values
    source = torch.where(plan.swap, position + 1, carried)
    noisy = noisy.gather(1, source)

    noisy = torch.where(plan.copy_left, noisy.roll(1, dims=1), noisy)
    noisy = torch.where(plan.copy_right, noisy.roll(-1, dims=1), noisy)
    noisy = torch.where(plan.replace, plan.replacement, noisy)

    offset = position - plan.shift_to[:, None]  # (b, t), where in the target span we are
    inside = (offset >= 0) & (offset < plan.shift_length[:, None])
    source = torch.where(inside, plan.shift_from[:, None] + offset, position)
    return noisy.gather(1, source)


def corrupt(
    tokens: Tensor,
    answer: Tensor,
    vocabulary_size: int,
    mask_token_id: int,
    generator: torch.Generator,
    config: CorruptionConfig | None = None,
    severity: float | Tensor | None = None,
) -> Tensor:
    """Damage the answers of a batch of `(b, t)` tokens; see `draw_plan` for the arguments."""
    plan = draw_plan(answer, vocabulary_size, mask_token_id, generator, config, severity)
    return apply_plan(tokens, plan, mask_token_id)


def expected_rates(severity: float, config: CorruptionConfig | None = None) -> dict[str, float]:
    """Share of answer positions each kind is expected to touch at severity p, long answers.

    A swap moves two tokens and runs of swaps overlap: a position is touched unless neither pair it
    belongs to is swapped. A shift touches at most `LONGEST_SPAN` positions whatever the length, so
    its rate is per row, not per position. Masks are those of rows that are not `suffix_share`'s.
    """
    config = config or CorruptionConfig()
    q = severity * config.rate
    rates = {"swap": 1 - (1 - q) ** 2, "duplicate": q, "replace": q, "shift": q}
    return {kind: rate for kind, rate in rates.items() if kind in config.kinds} | {
        "mask": config.mask_probability * math.fsum(config.mask_fraction) / 2
    }
