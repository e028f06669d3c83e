"""Traces: everything that happened in one refinement, as arrays that need no model to be read.

A `Step` is one iteration. A `Trace` is the whole run with the bytes of every token in it, so that
figures, widgets and a page without a kernel need neither tokenizer nor weights. On disk it is JSON
Lines, see `lad.diffusion.trace_file`.

Shapes: a = positions of the answer region, i = iterations that ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lad.diffusion.config import RefineConfig
from lad.models.chat import decode_pieces, read_vocabulary
from lad.utils import InvalidInput, provenance

ALTERNATIVES = 5  # tokens that a step keeps for each position


@dataclass(frozen=True, eq=False)
class Step:
    """One iteration over an answer region of `a` positions.

    Attributes:
        iteration: index from 0.
        inputs: `(a,)` int64, the answer region as the denoiser saw it.
        draft: `(a,)` int64, the token drawn at every position.
        confidence: `(a,)` float32 in [0, 1], the denoiser's probability of the token drawn.
        remask: `(a,)` bool, positions masked again before the next iteration.
        alternatives: `(a, 5)` int32, the likeliest tokens, likeliest first; None, as the next two,
            in runs that were recorded without them.
        probabilities: `(a, 5)` float16, theirs, of the same distribution as the confidence: over
            all tokens but MASK, after `eos_bias`, before temperature, top-k and top-p.
        entropy: `(a,)` float16, of that whole distribution, in nats.
        fixed: `(a,)` bool, positions that could not change; None is as good as none of them.
        seconds: wall time of this iteration.
    """

    iteration: int
    inputs: np.ndarray
    draft: np.ndarray
    confidence: np.ndarray
    remask: np.ndarray
    alternatives: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    entropy: np.ndarray | None = None
    fixed: np.ndarray | None = None
    seconds: float = 0.0

    def __eq__(self, other: object) -> bool:
        """Equal when everything but the wall time is."""
        if not isinstance(other, Step):
            return NotImplemented
        return all(
            np.array_equal(value, getattr(other, name))
            for name, value in vars(self).items()
            if name != "seconds"
        )


def _stacked(name: str, words: str) -> cached_property:
    """A property of a trace: its steps' arrays of that name as one array; None if they are None."""

    def stack(trace: Trace) -> np.ndarray | None:
        arrays = [getattr(step, name) for step in trace.steps]
        return None if arrays[0] is None else np.stack(arrays)

    stack.__doc__ = words
    return cached_property(stack)


