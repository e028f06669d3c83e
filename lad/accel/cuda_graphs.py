"""Forward passes captured as CUDA graphs, and a compiled sampler step.

On a GPU a small model spends most of a pass waiting for Python to launch a thousand kernels; a
graph launches them at once. A graph has fixed shapes and reads and writes fixed memory, so prompts
are padded on the left to a multiple of `PROMPT_STEP` and batches to a power of two, which changes
nothing but rounding. One graph serves many runs, and sequences may leave the batch.

On a CPU nothing is captured or compiled, but the same padded tensors are used, for the tests.

Reference: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

Shapes: b = batch, p = prompt positions, a = answer positions, v = vocabulary size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lad.accel.llama_layers import LlamaLayers, compiled
from lad.diffusion.config import RefineConfig
from lad.diffusion.denoiser import Denoiser, attention_mask
from lad.diffusion.sampler import SamplerState, StepOutput, step

PROMPT_STEP = 32
MAX_LOGITS = 2**31  # in all graphs together: 4 GB in 16 bit
WARM_UP = 3  # passes before a capture, in which libraries choose kernels and allocate workspace


def capture(denoiser: Denoiser) -> Denoiser:
    """The same denoiser, whose forward passes are from now on CUDA graphs and whose step compiles.

    It pays on a GPU. Merge the adapter first (`Denoiser.merge`): compiled layers take no other, and
    without them the graph is of the plain layers.
    """
    graphs = GraphCache(denoiser)
    denoiser.prepare = functools.partial(CapturedForward, graphs)
    denoiser.step = functools.partial(captured_step, graphs)
    return denoiser


def padded_shape(batch: int, prompt: int) -> tuple[int, int]:
    """Batch size as a power of two, and prompt positions as a multiple of `PROMPT_STEP`."""
    return 1 << (batch - 1).bit_length(), -(-prompt // PROMPT_STEP) * PROMPT_STEP


class GraphCache:
    """The captured passes of a denoiser by shape, least recently used first."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.version: int | None = None
        self.layers: LlamaLayers | None = None
        self.passes: dict[tuple[int, int, int], CapturedPass] = {}
        self.last: CapturedPass | None = None  # the one used last

    def get(self, batch: int, prompt: int, answer: int) -> CapturedPass:
        """The captured pass that these shapes fit in, captured now when there is none."""
        if self.version != self.denoiser.version:  # the weights have changed
            on_gpu = self.denoiser.device.type == "cuda"
            self.layers = LlamaLayers.of(self.denoiser.causal_lm.model, compile=on_gpu)
            self.version, self.passes = self.denoiser.version, {}
        shape = (*padded_shape(batch, prompt), answer)
        found = self.passes.pop(shape, None)
        if found is None:
            positions = shape[0] * shape[2] + sum(b * a for b, _, a in self.passes)
            while self.passes and positions * self.denoiser.vocabulary_size > MAX_LOGITS:
                b, _, a = oldest = next(iter(self.passes))
                positions -= b * a
                del self.passes[oldest]
            found = CapturedPass(self.denoiser, self.layers, *shape)
        self.passes[shape] = self.last = found
        return found


