"""What a run tells on its way, and how far it has come, by steps and by the clock.

Rows are kept and told by the first process alone. The clock is the same for all of them, because
the learning rate hangs on it, and so is the wish to stop: a process that stopped alone would leave
the others waiting for its gradients.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lad.training.config import TrainConfig, writing
from lad.training.parallel import agree, here

__all__ = ["Clock", "Journal"]

SYNC_EVERY = 10  # steps between agreements at most, each of which waits for the device
SYNC_SECONDS = 2.0  # and about so long at most: who asks a run to stop grants it half a minute


class Journal:
    """The rows of `training_log.jsonl`.

    Args:
        folder: that holds it, made if it is not there; None for no file.
        on_row: called with every new row.

    Raises:
        CacheError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, on_row: Callable[[dict], object] | None) -> None:
        self.rows: list[dict] = []
        self.folder, self.on_row = folder, on_row
        self.first = here()[0] == 0
        if folder is not None and self.first:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict) -> None:
        """Keep a row, write it down, and tell it."""
        if not self.first:
            return
        self.rows.append(row)
        self._write([row], "a")
        if self.on_row is not None:
            self.on_row(row)

    def restore(self, rows: list[dict]) -> None:
        """Go on behind these: rows written after a checkpoint belong to steps taken again."""
        self.rows = rows
        if self.first:
            self._write(rows, "w")

    def _write(self, rows: list[dict], mode: str) -> None:
        if self.folder is not None:
            with writing(self.folder), open(self.folder / "training_log.jsonl", mode) as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


class Clock:
    """Wall time of a run, earlier parts included, and whether it is asked to stop.

    Args:
        device: that the processes talk through.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.processes = here()[1]
        self.before = 0.0  # seconds, of earlier parts
        self.wish = self.agreed_wish = False
        self.agreed = 0.0  # seconds, of the slowest process
        self.next = 0  # step of the next agreement

    def start(self, step: int) -> None:
        """Begin, or go on, at a step."""
        self.started, self.step = time.monotonic(), step
        self.agree(step)

    def elapsed(self) -> float:
        """Seconds spent on this run so far."""
        return self.before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Fraction of the run behind us, the same on every process between agreements."""
        by_steps = step / self.config.steps if self.config.steps else 0.0
        by_time = self.agreed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def stop(self) -> None:
        """Ask all processes to finish what the batch is worth, write a checkpoint, and return."""
        self.wish = True

    @property
    def stopping(self) -> bool:
        """Have all processes been asked to stop?"""
        return self.agreed_wish or (self.wish and self.processes == 1)

    def tick(self, step: int) -> None:
        """Called after every step; agrees now and then."""
        if self.processes == 1 or step >= self.next:
            self.agree(step)

    def agree(self, step: int) -> None:
        """Let all processes share the slowest one's clock and anyone's wish to stop."""
        last = self.agreed
        self.agreed, wish = agree([self.elapsed(), float(self.wish)], self.device)
        self.agreed_wish = wish > 0
        # From what was agreed on, so that all meet again at the same step.
        taken, seconds = step - self.step, max(self.agreed - last, 1e-3)
        due = min(max(int(SYNC_SECONDS * taken / seconds), 1), SYNC_EVERY)
        self.step, self.next = step, step + due
