"""The state of a run on disk: written whole or not at all, read back only into the same run.

A run that is told to end by SIGTERM gets to write one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from lad.training.config import writing
from lad.utils import DamagedFile

__all__ = ["CHECKPOINT", "on_sigterm", "read_checkpoint", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"
PARTS = ("adapter", "average", "optimizer", "batch", "step", "tokens", "window", "elapsed", "rows")


def write_checkpoint(folder: Path, state: dict) -> None:
    """Write `state`; the file appears whole or not at all.

    Raises:
        CacheError: the disk refuses.
    """
    with writing(folder):
        handle, partial = tempfile.mkstemp(suffix=".partial", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(state, file)
            os.replace(partial, folder / CHECKPOINT)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def read_checkpoint(
    folder: Path, settings: dict, names: Sequence[str], device: torch.device
) -> dict:
    """Read what `write_checkpoint` wrote.

    Args:
        settings: what must be as it was: "config" and "denoiser".
        names: the adapter's tensors.

    Raises:
        DamagedFile: unreadable, or of a run with other settings.
    """
    path = folder / CHECKPOINT
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        saved = {key: state[key] for key in settings}
        missing = [part for part in PARTS if part not in state]
        missing += [name for name in names if name not in state["adapter"]]
        if missing:
            raise KeyError(missing[0])
    except Exception as error:  # torch.load answers damage with a dozen different errors
        raise DamagedFile(
            f"{path} is no readable checkpoint ({type(error).__name__}): delete it to start over"
        ) from error
    if saved != settings:
        raise DamagedFile(
            f"{path} belongs to a run with other settings: expected the same ones to resume; "
            "choose another --out, or delete it to start over"
        )
    return state


@contextlib.contextmanager
def on_sigterm(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` when this process is asked to end, for as long as the context lasts."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: stop())
    except ValueError:  # not the main thread: nobody can signal us here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