class CapturedForward:
    """`PromptForward` by captured passes; its logits are valid until the next call."""

    batch_ids = itertools.count()

    def __init__(self, graphs: GraphCache, prompts: Tensor, padding: Tensor | None = None) -> None:
        self.graphs, self.prompts, self.padding = graphs, prompts, padding
        self.batch_id = next(self.batch_ids)

    def __call__(self, answer: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`(b, a, v)` logits of `(b, a)` answers; all are computed, whatever the `lengths`."""
        captured = self.graphs.get(*self.prompts.shape, answer.shape[1])
        if captured.batch_id != self.batch_id:
            captured.fill(self.prompts, self.padding)
            captured.batch_id = self.batch_id
        return captured(answer, lengths)

    def select(self, keep: Tensor) -> None:
        """Drop all sequences but those that `keep`, an index on the device, names."""
        last, shape = self.graphs.last, padded_shape(len(keep), self.prompts.shape[1])
        filled = last is not None and last.batch_id == self.batch_id
        self.prompts = self.prompts[keep]
        self.padding = None if self.padding is None else self.padding[keep]
        self.batch_id = next(self.batch_ids)
        if filled and shape == last.prompts.shape:
            last.select(keep)
            last.batch_id = self.batch_id


class Replayed:
    """A function of no arguments over fixed tensors: on a GPU a CUDA graph of it, else itself.

    A call returns `output`, which on a GPU is memory that the next call writes to.
    """

    def __init__(self, function: Callable, device: torch.device) -> None:
        self.function, self.graph, self.output = function, None, None
        if device.type != "cuda":
            return
        self.function, self.graph = None, torch.cuda.CUDAGraph()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side_stream)
        with torch.cuda.graph(self.graph):
            self.output = function()

    def __call__(self) -> Any:
        if self.graph is None:
            self.output = self.function()
        else:
            self.graph.replay()
        return self.output


class CapturedPass:
    """One forward pass of fixed shapes over tensors of its own, which are filled before a replay.

    Masks and rotary embeddings belong to the pass: with a window the mask is another at each.
    """

    def __init__(
        self, denoiser: Denoiser, layers: LlamaLayers | None, b: int, p: int, a: int
    ) -> None:
        device = denoiser.device
        self.denoiser = denoiser
        self.layers = None if denoiser.config.attention == "mask-blind" else layers
        self.prompts = torch.full((b, p), denoiser.eos_token_id, device=device)
        self.padding = torch.zeros(b, dtype=torch.int64, device=device)
        self.answer = torch.full((b, a), denoiser.mask_token_id, device=device)
        self.lengths = torch.full_like(self.padding, a)  # of the answers; the rest is invisible
        self.cache = denoiser.read_prompt(self.prompts, self.padding)
        self.start = 0 if self.cache is None else self.cache.get_seq_length()
        self.read = self._read
        if self.layers is not None and self.cache is not None:
            self.read = Replayed(self._read, device)
        self.batch_id: int | None = None  # of the batch whose prompts are filled in
        self.steps: dict[RefineConfig, CapturedStep] = {}
        self.run = Replayed(self._run, device)

    def _layer_inputs(self):
        """Rotary embeddings and attention bias, from the prompts and the lengths of the answers."""
        config, (b, p) = self.denoiser.config, self.prompts.shape
        position = torch.arange(p + self.answer.shape[1], device=self.prompts.device)
        lengths = torch.full((b,), p, device=position.device)
        mask = attention_mask(lengths, len(position), config.attention, config.target, self.padding)
        mask = mask[:, :, self.start :] & (position < p + self.lengths[:, None])[:, None, None]
        if self.cache is not None:  # then all computed positions see the same
            mask = mask[:, :, :1]
        computed = (position[self.start :] - self.padding[:, None]).clamp(min=0)
        return self.layers.prepare(computed, mask)

    def _read(self) -> None:
        """Keys and values of the prompts, see `Denoiser.read_prompt`."""
        if self.cache is None:
            return
        if self.layers is None:
            read = self.denoiser.read_prompt(self.prompts, self.padding)
            for mine, new in zip(self.cache.layers, read.layers, strict=True):
                mine.keys.copy_(new.keys)
                mine.values.copy_(new.values)
            return
        position = torch.arange(self.start, device=self.prompts.device)
        ends = torch.full_like(self.padding, self.start)
        mask = attention_mask(ends, self.start, "prompt-causal", "same", self.padding)
        inputs = self.layers.prepare((position - self.padding[:, None]).clamp(min=0), mask)
        self.layers(self.prompts[:, : self.start], inputs, into=self.cache)

    def _run(self) -> Tensor:
        denoiser = self.denoiser
        if self.layers is None:
            return denoiser.logits(
                self.prompts, self.answer, self.cache, self.padding, self.lengths
            )
        tokens = torch.cat([self.prompts[:, self.start :], self.answer], dim=1)
        states = self.layers(tokens, self._layer_inputs(), self.cache)
        first = self.prompts.shape[1] - self.start - denoiser.config.shift
        return denoiser.causal_lm.lm_head(states[:, first : first + self.answer.shape[1]])

    def fill(self, prompts: Tensor, padding: Tensor | None) -> None:
        """Copy `(b, p)` prompts into this pass's memory, and read them."""
        extra = self.prompts.shape[1] - prompts.shape[1]
        padding = prompts.new_zeros(len(prompts)) if padding is None else padding
        index = self._places(torch.arange(len(prompts), device=prompts.device))
        self.prompts[:, extra:] = prompts[index]
        self.padding[:] = padding[index] + extra
        self.lengths.fill_(self.answer.shape[1])
        self.read()

    def select(self, keep: Tensor) -> None:
        """Leave those sequences that `keep` names, as many as still need this pass."""
        index = self._places(keep)
        tensors = [self.prompts, self.padding]
        for layer in () if self.cache is None else self.cache.layers:
            tensors += layer.keys, layer.values
        for tensor in tensors:
            tensor.copy_(tensor[index])

    def _places(self, index: Tensor) -> Tensor:
        """An index for the whole batch: unused places answer the first prompt again."""
        place = torch.arange(len(self.prompts), device=index.device)
        return index[place.where(place < len(index), 0)]

    def __call__(self, answer: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`(b, a, v)` logits, in memory that holds them until the next call."""
        b = len(answer)
        if lengths is not None:
            self.lengths[:b] = lengths
        self.answer[:b] = answer
        self.answer[b:] = answer[:1]
        return self.run()[:b]


# -- the step --------------------------------------------------------------------------------------


class CapturedStep:
    """`sampler.step` on the logits of a captured pass, compiled and captured with it.

    It reads the pass's own logits, so nothing but the small state is copied. Without a GPU it runs
    the plain step on the same padded tensors.
    """

    def __init__(
        self, forward: CapturedPass, state: SamplerState, config: RefineConfig, n: int
    ) -> None:
        b, a = forward.answer.shape
        index = torch.zeros(b, dtype=torch.int64, device=state.tokens.device)
        self.forward, self.config = forward, config
        self.state = state.select(index)
        self.iteration = torch.zeros((), dtype=torch.int64, device=index.device)
        self.uniforms = torch.zeros((b, n, a), device=index.device) if n else None
        self.run = Replayed(self._run, index.device)

    def _run(self) -> tuple[Tensor, ...]:
        logits = self.forward.run.output
        function = compiled(_flat_step) if logits.is_cuda else _flat_step
        return function(logits, *self.state, self.config, self.iteration, self.uniforms)

    def __call__(self, state: SamplerState, i: int, uniforms: Tensor | None) -> StepOutput:
        """The output for this state, in memory that holds it until the next call."""
        b = len(state.tokens)
        for mine, new in zip(self.state[:6], state[:6], strict=True):
            mine[:b] = new
        self.iteration.fill_(i)
        if uniforms is not None:
            self.uniforms[:b] = uniforms
        output = [x[:b] for x in self.run()]
        return StepOutput(*output[:-4], SamplerState(*output[-4:], *state[4:]))


def _flat_step(logits: Tensor, *arguments) -> tuple[Tensor, ...]:
    """`sampler.step` from and to plain tensors, which every version of torch compiles."""
    *state, config, iteration, uniforms = arguments
    output = step(logits, SamplerState(*state), config, iteration, uniforms)
    return (*output[:-1], *output.state[:4])


def captured_step(
    graphs: GraphCache,
    logits: Tensor,
    state: SamplerState,
    config: RefineConfig,
    i: int,
    uniforms: Tensor | None = None,
) -> StepOutput:
    """`sampler.step`; captured where sampling is greedy and the logits are a captured pass's."""
    one = graphs.last
    if not config.greedy or one is None or logits.data_ptr() != one.run.output.data_ptr():
        return step(logits, state, config, i, uniforms)
    if config not in one.steps:
        n = 0 if uniforms is None else uniforms.shape[1]
        one.steps[config] = CapturedStep(one, state, config, n)
    return one.steps[config](state, i, uniforms)
