"""The training loop: a frozen backbone, LoRA in float32, AdamW, a cosine, a running average.

One process, or one per GPU under `torchrun`: all draw the same order of batches, each takes its
parts of a batch, and gradients are averaged. The adapter, its optimiser and its average are whole
in every process, so a checkpoint is small and any number of processes can read it. All randomness
depends on (seed, step, part), so a resumed run takes the very steps of an uninterrupted one.
Sources: LoRA (Hu et al., 2021); PyTorch FSDP (Zhao et al., 2023).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from lad import utils
from lad.accel.merged_lora import merged_lora
from lad.diffusion.adapter import load_denoiser, save_adapter, scratch_folder
from lad.diffusion.config import DenoiserConfig
from lad.diffusion.denoiser import Denoiser
from lad.models.registry import get_backbone, load_backbone
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs, Pair, batches, hold_out, pack
from lad.training.loss import denoising_loss, take, validate, with_likely_tokens
from lad.utils import InvalidInput, NumericalError, damaged_file, disk_errors

CHECKPOINT, LOG, ADAPTER = "checkpoint.pt", "training_log.jsonl", "adapter"
FORMAT = 5  # of the checkpoint
STATE = ("parts", "step", "tokens", "window", "log", "average")  # of a trainer
STOP_EVERY = 5  # steps between two checks whether a signal came to any process


def train(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[dict], object] | None = None,
    held_out: Sequence[Pair] | None = None,
) -> list[dict]:
    """Train the adapter in place and return the log: a row of the data, of losses, of validations.

    SIGINT and SIGTERM end a run with a checkpoint, then with KeyboardInterrupt or SystemExit.

    Args:
        denoiser: unmerged; its adapter's weights are the start.
        pairs: training data; about one in fifty is held out unless `held_out` is given.
        out: folder for `training_log.jsonl`, `checkpoint.pt` and, at the end, the adapter. The log
            of a run that left neither of these is replaced.
        resume: go on from `out`'s checkpoint if there is one.
        on_row: called with every log row, in every process.

    Raises:
        InvalidInput: no pairs that fit; another run's work in `out`, or a finished run to resume;
            a GPU that is too small; what cannot be sharded.
        NumericalError, DamagedFile, CacheError: of the loss, the checkpoint, or writing to `out`.
    """
    config = config or TrainConfig()
    limit = denoiser.causal_lm.config.max_position_embeddings
    if config.context > limit:
        raise InvalidInput(f"widths up to {config.context}: expected at most {limit} tokens")
    if out is not None:
        check_folder(Path(out), resume)
    sides = hold_out(pairs) if held_out is None else (pairs, held_out)
    data, held = (pack(denoiser.backbone, side, config.context, least=0) for side in sides)
    if held_out is None and not len(data):  # chance held out every pair that fits
        data, held = held, data
    if not len(data):
        raise InvalidInput(f"none of {len(pairs)} pairs fits a context of {config.context} tokens")
    trainer = Trainer(denoiser, config, data, held, out, on_row)
    if resume:
        trainer.load_checkpoint()
    trainer.run()
    return trainer.log


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder with another run's work, or with a finished run to `resume`."""
    remedy = f"choose another --out, or delete {out}"
    if (out / ADAPTER).exists():
        raise InvalidInput(f"{out} holds a finished run's adapter: {remedy}")
    if not resume and (out / CHECKPOINT).exists():
        raise InvalidInput(f"{out} holds an unfinished run: --resume goes on with it; or {remedy}")


