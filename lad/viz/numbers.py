"""Recorded numbers that turn out to be something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lad.utils import DamagedFile

__all__ = ["numbers_of"]


@contextmanager
def numbers_of(what: str, command: str) -> Iterator[None]:
    """What other numbers than expected raise in here becomes one line; also a decorator.

    Args:
        what: the numbers are of, such as "a study".
        command: that writes them.

    Raises:
        DamagedFile: in place of the errors of looking into them.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise DamagedFile(
            f"these are not the numbers of {what} ({error!r}): expected what `{command}` writes; "
            "run it again"
        ) from error
