"""The training loop: a frozen backbone, LoRA in float32, AdamW, a cosine, a running average.

One process, or one per GPU under `torchrun` or `accelerate launch`: all draw the same order of
batches, each takes its parts of a batch, and gradients are averaged. The backbone is whole in each
process, or split (`shard`); the adapter, its optimiser and its average are whole everywhere, so a
checkpoint is small and any number of processes can read it. All randomness depends on
(seed, step, part), so a resumed run takes the very steps of an uninterrupted one.

Sources: LoRA (Hu et al., 2021); ZeRO (Rajbhandari et al., 2020); PyTorch FSDP (Zhao et al., 2023).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from lad.accel.merged_lora import merged_lora
from lad.diffusion.denoiser import Denoiser, DenoiserConfig, load_denoiser
from lad.models.registry import get_backbone, load_backbone
from lad.training.config import TrainConfig
from lad.training.data import PackedPairs, Pair, batches, hold_out, pack
from lad.training.loss import denoising_loss, take, validate
from lad.utils import DamagedFile, InvalidInput, NumericalError, disk_errors, one_line, write_whole

CHECKPOINT, LOG = "checkpoint.pt", "training_log.jsonl"
FORMAT = 2  # of the checkpoint
STOP_EVERY = 5  # steps between two questions whether any process was asked to stop


def train(
    denoiser: Denoiser,
    pairs: Sequence[Pair],
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_row: Callable[[dict], object] | None = None,
    held_out: Sequence[Pair] | None = None,
) -> list[dict]:
    """Train the adapter in place and return the log.

    Args:
        denoiser: unmerged; its adapter's weights are the start. With `config.shard` its backbone
            is left split.
        pairs: training data; about one in fifty is held out unless `held_out` is given.
        config: settings of the run.
        out: folder for `training_log.jsonl`, `checkpoint.pt` and, at the end, the adapter.
        resume: go on from `out`'s checkpoint if there is one.
        on_row: called with every log row, in every process.

    Returns:
        Rows `{step, loss, accuracy, learning_rate, tokens, seconds}` and
        `{step, validation, seconds}`.

    Raises:
        InvalidInput: pairs that do not fit, or too few; a GPU that is too small; a number of
            processes that cannot divide the batches of the run to resume; what cannot be sharded.
        NumericalError: the loss became NaN.
        DamagedFile: a checkpoint that cannot be read, or of another run.
        CacheError: `out` cannot be written.
    """
    config = config or TrainConfig()
    limit = denoiser.causal_lm.config.max_position_embeddings
    if config.context > limit:
        raise InvalidInput(
            f"widths up to {config.context}: expected at most {limit}, the backbone's context"
        )
    kept, held = (list(pairs), list(held_out)) if held_out is not None else hold_out(pairs)
    data = pack(denoiser.backbone, kept, config.context)
    validation = pack(denoiser.backbone, held, config.context) if held else None
    trainer = Trainer(denoiser, config, data, validation, out, on_row)
    if resume:
        trainer.load_checkpoint()
    trainer.run()
    return trainer.rows


class Trainer:
    """One training run; `train` is the function to call.

    Args:
        data, validation: pairs packed to `config.context`.
        out, on_row: as in `train`.
    """

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
                f"{denoiser.config.target!r}: expected target 'next', where a position is "
                "predicted by the one before it; set causal_lm_fraction to 0"
            )
        self.accelerator = Accelerator()  # of the processes that torchrun started, or of this one
        if config.shard:
            shard(denoiser, denoiser.device, self.accelerator)
        self.denoiser, self.config, self.on_row = denoiser, config, on_row
        self.out = Path(out) if out is not None else None
        self.device = denoiser.device
        self.data = data.to(self.device)
        self.validation = validation.to(self.device) if validation is not None else None
        self.parts = self.accelerator.num_processes * config.accumulate  # of every batch
        named = denoiser.model.named_parameters()
        self.parameters = nn.ParameterList(p for name, p in named if "lora_" in name)
        for parameter in self.parameters.requires_grad_(True):
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.scheduler = LambdaLR(self.optimizer, self._learning_rate_factor)
        self.average = AveragedModel(self.parameters, multi_avg_fn=self._move_average)
        self.average.update_parameters(self.parameters)  # the first time, it copies
        self.generator = torch.Generator(self.device)
        self.rows: list[dict] = []
        self.window: list[Tensor] = []  # (loss, accuracy) of every part since the last log row
        self.step = self.tokens = 0
        self.seconds_before = 0.0  # of the run, before it was resumed
        self.started = time.monotonic()

    def _learning_rate_factor(self, step: int) -> float:
        """A linear rise, times half a cosine that reaches 0 at the end of the run."""
        rise = min((step + 1) / max(self.config.warmup_steps, 1), 1.0)
        return rise * 0.5 * (1 + math.cos(math.pi * min(step / self.config.steps, 1.0)))

    def _move_average(self, average: Sequence[Tensor], weights: Sequence[Tensor], _) -> None:
        """Early on the average follows closely, because the first weights are worth nothing."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(average), list(weights), 1 - decay)

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step, or to a checkpoint when SIGTERM comes."""
        config = self.config
        ends, settings = self.data.ends.tolist(), (config.widen, config.seed, self.parts)
        stream = batches(ends, config.widths, config.batch_tokens, *settings)
        self._start_log()
        self.started = last_checkpoint = time.monotonic()
        with (
            on_sigterm(self.accelerator.set_trigger),
            computation(self.denoiser, config),
            memory_errors(self.denoiser, config),
        ):
            for width, indices in islice(stream, self.step, config.steps):
                self._take_step(width, indices)
                if self.step == config.steps:
                    break
                if self.step % STOP_EVERY == 0 and self.accelerator.check_trigger():
                    self.save_checkpoint()
                    return
                if time.monotonic() - last_checkpoint > 60 * config.checkpoint_minutes:
                    self.save_checkpoint()
                    last_checkpoint = time.monotonic()
            self._load_weights(self.average.parameters())
            self._save_adapter()  # before validation, which may fail
            if self.validation is not None:
                self._validate()

    def _take_step(self, width: int, indices: list[int]) -> None:
        """One optimiser step, and what is logged and validated after it."""
        config, processes = self.config, self.accelerator.num_processes
        size = len(indices) // self.parts
        mine = range(self.accelerator.process_index, self.parts, processes)
        for part in mine:
            batch = take(self.data, indices[part * size : (part + 1) * size], width)
            key = random.Random(f"{config.seed}-{self.step}-{part}").getrandbits(62)
            self.generator.manual_seed(key)
            with self._autocast():
                loss, accuracy = denoising_loss(self.denoiser, batch, config, self.generator)
            (loss / len(mine)).backward()
            self.window.append(torch.stack([loss.detach(), accuracy]))
            self.tokens += batch.tokens.numel() * processes
        if processes > 1:
            gradients = [p.grad for p in self.parameters]
            mean = self.accelerator.reduce(parameters_to_vector(gradients), "mean")
            vector_to_parameters(mean, gradients)
        clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.average.update_parameters(self.parameters)
        self.step += 1
        last = self.step == config.steps
        if last or self.step % config.log_every == 0:
            self._log_step()
        if self.validation is not None and not last and self.step % config.validate_every == 0:
            weights = [p.detach().clone() for p in self.parameters]
            self._load_weights(self.average.parameters())
            self._validate()
            self._load_weights(weights)

    def _autocast(self) -> torch.autocast:
        """bfloat16 matrix products on a GPU; a CPU computes in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _load_weights(self, weights: Iterable[Tensor]) -> None:
        torch._foreach_copy_([p.data for p in self.parameters], [w.detach() for w in weights])

    # -- log, adapter, checkpoint ------------------------------------------------------------------

    @property
    def _writes(self) -> bool:
        return self.out is not None and self.accelerator.is_main_process

    def _disk_errors(self) -> contextlib.AbstractContextManager:
        return disk_errors(self.out, "choose another --out or free space")

    def _start_log(self) -> None:
        """The log of this run so far: rows behind the checkpoint belong to steps taken again."""
        if self._writes:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            with self._disk_errors():
                self.out.mkdir(parents=True, exist_ok=True)
                write_whole(self.out / LOG, text.encode())

    def _log(self, **row) -> None:
        seconds = self.seconds_before + time.monotonic() - self.started
        row = {"step": self.step, **row, "seconds": round(seconds, 2)}
        self.rows.append(row)
        if self._writes:
            with self._disk_errors(), open(self.out / LOG, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.on_row is not None:
            self.on_row(row)

    def _log_step(self) -> None:
        loss, accuracy = torch.stack(self.window).mean(dim=0).tolist()
        self.window = []
        if not math.isfinite(loss):
            raise NumericalError(
                f"step {self.step}: the loss is {loss}, expected a finite number; "
                "lower learning_rate or gradient_clip"
            )
        self._log(
            loss=round(loss, 5),
            accuracy=round(accuracy, 5),
            learning_rate=self.scheduler.get_last_lr()[0],
            tokens=self.tokens,
        )

    def _validate(self) -> None:
        """Every process computes it, so that none waits long."""
        size = max(self.config.batch_tokens // self.config.context, 1)
        with self._autocast():
            self._log(validation=validate(self.denoiser, self.validation, size))

    def _save_adapter(self) -> None:
        if self._writes:
            self.denoiser.config = replace(self.denoiser.config, context=self.config.context)
            self.denoiser.save(self.out / "adapter")

    def _settings(self) -> dict:
        """What must be the same for a run to be resumed."""
        return {"training": self.config.outcome(), "denoiser": self.denoiser.config.to_dict()}

    def save_checkpoint(self) -> None:
        """Write everything needed to go on; the file appears whole or not at all.

        Not `Accelerator.save_state`: that writes the frozen backbone too, and reading it back sets
        the global random state.
        """
        if not self._writes:
            return
        state = {
            "format": FORMAT,
            "settings": self._settings(),
            "parts": self.parts,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds_before + time.monotonic() - self.started,
            "window": self.window,
            "rows": self.rows,
            "adapter": self.parameters.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        partial = self.out / f".{CHECKPOINT}.partial"
        with self._disk_errors():
            try:
                with open(partial, "wb") as file:
                    torch.save(state, file)
                os.replace(partial, self.out / CHECKPOINT)
            finally:
                partial.unlink(missing_ok=True)

    def load_checkpoint(self) -> None:
        """Go on from `out`'s checkpoint; without one, start afresh.

        Raises:
            DamagedFile: unreadable, of another version, or of a run with other settings.
            InvalidInput: a number of processes that cannot divide its batches.
        """
        path = self.out / CHECKPOINT if self.out is not None else None
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            version, settings = state.get("format"), state.get("settings")
        except Exception as error:  # torch.load answers damage with a dozen different errors
            raise DamagedFile(
                f"{path} is no readable checkpoint ({type(error).__name__}): "
                "delete it to start over"
            ) from error
        if version != FORMAT:
            raise DamagedFile(
                f"{path} is of another version ({version}): expected {FORMAT}; "
                "delete it to start over"
            )
        if settings != self._settings():
            raise DamagedFile(
                f"{path} belongs to a run with other settings: expected the same ones to resume; "
                "choose another --out, or delete it to start over"
            )
        self.parts, processes = state["parts"], self.accelerator.num_processes
        if self.parts % processes:
            fit = [str(n) for n in range(1, self.parts + 1) if self.parts % n == 0]
            raise InvalidInput(
                f"{processes} processes to resume a run whose batches have {self.parts} parts: "
                f"expected {', '.join(fit)} of them, so that each gets as many"
            )
        self.parameters.load_state_dict(state["adapter"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.tokens, self.window = state["step"], state["tokens"], state["window"]
        self.seconds_before, self.rows = state["seconds"], state["rows"]


# -- processes, memory ----------------------------------------------------------------------------


@contextlib.contextmanager
def on_sigterm(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` when this process is asked to end, for as long as the context lasts."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: stop())
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_shardable(bits: int | None, accelerator: Accelerator) -> None:
    """Raise InvalidInput for a single process or quantised weights; needs no weights yet."""
    if accelerator.num_processes < 2:
        raise InvalidInput(
            "shard = true with 1 process: expected at least 2, one a GPU, as "
            "`torchrun --nproc-per-node=2 -m lad train ...` starts them; or set shard: false"
        )
    if bits:
        raise InvalidInput(
            f"shard = true with {bits}-bit weights: expected weights of 16 or 32 bits; leave "
            f":{bits}bit away, or set shard: false"
        )


def load_for_training(
    model: str,
    adapter: str | Path | None,
    denoiser_config: DenoiserConfig,
    config: TrainConfig,
    device: str,
) -> Denoiser:
    """The denoiser on `device`, with a new adapter or the given one; split with `config.shard`.

    Raises:
        InvalidInput: see `check_shardable`; and what `load_denoiser` and `load_backbone` raise.
    """

    def load(device: str, dtype: torch.dtype | None = None) -> Denoiser:
        if adapter is not None:
            return load_denoiser(model, adapter, device, dtype, merge=False)
        backbone = load_backbone(model, device, dtype)
        return Denoiser.create(backbone, denoiser_config, config.seed)

    if not config.shard:
        return load(device)
    accelerator = Accelerator()
    check_shardable(get_backbone(model).bits, accelerator)
    mesh = DeviceMesh(torch.device(device).type, range(accelerator.num_processes))
    # Into the host's memory first, so that no GPU needs room for the whole backbone, and one
    # process after the other, so that the host needs it once.
    for process in range(accelerator.num_processes):
        if process == accelerator.process_index:
            denoiser = load("cpu", None if device == "cpu" else torch.bfloat16)
            shard(denoiser, torch.device(device), accelerator, mesh)
        accelerator.wait_for_everyone()
    return denoiser


def shard(
    denoiser: Denoiser,
    device: torch.device,
    accelerator: Accelerator,
    mesh: DeviceMesh | None = None,
) -> None:
    """Leave one shard of each decoder layer (and of an untied embedding) in this process.

    A layer's weights are gathered just before it computes, forward or backward, and dropped
    afterwards (FSDP2). The adapter and the head stay whole. Every process calls it, and from then
    on every process must take part in every forward pass. Not accelerate's plugin, which splits
    the adapter too, writes the frozen backbone into every checkpoint, and needs GPUs.

    Args:
        device: where this process computes; layers are moved there one by one.
        mesh: of all processes; with it, nothing here waits for another process.

    Raises:
        InvalidInput: see `check_shardable`.
    """
    check_shardable(denoiser.backbone.spec.bits, accelerator)
    model, head = denoiser.causal_lm.model, denoiser.causal_lm.lm_head
    if isinstance(model, FSDPModule):
        return
    whole = {p for n, p in denoiser.model.named_parameters() if "lora_" in n} | {head.weight}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    mesh = mesh or DeviceMesh(device.type, range(accelerator.num_processes))
    for module in (*model.layers, model):  # last the model, with what is left
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)


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
        yield


@contextlib.contextmanager
def memory_errors(denoiser: Denoiser, config: TrainConfig) -> Iterator[None]:
    """Turn a GPU's lack of memory into InvalidInput that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"a step of {config.batch_tokens:,} positions does not fit the memory of "
            f"{denoiser.device} ({one_line(error)[:120]}): halve batch_tokens and double "
            "accumulate; or set gradient_checkpointing: true, loss_chunk: 1024, fold_lora: false; "
            "or, with several GPUs, shard: true; or load the backbone in 4 bit "
            f"(--model {denoiser.backbone.spec.name}:4bit)"
        ) from error