class Trainer:
    """One training run of pairs packed to `config.context`; see `train`."""

    def __init__(
        self,
        denoiser: Denoiser,
        config: TrainConfig,
        data: PackedPairs,
        validation: PackedPairs | None = None,
        out: str | Path | None = None,
        on_row: Callable[[dict], object] | None = None,
    ) -> None:
        if config.causal_lm_fraction and denoiser.config.target != "next":
            raise InvalidInput(
                f"causal_lm_fraction = {config.causal_lm_fraction} with target "
                f"{denoiser.config.target!r}: expected target 'next', or causal_lm_fraction 0"
            )
        self.accelerator = Accelerator()  # of the processes that torchrun started, or of this one
        if config.shard:
            bits, device = denoiser.backbone.spec.bits, denoiser.device
            shard(denoiser, device, process_mesh(bits, device, self.accelerator))
        self.denoiser, self.config, self.on_row = denoiser, config, on_row
        self.out = Path(out) if out is not None else None
        self._partial = Path(out or "") / f".{CHECKPOINT}.partial"
        self.writes = out is not None and self.accelerator.is_main_process
        self.device = denoiser.device
        on_gpu = self.device.type == "cuda"
        # bfloat16 matrix products on a GPU; a CPU computes in float32.
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu)
        dropped = data.dropped + getattr(validation, "dropped", 0)
        self.counts = {"pairs": len(data), "held_out": len(validation or ()), "dropped": dropped}
        self.counts["sha256"] = data.digest
        self.data = data.to(self.device)
        self.validation = validation.to(self.device) if validation else None  # None when empty
        if config.soft_targets:
            with self.autocast:
                self.data = with_likely_tokens(denoiser, self.data, config.batch_tokens)
        self.parts = self.accelerator.num_processes * config.accumulate  # of every batch
        named = denoiser.model.named_parameters()
        self.parameters = [p.requires_grad_(True) for name, p in named if "lora_" in name]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16
        self.optimizer = torch.optim.AdamW(
            self.parameters, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=on_gpu
        )
        self.average = self._weights()
        self.generator = torch.Generator(self.device)
        self.log: list[dict] = []
        self.window: list[Tensor] = []  # (loss, accuracy) of every part since the last log row
        self.step = self.tokens = 0
        self.started = self.seconds = 0.0  # seconds of the run before it was resumed
        self.signal: signal.Signals | None = None  # the one that came to this process

    @property
    def learning_rate(self) -> float:
        """Of the next step: a linear rise, times half a cosine that reaches 0 after the last."""
        rise = min((self.step + 1) / max(self.config.warmup_steps, 1), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps))
        return self.config.learning_rate * rise * cosine

    def run(self) -> None:
        """Train to the last step, or to a checkpoint when SIGINT or SIGTERM comes."""
        config = self.config
        stream = batches(self.data.ends.tolist(), self.data.kinds.tolist(), config, self.parts)
        if self.writes:  # the log up to the checkpoint: the steps after it are taken again
            with disk_errors(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                self._partial.unlink(missing_ok=True)  # of a run that was killed
                shutil.rmtree(scratch_folder(self.out / ADAPTER), ignore_errors=True)
                text = "".join(json.dumps(row) + "\n" for row in self.log)
                utils.write_whole(self.out / LOG, text.encode())
        last_checkpoint = time.monotonic()
        self.started = last_checkpoint - self.seconds
        if not self.log:
            self._add_row(data=self.counts)
        with self._signals(), computation(self.denoiser, config):
            for width, indices in islice(stream, self.step, config.steps):
                # Saved first, because validation may fail; a resumed run begins with it.
                validating = self.validation and self.step and not self.step % config.validate_every
                minutes = (time.monotonic() - last_checkpoint) / 60
                if validating or minutes > config.checkpoint_minutes:
                    self.save_checkpoint()
                    last_checkpoint = time.monotonic()
                if validating:
                    weights = self._weights()
                    self._load_weights(self.average)
                    self._validate()
                    self._load_weights(weights)
                self._take_step(width, indices)
                if self.step == config.steps:
                    break
                if self.step % config.log_every == 0:
                    self._add_row(**self._loss_row())
                self._stop_if_asked()
            row = self._loss_row()  # NumericalError before what is no number is saved
            self._load_weights(self.average)
            if self.writes:  # before anything else, which may fail
                self.denoiser.config = replace(self.denoiser.config, context=config.context)
                save_adapter(self.denoiser, self.out / ADAPTER, training=self.counts)
            self._add_row(**row)
            if self.validation:
                self._validate()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM for `_stop_if_asked`; a second Ctrl-C acts at once."""

        def note(number: int, _: object) -> None:
            self.signal = signal.Signals(number)
            self.accelerator.set_trigger()
            # Launchers and schedulers send a signal more than once; a person means it.
            if number == signal.SIGINT and self.accelerator.num_processes == 1:
                signal.signal(number, before[number])
                os.write(2, b"stopping after this step; Ctrl-C again stops at once, unsaved\n")

        before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_if_asked(self) -> None:
        """Save and raise if a signal came, to any process: that is found at every few steps."""
        if self.accelerator.num_processes == 1:
            stopped = self.signal is not None
        else:
            stopped = self.step % STOP_EVERY == 0 and self.accelerator.check_trigger()
        if not stopped:
            return
        self.save_checkpoint()
        number = self.signal or signal.SIGTERM
        self._add_row(stopped=number.name)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _take_step(self, width: int, indices: list[int]) -> None:
        config, processes = self.config, self.accelerator.num_processes
        size = len(indices) // self.parts
        mine = range(self.accelerator.process_index, self.parts, processes)
        for part in mine:
            batch = take(self.data, indices[part * size : (part + 1) * size], width)
            key = random.Random(f"{config.seed}-{self.step}-{part}").getrandbits(62)
            self.generator.manual_seed(key)
            with self.autocast:
                loss, accuracy = denoising_loss(self.denoiser, batch, config, self.generator)
            (loss / len(mine)).backward()
            self.window.append(torch.stack([loss.detach(), accuracy]))
            self.tokens += batch.tokens.numel() * processes
        if processes > 1:
            gradients = [p.grad for p in self.parameters]
            mean = self.accelerator.reduce(parameters_to_vector(gradients), "mean")
            vector_to_parameters(mean, gradients)
        clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        # Early on the average follows closely, because the first weights are worth nothing.
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.data for p in self.parameters], 1 - decay)
        self.step += 1

    def _weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def _load_weights(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_([p.data for p in self.parameters], weights)

    def _add_row(self, **row) -> None:
        row = {"step": self.step, **row, "seconds": round(time.monotonic() - self.started, 2)}
        self.log.append(row)
        if self.writes:
            with disk_errors(self.out), open(self.out / LOG, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.on_row is not None:
            self.on_row(row)

    def _loss_row(self) -> dict:
        loss, accuracy = torch.stack(self.window).mean(dim=0).tolist()
        self.window = []
        if not math.isfinite(loss):
            raise NumericalError(
                f"step {self.step}: the loss is {loss}, expected a number; lower learning_rate"
            )
        scores = {"loss": round(loss, 5), "accuracy": round(accuracy, 5)}
        return scores | {"learning_rate": self.learning_rate, "tokens": self.tokens}

    def _validate(self) -> None:
        size = max(self.config.batch_tokens // self.config.context, 1)
        with self.autocast:
            self._add_row(validation=validate(self.denoiser, self.validation, size))

    def _origin(self) -> dict:
        """What a run that goes on must have in common with the one that wrote the checkpoint."""
        settings = self.config.outcome() | {"denoiser": self.denoiser.config.to_dict()}
        return {"format": FORMAT, "pairs": self.counts["sha256"], **settings}

    def save_checkpoint(self) -> None:
        """Write everything needed to go on, and a digest; the file appears whole or not at all."""
        # Not `Accelerator.save_state`, which has the backbone and the global random state in it.
        if not self.writes:
            return
        state = {
            "origin": self._origin(),
            "run": {name: getattr(self, name) for name in STATE},
            "seconds": time.monotonic() - self.started,
            "adapter": self._weights(),
            "optimizer": self.optimizer.state_dict(),
        }
        with disk_errors(self.out):
            with open(self._partial, "w+b") as file:
                torch.save(state, file)
                file.seek(0)  # the digest stands behind the archive, whose readers pass over it
                file.write(hashlib.file_digest(file, "sha256").digest())
            os.replace(self._partial, self.out / CHECKPOINT)

    def load_checkpoint(self) -> None:
        """Go on from `out`'s checkpoint; without one, start afresh."""
        if self.out is None or not (path := self.out / CHECKPOINT).exists():
            return
        with damaged_file(path, "copy it again, or delete it to start over"):
            data = path.read_bytes()
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                raise ValueError("its sha256 differs from the one written with it")
            state = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
        remedy = "resume with the same, choose another --out, or delete it to start over"
        before = TrainConfig().outcome() | state.get("origin", {})  # a setting may be younger
        utils.check_same(path, before, self._origin(), remedy)
        parts, processes = state["run"]["parts"], self.accelerator.num_processes
        if parts % processes:
            raise InvalidInput(
                f"{processes} processes to resume a run whose batches have {parts} parts: "
                f"expected a number that divides {parts}, so that each gets as many"
            )
        vars(self).update(state["run"])
        self.seconds = state["seconds"]
        self._load_weights(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])


