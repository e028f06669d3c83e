"""The training loop: frozen backbone, LoRA in float32, AdamW, a cosine, checkpoints.

One process, or one per GPU under `torchrun`: every process draws the same order of batches, takes
its share, and gradients are averaged. All randomness hangs on (seed, step, process), so a resumed
run takes the very steps the uninterrupted one would have taken.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import tempfile
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
from lad.errors import DamagedFile, InvalidInput, NumericalError
from lad.training.config import TrainConfig, writing
from lad.training.objective import (
    answer_logits,
    draft_inputs,
    loss_and_accuracy,
    take,
    validate,
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
    with run.attentive_to_sigterm(), run.training_mode():
        run.loop()
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
        self.step, self.tokens, self.elapsed_before = 0, 0, 0.0
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
        window: list[Tensor] = []
        for width, rows in islice(stream, self.step, None):
            share = len(rows) // self.processes
            mine = rows[self.rank * share : (self.rank + 1) * share]
            measured, drafted = self.take_step(width, mine)
            window.append(measured)
            self.step += 1
            self.tokens += len(rows) * width
            if self.processes == 1 or self.step % SYNC_EVERY == 0:
                self.agree()
            self.finished = self.progress() >= 1
            if self.step % config.log_every == 0 or self.finished:
                self.log_step(torch.stack(window), drafted)
                window = []
            if self.held is not None and (self.step % config.validate_every == 0 or self.finished):
                self.log_validation()
            if self.finished or self.stopping:
                return
            since = self.elapsed() - last_checkpoint
            if self.out is not None and since > 60 * config.checkpoint_minutes:
                last_checkpoint = self.elapsed()
                if self.rank == 0:
                    self.save_checkpoint()

    def take_step(self, width: int, rows: list[int]) -> tuple[Tensor, bool]:
        """One optimiser step; returns (loss, accuracy) still on the device, and if on drafts."""
        config, denoiser = self.config, self.denoiser
        # Which kind of step it is must be the same everywhere, or processes wait for each other.
        chance = random.Random(f"{config.seed}-{self.step}-draft").random()
        drafted = self.progress() >= config.draft_start and chance < config.draft_probability
        key = random.Random(f"{config.seed}-{self.step}-{self.rank}").getrandbits(62)
        self.generator.manual_seed(key)
        batch = take(self.data, rows, width)
        with self.autocast():
            if drafted:
                noisy = draft_inputs(denoiser, batch, self.generator)
            else:
                noisy = corrupt(
                    batch.tokens,
                    batch.answer,
                    denoiser.vocabulary_size,
                    denoiser.mask_token_id,
                    self.generator,
                    config.corruption,
                )
            thin = torch.rand(batch.tail.shape, generator=self.generator, device=self.device)
            chosen = batch.answer & (~batch.tail | (thin < config.eos_tail_share))
            logits = answer_logits(denoiser, noisy, batch.prompt_lengths, chosen)
            loss, accuracy = loss_and_accuracy(logits, batch.tokens[chosen])
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.gradient_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach(), accuracy]), drafted

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

    # -- log and checkpoints -----------------------------------------------------------------------

    def log_step(self, window: Tensor, drafted: bool) -> None:
        loss, accuracy = window.mean(dim=0).tolist()
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
        with self.autocast():
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
        """Everything needed to go on; the file appears whole or not at all."""
        state = {
            "config": self.config.to_dict(),
            "denoiser": self.denoiser.config.to_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed(),
            "rows": self.rows,
            "adapter": dict(zip(self.names, (p.data for p in self.parameters), strict=True)),
            "optimizer": self.optimizer.state_dict(),
        }
        with writing(self.out):
            handle, partial = tempfile.mkstemp(suffix=".partial", dir=self.out)
            try:
                with os.fdopen(handle, "wb") as file:
                    torch.save(state, file)
                os.replace(partial, self.out / "checkpoint.pt")
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise

    def load_checkpoint(self) -> None:
        """Go on from `out`; without a checkpoint there, start afresh."""
        path = self.out / "checkpoint.pt" if self.out is not None else None
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            saved = state["config"], state["denoiser"]
            adapter = [state["adapter"][name] for name in self.names]
        except Exception as error:  # torch.load answers damage with a dozen different errors
            raise DamagedFile(
                f"{path} is no readable checkpoint ({type(error).__name__}): "
                "delete it to start over"
            ) from error
        if saved != (self.config.to_dict(), self.denoiser.config.to_dict()):
            raise DamagedFile(
                f"{path} belongs to a run with other settings: expected the same ones to resume; "
                "choose another --out, or delete it to start over"
            )
        with torch.no_grad():
            for parameter, value in zip(self.parameters, adapter, strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.elapsed_before, self.rows = state["elapsed"], state["rows"]
        if self.rank == 0:  # rows written after the checkpoint belong to steps taken again
            with writing(self.out), open(self.out / "training_log.jsonl", "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in self.rows)

    @contextlib.contextmanager
    def attentive_to_sigterm(self):
        """On SIGTERM finish the step, write a checkpoint, and return."""

        def stop(*_: object) -> None:
            self.stopping = True

        try:
            before = signal.signal(signal.SIGTERM, stop)
        except ValueError:  # not the main thread: nobody can signal us here
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
