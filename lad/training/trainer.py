"""The training loop: frozen backbone, LoRA in float32, AdamW, a cosine, a running average of the
weights, checkpoints.

One process, or one per GPU under `torchrun`: every process draws the same order of batches, takes
its shares, and gradients are averaged; the backbone is whole in each, or sharded
(lad/training/sharding.py). A batch is worth one step under noise, or a chain of steps on the
model's own drafts. All randomness hangs on (seed, step, share), and checkpoints fall between
batches, so a resumed run takes the very steps the uninterrupted one would have taken, also on
fewer or more GPUs: the batch keeps its shares, and each process takes as many as there are to take.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lad.diffusion.corruption import corrupt
from lad.diffusion.denoiser import Denoiser
from lad.training.checkpoint import CHECKPOINT, on_sigterm, read_checkpoint, write_checkpoint
from lad.training.config import TrainConfig
from lad.training.data import Pair, batches, hold_out, pack
from lad.training.journal import Clock, Journal
from lad.training.loss import (
    BEFORE_DRAFTS,
    Batch,
    Manner,
    anchor,
    answer_logits,
    redraw,
    take,
    token_losses,
    validate,
    weigh,
)
from lad.training.memory import chunked_head, enough_memory, training_mode
from lad.training.parallel import check_shares, here
from lad.training.sharding import shard
from lad.training.weights import AdapterWeights
from lad.utils import InvalidInput, NumericalError

__all__ = ["train"]


def train(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[dict], object] | None = None,
    held_out: Sequence[Pair] | None = None,
) -> list[dict]:
    """Train the adapter in place; with `config.shard` the backbone is left in shards.

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
        InvalidInput: pairs that do not fit, or too few; a GPU that is too small; a number of
            processes that cannot share the batches of the run to resume; what cannot be sharded.
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
    with (
        on_sigterm(run.clock.stop),
        training_mode(denoiser, config),
        enough_memory(denoiser, config),
    ):
        run.loop()
    if run.finished:
        run.weights.keep_average()
    if run.out is not None and run.rank == 0:
        if run.finished:
            denoiser.config = replace(denoiser.config, context=config.context)
            denoiser.save(run.out / "adapter")
        else:
            run.save_checkpoint()
    return run.journal.rows


