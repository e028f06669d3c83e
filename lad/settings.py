"""The two settings a notebook, a test or the report shares: the profile and the figures folder.

    LAD_PROFILE   `full` (default) or `fast`. Same notebooks, same code; `fast` takes fewer steps,
                  iterations and samples, so that two CPU cores get through in minutes.
    LAD_FIGURES   where figures are written; default `figures/` of the checkout that holds this
                  package, else `./figures`. A place to write to: nothing is read from it.

The cache of weights has a variable of its own, `LAD_CACHE`: see `lad.assets`.
"""

from __future__ import annotations

import os
from pathlib import Path

from lad.errors import InvalidInput

__all__ = ["PROFILES", "figures_folder", "profile"]

PROFILES = ("fast", "full")


def profile() -> str:
    """The profile in force, `"fast"` or `"full"`.

    Raises:
        InvalidInput: `LAD_PROFILE` is set to anything else.
    """
    name = os.environ.get("LAD_PROFILE") or "full"
    if name not in PROFILES:
        raise InvalidInput(f"LAD_PROFILE is {name!r}: set it to 'fast' or 'full', or unset it")
    return name


def figures_folder() -> Path:
    """The folder figures are written to, as an absolute path; created if need be.

    It never depends on the working folder when the package is a checkout, because a notebook's
    kernel runs in `notebooks/`.

    Raises:
        InvalidInput: the folder cannot be created.
    """
    chosen = os.environ.get("LAD_FIGURES")
    checkout = Path(__file__).resolve().parent.parent
    if chosen:
        folder = Path(chosen).expanduser().absolute()
    elif (checkout / "pyproject.toml").is_file() and (checkout / "notebooks").is_dir():
        folder = checkout / "figures"
    else:
        folder = Path.cwd() / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"cannot create the figures folder {folder} ({error.strerror}): "
            "set LAD_FIGURES to a folder you can write to"
        ) from error
    return folder
