"""The training loop: frozen backbone, LoRA in float32, AdamW, a cosine, a running average of the
weights, checkpoints.

One process, or one per GPU under `torchrun`: every process draws the same order of batches, takes
its share, and gradients are averaged. A batch is worth one step under noise, or a chain of steps on
the model's own drafts. All randomness hangs on (seed, step, process), and checkpoints fall between
batches, so a resumed run takes the very steps the uninterrupted one would have taken.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lad.corruption import corrupt
from lad.denoiser import Denoiser
from lad.errors import InvalidInput, NumericalError
from lad.training.checkpoint import CHECKPOINT, on_sigterm, read_checkpoint, write_checkpoint
from lad.training.config import TrainConfig, writing
from lad.training.objective import (
    BEFORE_DRAFTS,
    Batch,
    Manner,
    answer_logits,
    redraw,
    take,
    token_losses,
    validate,
    weigh,
)
from lad.training.pairs import Pair, batches, hold_out, pack

__all__ = ["train"]

SYNC_EVERY = 10  # steps between agreements of all processes on time and stopping


def train(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[dict], object] | None = None,
    held_out: Sequence[Pair] | None = None,
) -> list[dict]:
    """Train the adapter in place.

    Args:
        denoiser: unmerged; its adapter's weights are the start.
        pairs: training data; about one in fifty is held out unless `held_out` is given.
        config: settings of the run.
        out: folder for `training_log.jsonl`, `checkpoint.pt` and, at the end, the adapter.
        resume: go on from `out`'s checkpoint if there is one.
        on_row: called with every log row.

    Returns:
        The log: rows `{step, loss, accuracy, learning_rate, drafts, tokens, seconds}` and
        `{step, validation, seconds}`.

    Raises:
        InvalidInput: pairs that do not fit, or too few.
        NumericalError: the loss became NaN.
        DamagedFile: a checkpoint that cannot be read, or of another run.
        CacheError: `out` cannot be written.
    """
    config = config or TrainConfig()
    run = Run(denoiser, config, Path(out) if out is not None else None, on_row)
    train_pairs, held = (list(pairs), list(held_out)) if held_out is not None else hold_out(pairs)
    if config.context > denoiser.causal_lm.config.max_position_embeddings:
        raise InvalidInput(
            f"widths up to {config.context}: expected at most "
            f"{denoiser.causal_lm.config.max_position_embeddings}, the backbone's context"
        )
    run.data = pack(denoiser.backbone, train_pairs, config.context).to(denoiser.device)
    run.held = pack(denoiser.backbone, held, config.context).to(denoiser.device) if held else None
    if resume:
        run.load_checkpoint()
    with on_sigterm(run.stop), run.training_mode():
        run.loop()
    if run.finished and run.average is not None:
        for parameter, value in zip(run.parameters, run.average, strict=True):
            parameter.data.copy_(value)
    if run.out is not None and run.rank == 0:
        if run.finished:
            denoiser.config = replace(denoiser.config, context=config.context)
            denoiser.save(run.out / "adapter")
        else:
            run.save_checkpoint()
    return run.rows


class Run:
    """The state of one training run; `train` is its only user."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        out: Path | None,
        on_row: Callable[[dict], object] | None,
    ) -> None:
        self.denoiser, self.config, self.out, self.on_row = denoiser, config, out, on_row
        self.device = denoiser.device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        named = [(n, p) for n, p in denoiser.model.named_parameters() if "lora_" in n]
        self.names = [name for name, _ in named]
        self.parameters = [parameter.requires_grad_(True) for _, parameter in named]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.generator = torch.Generator(self.device)
        self.rows: list[dict] = []
        self.window: list[Tensor] = []  # (loss, accuracy) since the last log row
        self.average = [p.data.clone() for p in self.parameters] if config.ema else None
        self.batch, self.step, self.tokens, self.elapsed_before = 0, 0, 0, 0.0
        self.stopping = self.finished = False
        if self.out is not None and self.rank == 0:
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)

    # -- time --------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds spent on this run so far, earlier parts included."""
        return self.elapsed_before + time.monotonic() - self.started

    def progress(self) -> float:
        """Fraction of the run behind us, the same on every process between agreements."""
        by_steps = self.step / self.config.steps if self.config.steps else 0.0
        by_time = self.agreed_elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def agree(self) -> None:
        """Let all processes share the slowest one's clock and anyone's wish to stop."""
        state = torch.tensor([self.elapsed(), float(self.stopping)], dtype=torch.float64)
        if self.processes > 1:
            state = state.to(self.device)
            dist.all_reduce(state, op=dist.ReduceOp.MAX)
        self.agreed_elapsed, stopping = state.tolist()
        self.stopping = stopping > 0

    def stop(self) -> None:
        """Finish what the batch is worth, write a checkpoint, and return."""
        self.stopping = True

    # -- one step ----------------------------------------------------------------------------------

    def loop(self) -> None:
        """Steps until the end of the schedule, or until told to stop."""
        config = self.config
        self.started = time.monotonic()
        self.agree()
        last_checkpoint = self.elapsed()
        stream = batches(
            self.data.ends.tolist(),
            config.widths,
            config.batch_tokens,
            config.widen,
            config.seed,
            self.processes,
        )
        for width, rows in islice(stream, self.batch, None):
            share = len(rows) // self.processes
            mine = rows[self.rank * share : (self.rank + 1) * share]
            self.take_steps(take(self.data, mine, width), self.chain_length())
            self.batch += 1
            if self.finished or self.stopping:
                return
            since = self.elapsed() - last_checkpoint
            if self.out is not None and since > 60 * config.checkpoint_minutes:
                last_checkpoint = self.elapsed()
                if self.rank == 0:
                    self.save_checkpoint()

    def chain_length(self) -> int:
        """How many steps the next batch is worth: 0 for one step under noise, else drafts.

        Which it is must be the same on every process, or they would wait for each other.
        """
        config = self.config
        if self.progress() < config.draft_start:
            return 0
        # A share of steps, as a share of batches.
        noise_steps = (1 - config.draft_probability) * config.draft_length
        chains = config.draft_probability / (config.draft_probability + noise_steps)
        chance = random.Random(f"{config.seed}-{self.batch}-draft").random()
        return config.draft_length if chance < chains else 0

    def take_steps(self, batch: Batch, drafts: int) -> None:
        """The steps one batch is worth, with what is logged and validated on the way."""
        config = self.config
        inputs, manner = None, None
        for n in range(max(drafts, 1)):
            key = random.Random(f"{config.seed}-{self.step}-{self.rank}").getrandbits(62)
            self.generator.manual_seed(key)
            if inputs is None:
                noise = BEFORE_DRAFTS if drafts else config.corruption
                inputs = corrupt(
                    batch.tokens,
                    batch.answer,
                    self.denoiser.vocabulary_size,
                    self.denoiser.mask_token_id,
                    self.generator,
                    noise,
                )
                manner = Manner.draw(len(inputs), self.generator) if drafts else None
            inputs = self.take_step(batch, inputs, manner if n < drafts - 1 else None, n > 0)
            self.step += 1
            self.tokens += batch.tokens.numel() * self.processes
            if self.processes == 1 or self.step % SYNC_EVERY == 0:
                self.agree()
            self.finished = self.progress() >= 1
            if self.step % config.log_every == 0 or self.finished:
                self.log_step(drafts > 0)
            if self.held is not None and (self.step % config.validate_every == 0 or self.finished):
                self.log_validation()
            if self.finished:
                return

    def take_step(
        self, batch: Batch, inputs: Tensor, manner: Manner | None, drafts: bool
    ) -> Tensor | None:
        """One optimiser step; returns the inputs of the next step of a chain, if one follows.

        Args:
            manner: how its drafts are masked again; None where no step follows.
            drafts: True when the inputs are the denoiser's own drafts.
        """
        config, denoiser = self.config, self.denoiser
        say = weigh(
            batch,
            inputs,
            denoiser.mask_token_id,
            config.clean_share,
            config.eos_tail_share,
            config.reach,
            drafts,
            self.generator,
        )
        following = None
        with self.autocast():
            # A draft needs every position of the answer, a loss by itself only the chosen ones.
            where = say > 0 if manner is None else batch.answer
            logits = answer_logits(denoiser, inputs, batch.prompt_lengths, where)
            losses, right = token_losses(logits, batch.tokens[where])
            weights = say[where]
            total = weights.sum().clamp(min=1.0)
            loss = (losses * weights).sum() / total
            if manner is not None:
                following = redraw(denoiser, batch, inputs, logits, manner, self.generator)
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            # Early on the average follows closely: the first weights are worth nothing.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.data for p in self.parameters], 1 - decay)
        self.window.append(torch.stack([loss.detach(), (right * weights).sum() / total]))
        return following

    def learning_rate(self) -> float:
        """A linear rise, then half a cosine down to zero at the end of the run."""
        rise = min((self.step + 1) / max(self.config.warmup_steps, 1), 1.0)
        fall = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.config.learning_rate * rise * fall

    def average_gradients(self) -> None:
        """Mean over processes, in one message."""
        if self.processes == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in self.parameters])
        dist.all_reduce(flat)
        flat /= self.processes
        for parameter, part in zip(
            self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True
        ):
            parameter.grad.copy_(part.view_as(parameter))

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 matrix products on a GPU; a CPU computes in float32."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def averaged(self):
        """The running average in place of the weights, for a while."""
        if self.average is None:
            yield
            return
        own = [p.data.clone() for p in self.parameters]
        torch._foreach_copy_([p.data for p in self.parameters], self.average)
        try:
            yield
        finally:
            torch._foreach_copy_([p.data for p in self.parameters], own)

    @contextlib.contextmanager
    def training_mode(self):
        """Gradients for the adapter alone, compiled layers if wanted; eval mode afterwards."""
        if self.config.compile_layers:
            torch._dynamo.config.cache_size_limit = 64  # widths times kinds of pass
            for layer in self.denoiser.causal_lm.model.layers:
                layer.compile(dynamic=False)
        try:
            yield
        finally:
            self.denoiser.model.eval().requires_grad_(False)
            if self.config.compile_layers:
                # Back to plain calls: what comes after has other shapes, and each would compile.
                for layer in self.denoiser.causal_lm.model.layers:
                    layer._compiled_call_impl = None

    # -- log and checkpoints -----------------------------------------------------------------------

    def log_step(self, drafted: bool) -> None:
        loss, accuracy = torch.stack(self.window).mean(dim=0).tolist()
        self.window = []
        if not math.isfinite(loss):
            raise NumericalError(
                f"step {self.step}: the loss is {loss}, expected a finite number; "
                "lower learning_rate or gradient_clip"
            )
        self.log(
            {
                "step": self.step,
                "loss": round(loss, 5),
                "accuracy": round(accuracy, 5),
                "learning_rate": self.learning_rate(),
                "drafts": drafted,
                "tokens": self.tokens,
                "seconds": round(self.elapsed(), 2),
            }
        )

    def log_validation(self) -> None:
        """Every process computes it, so that none waits long; the first one writes it down."""
        with self.averaged(), self.autocast():
            scores = validate(
                self.denoiser, self.held, max(self.config.batch_tokens // self.config.context, 1)
            )
        self.log({"step": self.step, "validation": scores, "seconds": round(self.elapsed(), 2)})

    def log(self, row: dict) -> None:
        if self.rank != 0:
            return
        self.rows.append(row)
        if self.out is not None:
            with writing(self.out), open(self.out / "training_log.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.on_row is not None:
            self.on_row(row)

    def save_checkpoint(self) -> None:
        """Everything needed to go on."""
        write_checkpoint(
            self.out,
            {
                "config": self.config.to_dict(),
                "denoiser": self.denoiser.config.to_dict(),
                "batch": self.batch,
                "step": self.step,
                "tokens": self.tokens,
                "window": self.window,
                "elapsed": self.elapsed(),
                "rows": self.rows,
                "adapter": dict(zip(self.names, (p.data for p in self.parameters), strict=True)),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def load_checkpoint(self) -> None:
        """Go on from `out`; without a checkpoint there, start afresh."""
        if self.out is None or not (self.out / CHECKPOINT).exists():
            return
        settings = {"config": self.config.to_dict(), "denoiser": self.denoiser.config.to_dict()}
        state = read_checkpoint(self.out, settings, self.names, self.device)
        with torch.no_grad():
            for name, parameter in zip(self.names, self.parameters, strict=True):
                parameter.copy_(state["adapter"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.window = state["average"], state["window"]
        self.batch, self.step, self.tokens = state["batch"], state["step"], state["tokens"]
        self.elapsed_before, self.rows = state["elapsed"], state["rows"]
        if self.rank == 0:  # rows written after the checkpoint belong to steps taken again
            with writing(self.out), open(self.out / "training_log.jsonl", "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.rows)