@contextlib.contextmanager
def computation(denoiser: Denoiser, config: TrainConfig) -> Iterator[None]:
    """The model as `config` wants it computed in training; eval mode afterwards."""
    model, layers = denoiser.causal_lm, denoiser.causal_lm.model.layers
    plain = not denoiser.backbone.spec.bits and not isinstance(model.model, FSDPModule)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: denoiser.model.eval().requires_grad_(False))
        if config.gradient_checkpointing:
            # transformers 5.2x renames these; the old names still work, and warn.
            kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
            stack.callback(getattr(model, f"{kind}_checkpointing_disable"))
            model.train()  # the layers ask for it; nothing here drops out or keeps statistics
        if config.compile_layers:
            torch._dynamo.config.cache_size_limit = 64  # widths times kinds of pass
            for layer in layers:
                # Not the module, whose hooks gather and drop its weights when they are sharded.
                layer.forward = torch.compile(layer.forward, dynamic=False)
                stack.callback(delattr, layer, "forward")
        if config.fold_lora and plain:
            stack.enter_context(merged_lora(denoiser.model))
        elif denoiser.device.type == "cuda":
            # Autocast gives LoRA the layer's bfloat16 input; a float32 copy would only be kept.
            stack.enter_context(disable_input_dtype_casting(denoiser.model))
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise InvalidInput(
                f"{config.batch_tokens:,} positions do not fit the memory of {denoiser.device} "
                f"({utils.one_line(error)[:120]}): halve batch_tokens and double accumulate; or "
                "set gradient_checkpointing: true, loss_chunk: 1024, fold_lora: false, or on "
                f"several GPUs shard: true; or use --model {denoiser.backbone.spec.name}:4bit"
            ) from error


