"""Forward passes over the same prompts, one an iteration: the prompt is read once.

On a GPU a small model spends most of a pass waiting for Python to launch its thousand kernels. A
captured pass launches them as one CUDA graph. A graph has fixed shapes and reads and writes fixed
memory, so prompts are padded on the left to a multiple of `PROMPT_STEP` and rows to a power of two,
which changes nothing but rounding; one graph then serves many runs, and rows may leave the batch.
The next pass can be begun before the host has looked at what came of the last: launching it takes
about as long as a small model computes.

Captured passes are used after `Denoiser.capture`, and run the layers as `lad.accel.llama_layers` has them where
it can. On a CPU nothing is captured or compiled, but the same padded tensors are filled and read by
the same functions, for the tests.

Shapes: b = rows, p = prompt positions, a = answer positions, v = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lad.accel.llama_layers import Given, Layers
from lad.diffusion.denoiser import Denoiser, PromptCache, attention_mask

__all__ = ["MOST_GRAPHS", "PROMPT_STEP", "CapturedPass", "Passes", "padded_shape"]

PROMPT_STEP = 32
ROW_STEP = 8  # products of an 8 B layer: 196 us with 264 positions, 204 with 257 (H200, bfloat16)
MOST_GRAPHS = 32  # kept at once; each holds its own logits and keys
MOST_LOGITS = 2**31  # held by all of them together: 4 GB in 16 bit
WARM_UP = 3  # passes before a capture, in which libraries choose kernels and allocate workspace


def padded_shape(rows: int, prompt: int) -> tuple[int, int]:
    """Rows as a power of two, and prompt positions as a multiple of `PROMPT_STEP`."""
    return 1 << (rows - 1).bit_length(), -(-prompt // PROMPT_STEP) * PROMPT_STEP


class Passes:
    """Logits of the answers to the same prompts, again and again.

    Args:
        prompts: `(b, p)` int64, and `padding` `(b,)` int64 or None, as in `Denoiser.logits`.
    """

    def __init__(self, denoiser: Denoiser, prompts: Tensor, padding: Tensor | None) -> None:
        self.denoiser, self.prompts, self.padding = denoiser, prompts, padding
        self.cache = denoiser.read_prompt(prompts, padding)
        self.filled: CapturedPass | None = None
        self.begun: Tensor | None = None
        self.run = object()  # by which a captured pass knows which rows it holds

    def begin(self, answer: Tensor) -> None:
        """Have the device start on what the next call of `logits`, of the same, will ask for.

        Nothing is begun where the host would have to wait for it, or to launch it kernel by kernel:
        a pass that turns out not to be wanted is then a pass's time lost.
        """
        if self.denoiser.graphs is not None:
            self.begun = self.logits(answer)

    def logits(self, answer: Tensor, width: Tensor | None = None) -> Tensor:
        """`(b, a, v)` logits of `(b, a)` answers; valid until the next call, or one of `begin`.

        `width` is as in `Denoiser.logits`; with it nothing is captured.
        """
        begun = self._take_begun()
        if begun is not None:
            return begun
        if width is not None:
            return self.denoiser.logits(self.prompts, answer, self.cache, self.padding, width)
        # A cache of nothing (a prompt of one token) has no captured counterpart.
        whole = self.denoiser.config.attention == "bidirectional"
        if self.denoiser.graphs is None or (self.cache is None and not whole):
            return self.denoiser.logits(self.prompts, answer, self.cache, self.padding)
        if self.filled is None or self.filled.answer.shape[1] != answer.shape[1]:
            self.filled = captured(self.denoiser, *self.prompts.shape, answer.shape[1])
        if self.filled.run is not self.run:
            self.filled.fill(self.prompts, self.padding, self.cache)
            self.filled.run = self.run
        return self.filled.logits(answer)

    def _take_begun(self) -> Tensor | None:
        """Logits that were begun, unless another run has used their memory since."""
        begun, self.begun = self.begun, None
        lost = self.filled is not None and self.filled.run is not self.run
        return None if lost else begun

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, an index on the device."""
        begun = self._take_begun()
        self.begun = None if begun is None else begun[rows]
        self.prompts = self.prompts[rows]
        self.padding = None if self.padding is None else self.padding[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
        # Another pass may fit fewer rows; in this one they stand elsewhere.
        self.filled, self.run = None, object()


def captured(denoiser: Denoiser, rows: int, prompt: int, answer: int) -> CapturedPass:
    """The captured pass that these shapes fit in; made when there is none."""
    shape = (*padded_shape(rows, prompt), answer)
    kept = denoiser.graphs.passes
    found = kept.pop(shape, None)
    if found is None:
        own = shape[0] * answer * denoiser.vocabulary_size
        held = {key: key[0] * key[2] * denoiser.vocabulary_size for key in kept}
        while kept and (len(kept) >= MOST_GRAPHS or sum(held.values()) + own > MOST_LOGITS):
            oldest = next(iter(kept))  # the one that was used longest ago
            kept.pop(oldest), held.pop(oldest)
        found = CapturedPass(denoiser, *shape)
    kept[shape] = found
    return found


class CapturedPass:
    """One pass of fixed shapes, over tensors of its own that are filled before each replay.

    What hangs on the prompts alone (masks, rotary positions) is computed when they are filled in,
    unless attention depends on what is masked. Some positions may be spare: rows times positions
    are made a multiple of `ROW_STEP`, which products run faster with, and no other sees them.
    """

    def __init__(self, denoiser: Denoiser, b: int, p: int, a: int) -> None:
        device = denoiser.device
        self.denoiser = denoiser
        graphs = denoiser.graphs
        if graphs.layers is None:
            graphs.layers = Layers.of(denoiser.causal_lm.model, compile=device.type == "cuda")
        self.layers = graphs.layers
        self.prompts = torch.full((b, p), denoiser.eos_token_id, device=device)
        self.padding = torch.zeros(b, dtype=torch.int64, device=device)
        self.answer = torch.full((b, a), denoiser.mask_token_id, device=device)
        self.cache = denoiser.read_prompt(self.prompts, self.padding)
        self.start = 0 if self.cache is None else self.cache.get_seq_length()
        computed = p - self.start + a
        self.spare = -computed % ROW_STEP if b * computed % ROW_STEP else 0
        self.given = None
        if self.layers is not None and denoiser.config.attention != "mask-blind":
            self.given = self._given()
        self.run: object | None = None  # whose rows it holds
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    def _given(self) -> Given:
        """What the layers are given of these prompts."""
        config, (b, p) = self.denoiser.config, self.prompts.shape
        whole = p + self.answer.shape[1]
        position = torch.arange(whole + self.spare, device=self.prompts.device)
        lengths = torch.full((b,), p, device=position.device)
        mask = attention_mask(lengths, len(position), config.attention, config.target, self.padding)
        mask = mask[:, :, self.start :] & (position < whole)
        if self.cache is not None:  # then all that is computed sees the same
            mask = mask[:, :, :1]
        own = (position[self.start :] - self.padding[:, None]).clamp(min=0)
        return self.layers.given(own, mask)

    def _run(self) -> Tensor:
        denoiser = self.denoiser
        if self.given is None:
            return denoiser.logits(
                self.prompts, self.answer, self.cache, self.padding, layers=self.layers
            )
        b, a = self.answer.shape
        parts = [self.prompts[:, self.start :], self.answer]
        if self.spare:
            parts.append(self.answer.new_full((b, self.spare), denoiser.eos_token_id))
        states = self.layers(torch.cat(parts, dim=1), self.given, self.cache)
        first = self.prompts.shape[1] - self.start - denoiser.config.shift
        return denoiser.causal_lm.lm_head(states[:, first : first + a])

    def _capture(self) -> None:
        """Record the kernels of a pass; what they compute meanwhile is of no use."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.out = self._run()
        self.graph = graph

    def fill(self, prompts: Tensor, padding: Tensor | None, cache: PromptCache | None) -> None:
        """Take over prompts that fit, and what was read of them."""
        b, p = prompts.shape
        # Rows to spare answer the first prompt again.
        rows = torch.arange(len(self.prompts), device=prompts.device)
        rows = rows.where(rows < b, 0)
        spare = self.prompts.shape[1] - p
        self.prompts[:, spare:] = prompts[rows]
        self.padding[:] = spare if padding is None else padding[rows] + spare
        if self.given is not None:
            for mine, new in zip(self.given, self._given(), strict=True):
                mine.copy_(new)
        if cache is None:
            return
        for own, other in zip(self.cache.layers, cache.layers, strict=True):
            for mine, read in ((own.keys, other.keys), (own.values, other.values)):
                mine[:, :, :spare] = 0  # not seen, but a softmax weight of 0 times NaN is NaN
                mine[:, :, spare:] = read[rows]

    def logits(self, answer: Tensor) -> Tensor:
        """`(b, a, v)` logits; the memory is the graph's and holds them until the next call."""
        b = len(answer)
        self.answer[:b] = answer
        self.answer[b:] = answer[:1]
        if self.graph is None:
            return self._run()[:b]
        self.graph.replay()
        return self.out[:b]
