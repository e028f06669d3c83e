"""Many prompts continued at once, left to right: what self-distillation spends its time on.

Scope: throughput of plain autoregressive decoding with a LLaMA backbone, one prompt or thousands.
The weights are those of the backbone's own modules; the loop around them is written here, because
`transformers` reads its whole static cache at every step, copies keys and values once per query
head and waits for the GPU at every token. Here

    - keys and values are written in place and read as far as they are filled, to the next bucket;
    - the query heads that share keys read them together, so nothing is copied;
    - on a GPU each step is one CUDA graph, kept for every number of rows and bucket;
    - now and then finished rows are dropped, so the last long answers do not cost a full batch.

A row's numbers for sampling are drawn before the first step, so which rows are decoded together and
when they are dropped changes an answer by no more than rounding does.

Shapes: b = rows, n = new columns, t = columns, h = hidden size, q = query heads, kv = key/value
heads, g = q / kv, d = size of a head, v = vocabulary. Rows are left-padded: column c of a row that
starts at column s holds position c - s.

References: LLaMA, https://arxiv.org/abs/2302.13971; grouped queries,
https://arxiv.org/abs/2305.13245; https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lad.accel.llama_layers import (
    bias_of,
    finish_layer,
    heads_of,
    normed,
    rotary,
    turned_heads,
    weights_of,
)
from lad.models.registry import LoadedBackbone
from lad.utils import InvalidInput

__all__ = ["Decoder", "generate"]

BUCKET = 32  # columns; attention reads the cache up to a multiple of this
PREFILL = 1 << 16  # positions of prompts read at once; bounds what their activations take
FEWEST = 64  # rows below which a GPU's step gets no faster


def generate(
    backbone: LoadedBackbone,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> list[list[int] | None]:
    """Continue each prompt: `Decoder.generate` for a single call."""
    context = max(map(len, prompts), default=0) + new_tokens
    decoder = Decoder(backbone, min(batch_size, max(len(prompts), 1)), max(context, 1))
    return decoder.generate(prompts, new_tokens, temperature, top_k, generator)


class Decoder:
    """A backbone with room for a batch of prompts and answers, reused from call to call.

    It is for a backbone as it was loaded, without an adapter: some of its weights are copied here.

    Args:
        backbone: any of the LLaMA family.
        batch_size: most rows decoded at once; more prompts than this are taken in turns.
        context: most columns, so most tokens of a prompt and its continuation.
        graphs: capture steps as CUDA graphs; by default on a GPU, elsewhere they do not exist.
        look_every: steps between two looks at which rows are finished.
    """

    @torch.inference_mode()
    def __init__(
        self,
        backbone: LoadedBackbone,
        batch_size: int = 64,
        context: int = 256,
        graphs: bool | None = None,
        look_every: int = 16,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("context", context),
            ("look_every", look_every),
        ):
            if value < 1:
                raise InvalidInput(f"{name} = {value}: expected at least 1")
        if context > backbone.spec.context:
            raise InvalidInput(
                f"context = {context}: expected at most {backbone.spec.context} tokens, which is "
                f"what {backbone.spec.name} was trained for"
            )
        model = backbone.model
        device, dtype = model.device, model.dtype
        self.eos, self.device, self.context = backbone.eos_token_id, device, context
        self.batch_size, self.look_every = batch_size, look_every
        self.graphs = device.type == "cuda" if graphs is None else graphs
        if self.graphs and device.type != "cuda":
            raise InvalidInput(f"graphs = True on {device.type}: expected a model on a CUDA GPU")

        self.embed, self.final_norm = model.model.embed_tokens, model.model.norm
        self.head = model.lm_head
        self.layers = [weights_of(layer) for layer in model.model.layers]
        self.heads = heads_of(model.model)
        positions = torch.arange(context, device=device)
        cos, sin = rotary(model.model, positions[None], dtype)
        self.cos, self.sin = cos[0], sin[0]  # (t, 1, d)

        # The state: allocated once, since a CUDA graph finds its data by address.
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # Zeros and not garbage: a masked value is multiplied by 0, and 0 times NaN is NaN.
        shape = (len(self.layers), batch_size, self.heads.shared, context, self.heads.features)
        self.keys, self.values = zeros(*shape, dtype=dtype), zeros(*shape, dtype=dtype)
        self.columns = positions  # (t,)
        self.column, self.step = zeros(1), zeros(1)  # where the next token is read, how many came
        self.token, self.start = zeros(batch_size), zeros(batch_size)
        self.done = zeros(batch_size, dtype=torch.bool)
        self.produced = zeros(batch_size, context)
        self.draws = zeros(batch_size, context, dtype=torch.float32)  # uniform in [0, 1)
        self.temperature = zeros(1, dtype=torch.float32)

        self._captured: dict[tuple, torch.cuda.CUDAGraph] = {}
        if self.graphs:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        generator: torch.Generator | None = None,
    ) -> list[list[int] | None]:
        """Continue each prompt up to EOS.

        Args:
            prompts: token ids, at least one in each.
            new_tokens: most tokens of a continuation, its EOS among them.
            temperature: 0 takes the likeliest token, above it they are drawn.
            top_k: draw among this many likeliest tokens; 0 among all.
            generator: where numbers are drawn from; the global one by default.

        Returns:
            For each prompt the ids after it without EOS, or None where no EOS came in time.

        Raises:
            InvalidInput: an empty prompt, a setting out of range, or no room in the context.
        """
        for name, value, least in (
            ("new_tokens", new_tokens, 1),
            ("temperature", temperature, 0),
            ("top_k", top_k, 0),
        ):
            if not value >= least:
                raise InvalidInput(f"{name} = {value}: expected at least {least}")
        lengths = [len(prompt) for prompt in prompts]
        if not all(lengths):
            raise InvalidInput("a prompt without tokens: expected at least one to go on from")
        if lengths and max(lengths) + new_tokens > self.context:
            raise InvalidInput(
                f"{max(lengths)} prompt tokens and {new_tokens} new ones: expected at most "
                f"{self.context} together, the context this decoder was made with"
            )
        draws = None
        if temperature > 0:
            where = generator.device if generator is not None else self.device
            draws = torch.rand(len(prompts), new_tokens, generator=generator, device=where)
        self.temperature.fill_(temperature)
        greedy = temperature == 0
        found: list[list[int] | None] = []
        with contextlib.ExitStack() as on_gpu:
            if self.device.type == "cuda":
                on_gpu.enter_context(torch.cuda.device(self.device))
                # Of the kernels that take a mask, the one that needs no plan per shape.
                kernels = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
                on_gpu.enter_context(sdpa_kernel(kernels))
            for first in range(0, len(prompts), self.batch_size):
                chunk = slice(first, first + self.batch_size)
                rows = None if draws is None else draws[chunk]
                found += self._continue(prompts[chunk], new_tokens, greedy, top_k, rows)
        return found

    # -- a batch, driven from the host -----------------------------------------------------------

    def _continue(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        greedy: bool,
        top_k: int,
        draws: Tensor | None,
    ) -> list[list[int] | None]:
        """Continue at most `batch_size` prompts; `draws` `(b, new_tokens)`."""
        rows, width = self._fit(len(prompts)), max(map(len, prompts))
        ids = torch.full((rows, width), self.eos)
        start = torch.full((rows,), width - 1)  # rows that only fill up hold one EOS
        for row, prompt in enumerate(prompts):
            start[row] = width - len(prompt)
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
        self.start[:rows] = start.to(self.device)
        self.done[:rows] = torch.arange(rows, device=self.device) >= len(prompts)
        if draws is not None:
            self.draws[: len(prompts), :new_tokens] = draws.to(self.device)
        self._prefill(ids[:, :-1].to(self.device))
        self.token[:rows] = ids[:, -1].to(self.device)
        self.column.fill_(width - 1)
        self.step.zero_()

        found: list[list[int] | None] = [None] * len(prompts)
        holds = [*range(len(prompts)), *[-1] * (rows - len(prompts))]  # row -> prompt
        for step in range(new_tokens):
            self._advance(rows, self._bucket(width + step), greedy, top_k)
            last = step + 1 == new_tokens
            if not last and (step + 1) % self.look_every:
                continue
            done = self.done[:rows].tolist()  # waits for the device
            live = [row for row in range(rows) if not done[row]]
            fewer = self._fit(len(live)) if live else 0
            if not last and fewer == rows:
                continue
            self._harvest(holds, done, step + 1, found)
            if last or not live:
                break
            spare = [row for row in range(rows) if done[row]]
            kept = (live + spare)[:fewer]
            self._move(kept, width + step, new_tokens)
            holds = [holds[row] if not done[row] else -1 for row in kept]
            rows = fewer
        return found

    def _fit(self, rows: int) -> int:
        """How many rows are computed when so many are wanted."""
        if not self.graphs:
            return rows
        # Few different numbers, so few graphs: the batch halved again and again, and 3/4 of those.
        whole, need = self.batch_size, max(rows, FEWEST)
        while whole // 2 >= need:
            whole //= 2
        return whole * 3 // 4 if whole * 3 // 4 >= need else whole

    def _bucket(self, columns: int) -> int:
        return min(-(-columns // BUCKET) * BUCKET, self.context)

    def _prefill(self, ids: Tensor) -> None:
        """Fill the cache with the prompts `(b, n)` but for their last token, some rows at a time"""
        rows, width = ids.shape
        if width == 0:
            return
        self.column.zero_()
        for first in range(0, rows, max(PREFILL // width, 1)):
            some = slice(first, min(first + max(PREFILL // width, 1), rows))
            self._forward(ids[some], some, self._bucket(width))

    def _harvest(self, holds: list[int], done: list[bool], steps: int, found: list) -> None:
        """Take what rows that are finished have produced."""
        finished = [row for row, prompt in enumerate(holds) if done[row] and prompt >= 0]
        if not finished:
            return
        where = torch.tensor(finished, device=self.device)
        for row, ids in zip(finished, self.produced[where, :steps].tolist(), strict=True):
            found[holds[row]] = ids[: ids.index(self.eos)]

    def _move(self, kept: list[int], columns: int, new_tokens: int) -> None:
        """Let the rows `kept` be the first ones; `columns` of the cache are in use."""
        where, n = torch.tensor(kept, device=self.device), len(kept)
        for state in (self.token, self.start, self.done):
            state[:n] = state[where]
        for table in (self.produced, self.draws):
            table[:n, :new_tokens] = table[where, :new_tokens]
        for layer in range(len(self.layers)):  # one at a time: a copy of all would need their room
            for cache in (self.keys, self.values):
                cache[layer, :n, :, :columns] = cache[layer, :, :, :columns][where]

    # -- a step, on the device -------------------------------------------------------------------

    def _advance(self, rows: int, columns: int, greedy: bool, top_k: int) -> None:
        """One token more for the first `rows` rows, reading `columns` of the cache."""
        if not self.graphs:
            self._step(rows, columns, greedy, top_k)
            return
        key = (rows, columns, greedy, top_k)
        if key not in self._captured:
            self._captured[key] = self._capture(*key)
        self._captured[key].replay()

    def _capture(self, rows: int, columns: int, greedy: bool, top_k: int) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph, with the state as it was before.

        The graphs share a pool of memory: they run one after the other, and all that outlives a
        step is in tensors allocated before.
        """
        state = (self.token, self.done, self.column, self.step, self.produced)
        before = [tensor.clone() for tensor in state]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Libraries set themselves up in a first run, which may not happen inside a capture.
            # The keys it writes stand where the same ones will be written.
            self._step(rows, columns, greedy, top_k)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            self._step(rows, columns, greedy, top_k)
        return graph

    def _step(self, rows: int, columns: int, greedy: bool, top_k: int) -> None:
        """Read the newest token of each row and choose the next; nothing here waits for the device.

        A row that is done goes on with EOS.
        """
        states = self._forward(self.token[:rows, None], slice(0, rows), columns)  # (b, 1, h)
        logits = self.head(
            normed(states[:, -1], self.final_norm.weight, self.heads.epsilon)
        )  # (b, v)
        chosen = logits.argmax(-1) if greedy else self._draw(logits, top_k)  # (b,)
        done = self.done[:rows]
        chosen = chosen.masked_fill(done, self.eos)
        done |= chosen == self.eos
        self.token[:rows] = chosen
        self.produced[:rows].index_copy_(1, self.step, chosen[:, None])
        self.column += 1
        self.step += 1

    def _draw(self, logits: Tensor, top_k: int) -> Tensor:
        """Sample `(b,)` from logits `(b, v)`: where the summed probability passes a row's draw."""
        ids = None
        if 0 < top_k < logits.shape[-1]:
            logits, ids = logits.topk(top_k)
        summed = (logits.float() / self.temperature).softmax(-1).cumsum(-1)  # (b, k)
        draws = self.draws[: len(logits)].index_select(1, self.step)  # (b, 1)
        # Up to rounding the sum is 1; scaled by what it is, no draw lies beyond it.
        chosen = (summed <= draws * summed[:, -1:]).sum(-1, keepdim=True)
        chosen = chosen.clamp(max=summed.shape[-1] - 1)
        return (chosen if ids is None else ids.gather(-1, chosen))[:, 0]

    def _forward(self, ids: Tensor, rows: slice, columns: int) -> Tensor:
        """States `(b, n, h)` after the layers for `ids` `(b, n)`, which follow what is cached.

        Their keys and values are written from column `self.column` on; attention reads the first
        `columns` columns.
        """
        n = ids.shape[1]
        group = self.heads.query // self.heads.shared
        start = self.start[rows, None]  # (b, 1)
        here = self.column + self.columns[:n]  # (n,)
        positions = (here - start).clamp(min=0)  # (b, n)
        cos, sin = self.cos[positions], self.sin[positions]  # (b, n, 1, d)
        there = self.columns[:columns]  # (t,)
        # Padding sees itself: a row of the softmax without any key would be NaN.
        allowed = (there >= start[..., None]) | (there == here[:, None])  # (b, n, t)
        allowed = allowed & (there <= here[:, None])
        bias = bias_of(allowed, self.cos.dtype)
        bias = bias.repeat_interleave(group, dim=1) if n > 1 else bias  # (b, n·g or 1, t)

        x = self.embed(ids)  # (b, n, h)
        for number, weights in enumerate(self.layers):
            query, key, value = turned_heads(x, cos, sin, weights, self.heads)
            keys, values = self.keys[number, rows], self.values[number, rows]  # (b, kv, t, d)
            keys.index_copy_(2, here, key)
            values.index_copy_(2, here, value)
            keys, values = keys[:, :, :columns], values[:, :, :columns]
            read = self._read(query, keys, values, bias[:, None])
            x = torch.add(*finish_layer(x, read, weights, self.heads))
        return x

    def _read(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """`(b, n, q d)`: attention in which heads that share keys are queries of one head.

        So that no key is copied and a single query is still a matrix (grouped-query attention,
        Ainslie et al., 2023, https://arxiv.org/abs/2305.13245).
        """
        b, n, q, d = query.shape
        kv = keys.shape[1]
        query = query.reshape(b, n, kv, q // kv, d).transpose(1, 2).reshape(b, kv, -1, d)
        read = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)
        return read.view(b, kv, n, q // kv, d).transpose(1, 2).reshape(b, n, q * d)