def process_mesh(bits: int | None, device: torch.device, accelerator: Accelerator) -> DeviceMesh:
    """All processes; raises InvalidInput for a single one or for weights of few `bits`."""
    processes = accelerator.num_processes
    if processes < 2 or bits:
        raise InvalidInput(
            f"shard = true with {processes} process(es) and {bits or 16}-bit weights: expected at "
            "least 2, as `torchrun --nproc-per-node=2 -m lad train ...` starts them, and weights "
            "that are not quantised; or set shard: false"
        )
    return DeviceMesh(device.type, range(processes))


def load_for_training(
    model: str, adapter: Path | None, kind: DenoiserConfig, config: TrainConfig, device: str
) -> Denoiser:
    """The denoiser on `device`, with a new adapter or the given one; split with `config.shard`."""

    def load(device: str, dtype: torch.dtype | None = None) -> Denoiser:
        if adapter is not None:
            return load_denoiser(model, adapter, device, dtype, merge=False)
        return Denoiser.create(load_backbone(model, device, dtype), kind, config.seed)

    if not config.shard:
        return load(device)
    accelerator = Accelerator()
    mesh = process_mesh(get_backbone(model).bits, torch.device(device), accelerator)
    # Into the host's memory first, so that no GPU needs room for the whole backbone, and one
    # process after the other, so that the host needs it once.
    for process in range(accelerator.num_processes):
        if process == accelerator.process_index:
            denoiser = load("cpu", None if device == "cpu" else torch.bfloat16)
            shard(denoiser, torch.device(device), mesh)
        accelerator.wait_for_everyone()
    return denoiser


def shard(denoiser: Denoiser, device: torch.device, mesh: DeviceMesh) -> None:
    """Leave one shard of each decoder layer (and of an untied embedding) in this process (FSDP2).

    Layers move to `device` one by one; adapter and head stay whole. accelerate's plugin splits the
    adapter too, writes the frozen backbone into checkpoints, and needs GPUs.
    """
    model, head = denoiser.causal_lm.model, denoiser.causal_lm.lm_head
    if isinstance(model, FSDPModule):
        return
    whole = {p for n, p in denoiser.model.named_parameters() if "lora_" in n} | {head.weight}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for module in (*model.layers, model):  # last the model, with what is left
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