class Run:
    """The state of one training run; `train` is its only user."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        out: Path | None,
        on_row: Callable[[dict], object] | None,
    ) -> None:
        if config.anchor and denoiser.config.target != "next":
            raise InvalidInput(
                f"anchor = {config.anchor} with target {denoiser.config.target!r}: expected target "
                "'next', where a position is predicted by the one before it; set anchor to 0"
            )
        if config.shard:
            shard(denoiser)
        self.denoiser, self.config, self.out = denoiser, config, out
        self.device = denoiser.device
        self.rank, self.processes = here()
        self.shares = self.processes * config.accumulate  # parts that every batch is cut into
        self.weights = AdapterWeights(denoiser, config)
        self.generator = torch.Generator(self.device)
        self.window: list[Tensor] = []  # (loss, accuracy) of every share since the last log row
        self.batch, self.step, self.tokens = 0, 0, 0
        self.finished = False
        self.clock, self.journal = Clock(config, self.device), Journal(out, on_row)

    # -- one step ----------------------------------------------------------------------------------

    def loop(self) -> None:
        """Steps until the end of the schedule, or until told to stop."""
        config = self.config
        self.clock.start(self.step)
        last_checkpoint = self.clock.elapsed()
        stream = batches(
            self.data.ends.tolist(),
            config.widths,
            config.batch_tokens,
            config.widen,
            config.seed,
            self.shares,
        )
        for width, rows in islice(stream, self.batch, None):
            size = len(rows) // self.shares
            mine = {
                share: take(self.data, rows[share * size : (share + 1) * size], width)
                for share in range(self.rank, self.shares, self.processes)
            }
            self.take_steps(mine, self.chain_length())
            self.batch += 1
            if self.finished or self.clock.stopping:
                return
            since = self.clock.elapsed() - last_checkpoint
            if self.out is not None and since > 60 * config.checkpoint_minutes:
                last_checkpoint = self.clock.elapsed()
                if self.rank == 0:
                    self.save_checkpoint()

    def chain_length(self) -> int:
        """How many steps the next batch is worth: 0 for one step under noise, else drafts.

        Which it is must be the same on every process, or they would wait for each other.
        """
        config = self.config
        if self.clock.progress(self.step) < config.draft_start:
            return 0
        # A share of steps, as a share of batches.
        noise_steps = (1 - config.draft_probability) * config.draft_length
        chains = config.draft_probability / (config.draft_probability + noise_steps)
        chance = random.Random(f"{config.seed}-{self.batch}-draft").random()
        return config.draft_length if chance < chains else 0

    def take_steps(self, batches: dict[int, Batch], drafts: int) -> None:
        """The steps one batch is worth, with what is logged and validated on the way.

        Args:
            batches: this process's shares of it, by their numbers.
            drafts: how many steps on own drafts; 0 for one step under noise.
        """
        config = self.config
        inputs = dict.fromkeys(batches)
        manners: dict[int, Manner] = {}
        for n in range(max(drafts, 1)):
            for share, batch in batches.items():
                key = random.Random(f"{config.seed}-{self.step}-{share}").getrandbits(62)
                self.generator.manual_seed(key)
                reading_from = None
                if n == 0:
                    inputs[share] = self.damage(batch, drafts > 0)
                    if drafts:
                        manners[share] = Manner.draw(len(batch.tokens), self.generator)
                    elif config.anchor:
                        inputs[share], reading_from = anchor(
                            batch, inputs[share], config.anchor, self.generator
                        )
                following = manners.get(share) if n < drafts - 1 else None
                inputs[share] = self.learn(
                    batch, inputs[share], following, n > 0, reading_from, len(batches)
                )
                self.tokens += batch.tokens.numel() * self.processes
            self.weights.move(self.learning_rate(), self.step)
            self.step += 1
            self.clock.tick(self.step)
            self.finished = self.clock.progress(self.step) >= 1
            if self.step % config.log_every == 0 or self.finished:
                self.log_step(drafts > 0)
            if self.held is not None and (self.step % config.validate_every == 0 or self.finished):
                self.log_validation()
            if self.finished:
                return

    def damage(self, batch: Batch, first_draft: bool) -> Tensor:
        """`(b, t)` the tokens under noise, or what a chain of drafts begins with."""
        return corrupt(
            batch.tokens,
            batch.answer,
            self.denoiser.vocabulary_size,
            self.denoiser.mask_token_id,
            self.generator,
            BEFORE_DRAFTS if first_draft else self.config.corruption,
        )

    def learn(
        self,
        batch: Batch,
        inputs: Tensor,
        manner: Manner | None,
        drafts: bool,
        reading_from: Tensor | None,
        shares: int,
    ) -> Tensor | None:
        """Gradients of one share; returns its inputs of the next step of a chain, if one follows.

        Args:
            manner: how its drafts are masked again; None where no step follows.
            drafts: True when the inputs are the denoiser's own drafts.
            reading_from: `(b,)` int64, from `anchor`.
            shares: how many this process averages over.
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
            reading_from,
        )
        following = None
        # A draft needs every position of the answer, a loss by itself only the chosen ones.
        where = say > 0 if manner is None else batch.answer
        weights, targets = say[where], batch.tokens[where]
        total = weights.sum().clamp(min=1.0)
        asked = (denoiser, inputs, batch.prompt_lengths, where, reading_from)
        with self.autocast():
            if config.loss_chunk and manner is None:
                with chunked_head(denoiser, targets, weights, config.loss_chunk):
                    loss, right = answer_logits(*asked)
            else:
                logits = answer_logits(*asked)
                losses, right = token_losses(logits, targets)
                loss = (losses * weights).sum()
                if manner is not None:
                    following = redraw(denoiser, batch, inputs, logits, manner, self.generator)
            loss = loss / total
        (loss / shares).backward()
        self.window.append(torch.stack([loss.detach(), (right * weights).sum() / total]))
        return following

    def learning_rate(self) -> float:
        """A linear rise, then half a cosine down to zero at the end of the run."""
        rise = min((self.step + 1) / max(self.config.warmup_steps, 1), 1.0)
        fall = 0.5 * (1 + math.cos(math.pi * self.clock.progress(self.step)))
        return self.config.learning_rate * rise * fall

    def autocast(self) -> contextlib.AbstractContextManager:
        """bfloat16 matrix products on a GPU; a CPU computes in float32."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return contextlib.nullcontext()

    # -- log and checkpoints -----------------------------------------------------------------------

    def log_step(self, drafted: bool) -> None:
        loss, accuracy = torch.stack(self.window).mean(dim=0).tolist()
        self.window = []
        if not math.isfinite(loss):
            raise NumericalError(
                f"step {self.step}: the loss is {loss}, expected a finite number; "
                "lower learning_rate or gradient_clip"
            )
        self.journal.add(
            {
                "step": self.step,
                "loss": round(loss, 5),
                "accuracy": round(accuracy, 5),
                "learning_rate": self.learning_rate(),
                "drafts": drafted,
                "tokens": self.tokens,
                "seconds": round(self.clock.elapsed(), 2),
            }
        )

    def log_validation(self) -> None:
        """Every process computes it, so that none waits long; the first one writes it down."""
        with self.weights.averaged(), self.autocast():
            scores = validate(
                self.denoiser, self.held, max(self.config.batch_tokens // self.config.context, 1)
            )
        seconds = round(self.clock.elapsed(), 2)
        self.journal.add({"step": self.step, "validation": scores, "seconds": seconds})

    def save_checkpoint(self) -> None:
        """Everything needed to go on."""
        write_checkpoint(
            self.out,
            {
                "config": self.config.outcome(),
                "shares": self.shares,
                "denoiser": self.denoiser.config.to_dict(),
                "batch": self.batch,
                "step": self.step,
                "tokens": self.tokens,
                "window": self.window,
                "elapsed": self.clock.elapsed(),
                "rows": self.journal.rows,
                **self.weights.state(),
            },
        )

    def load_checkpoint(self) -> None:
        """Go on from `out`; without a checkpoint there, start afresh."""
        if self.out is None or not (self.out / CHECKPOINT).exists():
            return
        settings = {"config": self.config.outcome(), "denoiser": self.denoiser.config.to_dict()}
        state = read_checkpoint(self.out, settings, self.weights.names, self.device)
        self.shares = state.get("shares", self.shares)
        check_shares(self.processes, self.shares)
        self.weights.restore(state)
        self.window, self.clock.before = state["window"], state["elapsed"]
        self.batch, self.step, self.tokens = state["batch"], state["step"], state["tokens"]
        self.journal.restore(state["rows"])
