"""The few errors this package raises on purpose.

Each message is one line that says what was got, what was expected and what to do. The command
line prints that line and exits with status 2; a notebook or widget shows it as it is.
"""

__all__ = [
    "AdapterMismatch",
    "AssetUnavailable",
    "CacheError",
    "DamagedFile",
    "InvalidInput",
    "LADError",
    "NumericalError",
]


class LADError(Exception):
    """Base class of every error raised on purpose."""


class InvalidInput(LADError, ValueError):
    """An argument is outside its range, unknown or empty."""


class AssetUnavailable(LADError):
    """Weights or data cannot be had: no network, no permission, or no such revision."""


class DamagedFile(LADError):
    """A file is there, but truncated, malformed or not the one its digest promises."""


class CacheError(LADError):
    """The cache cannot be written: read-only, or the disk is full."""


class AdapterMismatch(LADError):
    """An adapter is sound but was made for another backbone or another kind of denoiser."""


class NumericalError(LADError, ArithmeticError):
    """The model produced NaN or infinity."""