@dataclass(frozen=True, eq=False)
class Trace:
    """One refinement from first mask to last draft.

    Attributes:
        prompt: the user's text.
        steps: the iterations that ran, at least one.
        stopped_early: True when it ended before the iterations were used up.
        mask_token_id, eos_token_id: the two tokens with a meaning of their own.
        special_ids: tokens that are markup, not text (they never show in `answer`).
        vocabulary, prepend_scheme: what `lad.models.chat.read_vocabulary` says of every id in it.
        prompt_ids: `(p,)` int64, the prompt with its chat template, as the denoiser saw it.
        config: the settings of the run (`RefineConfig.to_dict()`).
        provenance: model, adapter digest, versions, device, dtype.
    """

    prompt: str
    steps: list[Step]
    stopped_early: bool
    mask_token_id: int
    eos_token_id: int
    special_ids: frozenset[int]
    vocabulary: dict[int, bytes]
    prompt_ids: np.ndarray
    config: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    prepend_scheme: str | None = None

    def __post_init__(self) -> None:
        if not self.steps:
            raise InvalidInput("a trace of 0 steps: expected at least one iteration")

    def __eq__(self, other: object) -> bool:
        """Equal when prompt, settings and every step are (wall times and provenance aside)."""
        if not isinstance(other, Trace):
            return NotImplemented
        names = ("prompt", "stopped_early", "config", "steps")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and np.array_equal(self.prompt_ids, other.prompt_ids)

    inputs = _stacked("inputs", "`(i, a)` int64: what the denoiser saw at each iteration.")
    drafts = _stacked("draft", "`(i, a)` int64: the draft after each iteration.")
    confidence = _stacked("confidence", "`(i, a)` float32: probability of each token.")
    remask = _stacked("remask", "`(i, a)` bool: what is masked again (the last row is empty).")
    alternatives = _stacked("alternatives", "`(i, a, 5)` int32 or None: the likeliest tokens.")
    probabilities = _stacked("probabilities", "`(i, a, 5)` float16 or None: theirs.")
    entropy = _stacked("entropy", "`(i, a)` float16 or None: entropy in nats.")

    @cached_property
    def is_masked(self) -> np.ndarray:
        """`(i, a)` bool: positions that were MASK in the denoiser's input."""
        return self.inputs == self.mask_token_id

    @cached_property
    def changed(self) -> np.ndarray:
        """`(i, a)` bool: tokens that differ from the draft before; all of them at iteration 0."""
        first = np.ones_like(self.drafts[:1], dtype=bool)
        return np.concatenate([first, self.drafts[1:] != self.drafts[:-1]])

    @cached_property
    def settled_at(self) -> np.ndarray:
        """`(a,)` int64: the iteration from which a position keeps its final token to the end."""
        return len(self.steps) - 1 - np.argmax(self.changed[::-1], axis=0)

    @cached_property
    def settled_share(self) -> np.ndarray:
        """`(i,)` float64: share of the final answer, its EOS included, that is settled."""
        settled = self.settled_at[: self.tokens + 1]
        return (settled[None, :] <= np.arange(len(self.steps))[:, None]).mean(axis=1)

    @property
    def tokens(self) -> int:
        """Number of tokens of the final answer, before its EOS."""
        return self.answer_length(len(self.steps) - 1)

    @property
    def answer(self) -> str:
        """Text of the final draft up to its EOS."""
        return self.text(len(self.steps) - 1)

    @property
    def nfe(self) -> int:
        """Number of function evaluations: forward passes spent."""
        return len(self.steps)

    @property
    def backbone_passes(self) -> int:
        """How many of them were the backbone's, which verifies every second draft."""
        return self.nfe // 2 if self.config.get("remasking") == "verified" else 0

    @property
    def tpf(self) -> float:
        """Tokens of the answer per forward pass."""
        return self.tokens / self.nfe

    @property
    def seconds(self) -> float:
        """Wall time of all iterations."""
        return sum(step.seconds for step in self.steps)

    def answer_length(self, iteration: int) -> int:
        """Number of tokens of a draft before its first EOS (all of them if there is none)."""
        ends = np.flatnonzero(self.drafts[iteration] == self.eos_token_id)
        return int(ends[0]) if len(ends) else self.drafts.shape[1]

    def text(self, iteration: int) -> str:
        """Text of a draft up to its first EOS, without markup tokens."""
        ids = self.drafts[iteration][: self.answer_length(iteration)]
        return self.decode([t for t in ids.tolist() if t not in self.special_ids])

    def decode(self, ids) -> str:
        """Bytes of `ids` read together as UTF-8: characters split over tokens come whole."""
        pieces = [self.vocabulary[int(t)] for t in ids]
        return b"".join(decode_pieces(pieces, self.prepend_scheme)).decode(errors="replace")

    def save(self, path: str | Path) -> Path:
        """Write the trace as JSON Lines, whole or not at all; CacheError where the disk refuses."""
        from lad.diffusion import trace_file

        return trace_file.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace; InvalidInput where there is none, DamagedFile where it is not whole."""
        from lad.diffusion import trace_file

        return trace_file.load(Path(path))


def make_trace(denoiser, prompt, prompt_ids, config: RefineConfig, steps: list[Step]) -> Trace:
    """The trace of steps that a denoiser ran; `prompt_ids` are the `(p,)` token ids of `prompt`."""
    tokenizer, prompt_ids = denoiser.tokenizer, prompt_ids.cpu().numpy()
    arrays = [x for step in steps for x in (step.inputs, step.draft, step.alternatives)]
    flat = [x.ravel() for x in (*arrays, prompt_ids) if x is not None]
    used = set(np.unique(np.concatenate(flat)).tolist())
    added = tokenizer.added_tokens_decoder
    special = {t for t in used if t == denoiser.mask_token_id or (t in added and added[t].special)}
    if isinstance(prompt, list | tuple):
        prompt = prompt[-1]["content"]
    elif not isinstance(prompt, str):
        prompt = tokenizer.decode(prompt_ids.tolist())
    return Trace(
        prompt=prompt,
        steps=steps,
        stopped_early=len(steps) < config.iterations,
        mask_token_id=denoiser.mask_token_id,
        eos_token_id=denoiser.eos_token_id,
        special_ids=frozenset(special),
        **read_vocabulary(tokenizer, used, special),
        prompt_ids=prompt_ids,
        config=config.to_dict(),
        provenance=provenance(
            denoiser.backbone.spec.name,
            denoiser.device.type,
            str(denoiser.causal_lm.dtype),
            denoiser.adapter_sha256,
            denoiser.backbone.digest,
        ),
    )
