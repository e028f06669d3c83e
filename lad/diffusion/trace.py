"""Everything that happened in one refinement, as arrays that need no model to be read.

A `Step` is one iteration: what the denoiser saw, what it drew, how sure it was, and which positions
were masked again for the next iteration. A `Trace` is the whole run together with the bytes of
every token that occurs in it, so that figures, widgets and a page without a kernel can show it
with neither tokenizer nor weights.

On disk a trace is JSON Lines: a header, one line a step, and a closing line without which the file
counts as truncated.

Vocabulary: a = number of positions in the answer region, i = number of iterations that ran.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lad.diffusion.config import upgrade
from lad.utils import CacheError, DamagedFile, InvalidInput, write_whole

__all__ = ["SCHEMA_VERSION", "Step", "Trace"]

SCHEMA = "lad-trace"
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Step:
    """One iteration over an answer region of `a` positions.

    Attributes:
        iteration: index from 0.
        inputs: `(a,)` int64, the answer region as the denoiser saw it.
        draft: `(a,)` int64, the token drawn at every position.
        confidence: `(a,)` float32 in [0, 1], the denoiser's probability of the token drawn.
        remask: `(a,)` bool, positions masked again before the next iteration.
        seconds: wall time of this iteration; where passes are captured, that of the pass it began
            while the last one was looked at is not in it.
    """

    iteration: int
    inputs: np.ndarray
    draft: np.ndarray
    confidence: np.ndarray
    remask: np.ndarray
    seconds: float = 0.0

    def __eq__(self, other: object) -> bool:
        """Equal when everything but the wall time is."""
        if not isinstance(other, Step):
            return NotImplemented
        return self.iteration == other.iteration and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("inputs", "draft", "confidence", "remask")
        )


@dataclass(frozen=True, eq=False)
class Trace:
    """One refinement from first mask to last draft.

    Attributes:
        prompt: the user's text.
        steps: the iterations that ran, at least one.
        stopped_early: True when the draft stood still, or was whole for a strategy that waits for
            that, before the iterations were used up.
        mask_token_id, eos_token_id: the two tokens with a meaning of their own.
        special_ids: tokens that are markup, not text (they never show in `answer`).
        vocabulary: token id -> the bytes that token stands for, for every id in the trace.
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

    def __post_init__(self) -> None:
        if not self.steps:
            raise InvalidInput("a trace of 0 steps: expected at least one iteration")

    def __eq__(self, other: object) -> bool:
        """Equal when prompt, settings and every step are (wall times and provenance aside)."""
        if not isinstance(other, Trace):
            return NotImplemented
        return (
            (self.prompt, self.stopped_early, self.config)
            == (other.prompt, other.stopped_early, other.config)
            and np.array_equal(self.prompt_ids, other.prompt_ids)
            and self.steps == other.steps
        )

    # -- arrays over the whole run -------------------------------------------------------------

    @cached_property
    def inputs(self) -> np.ndarray:
        """`(i, a)` int64: what the denoiser saw at each iteration."""
        return np.stack([step.inputs for step in self.steps])

    @cached_property
    def drafts(self) -> np.ndarray:
        """`(i, a)` int64: the draft after each iteration."""
        return np.stack([step.draft for step in self.steps])

    @cached_property
    def confidence(self) -> np.ndarray:
        """`(i, a)` float32: probability of each token drawn."""
        return np.stack([step.confidence for step in self.steps])

    @cached_property
    def masked(self) -> np.ndarray:
        """`(i, a)` bool: positions that were MASK in the denoiser's input."""
        return self.inputs == self.mask_token_id

    @cached_property
    def remask(self) -> np.ndarray:
        """`(i, a)` bool: positions masked again after each iteration (the last row is empty)."""
        return np.stack([step.remask for step in self.steps])

    @cached_property
    def changed(self) -> np.ndarray:
        """`(i, a)` bool: tokens that differ from the draft before; all of them at iteration 0."""
        first = np.ones_like(self.drafts[:1], dtype=bool)
        return np.concatenate([first, self.drafts[1:] != self.drafts[:-1]])

    @cached_property
    def settled_at(self) -> np.ndarray:
        """`(a,)` int64: the iteration from which a position keeps its final token to the end."""
        last_change = len(self.steps) - 1 - np.argmax(self.changed[::-1], axis=0)
        return last_change.astype(np.int64)

    @cached_property
    def settled_share(self) -> np.ndarray:
        """`(i,)` float64: share of answer tokens that already have their final value.

        Only positions of the final answer count: the EOS tail settles at once and would flatter.
        """
        settled = self.settled_at[: max(self.tokens, 1)]
        return (settled[None, :] <= np.arange(len(self.steps))[:, None]).mean(axis=1)

    # -- the answer ----------------------------------------------------------------------------

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
        return b"".join(self.vocabulary[int(t)] for t in ids).decode("utf-8", errors="replace")

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the trace as JSON Lines; the file appears whole or not at all.

        Raises:
            CacheError: the disk is full or cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(line + "\n" for line in self.lines()).encode())
        except OSError as error:
            raise CacheError(
                f"cannot write the trace to {path} ({error.strerror}): expected a writable folder "
                "with room; choose another path or free some space"
            ) from error
        return path

    def lines(self):
        """The lines of the file: a header, one a step, a closing line."""
        header = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "prompt": self.prompt,
            "mask_token_id": self.mask_token_id,
            "eos_token_id": self.eos_token_id,
            "special_ids": sorted(self.special_ids),
            # One character a byte: readable for ASCII, exact for the halves of a split character.
            "vocabulary": {str(k): v.decode("latin-1") for k, v in sorted(self.vocabulary.items())},
            "prompt_ids": self.prompt_ids.tolist(),
            "config": self.config,
            "provenance": self.provenance,
        }
        yield json.dumps(header, ensure_ascii=False)
        for step in self.steps:
            yield json.dumps(
                {
                    "iteration": step.iteration,
                    "inputs": step.inputs.tolist(),
                    "draft": step.draft.tolist(),
                    # str() of a float32 is the shortest decimal that reads back as the same bits.
                    "confidence": [float(str(c)) for c in step.confidence],
                    "renoised": np.flatnonzero(step.remask).tolist(),
                    "seconds": round(step.seconds, 6),
                }
            )
        yield json.dumps({"end": len(self.steps), "stopped_early": self.stopped_early})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace.

        Raises:
            DamagedFile: not a trace, of another schema version, truncated or inconsistent.
        """
        path = Path(path)
        try:
            return cls.from_lines(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        except FileNotFoundError:
            raise InvalidInput(
                f"no trace at {path}: expected a .jsonl file that `Trace.save` wrote"
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedFile(
                f"{path} is no readable trace ({error}): expected a complete file that "
                "`Trace.save` wrote; record it again"
            ) from error

    @classmethod
    def from_lines(cls, lines: list[str]) -> Trace:
        """Inverse of `lines()`; raises ValueError, LookupError or TypeError on anything else."""
        header, *body = (json.loads(line) for line in lines)
        if header.get("schema") != SCHEMA:
            raise ValueError("no trace header")
        if header["version"] != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {header['version']}, this code reads {SCHEMA_VERSION}"
            )
        if not body or body[-1].get("end") != len(body) - 1:
            raise ValueError("closing line missing: truncated")
        *rows, end = body
        steps = []
        for number, row in enumerate(rows):
            draft = np.array(row["draft"], dtype=np.int64)
            remask = np.zeros(len(draft), dtype=bool)
            remask[row["renoised"]] = True
            step = Step(
                iteration=row["iteration"],
                inputs=np.array(row["inputs"], dtype=np.int64),
                draft=draft,
                confidence=np.array(row["confidence"], dtype=np.float32),
                remask=remask,
                seconds=row["seconds"],
            )
            same_length = (
                len(step.inputs) == len(draft) == len(step.confidence) == len(rows[0]["draft"])
            )
            if step.iteration != number or not same_length:
                raise ValueError(f"step {number} is inconsistent")
            steps.append(step)
        vocabulary = {int(k): v.encode("latin-1") for k, v in header["vocabulary"].items()}
        for step in steps:
            unknown = set(step.inputs.tolist() + step.draft.tolist()) - set(vocabulary)
            if unknown:
                raise ValueError(f"token {min(unknown)} is not in the vocabulary")
        return cls(
            prompt=header["prompt"],
            steps=steps,
            stopped_early=end["stopped_early"],
            mask_token_id=header["mask_token_id"],
            eos_token_id=header["eos_token_id"],
            special_ids=frozenset(header["special_ids"]),
            vocabulary=vocabulary,
            prompt_ids=np.array(header["prompt_ids"], dtype=np.int64),
            config=upgrade(header["config"]),
            provenance=header["provenance"],
        )
