"""A model from the Hugging Face hub: found in the hub's own cache, or downloaded into it.

Hub models stay where the hub's client keeps them (`HF_HOME`), so that a copy which another program
has downloaded is used as it is, and neither is kept twice. What is on this disk is taken without
asking the network; the folder's name is the commit, which is what an adapter remembers.

Reference: https://huggingface.co/docs/huggingface_hub/guides/download
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from lad.utils import AssetUnavailable, LADError, cache_errors, one_line

__all__ = ["HubModel", "fetch_hub", "find_hub"]


@dataclass(frozen=True)
class HubModel:
    """A model repository on the Hugging Face hub: safetensors, configuration and tokenizer.

    Attributes:
        repo: owner/name.
        revision: branch, tag or commit.
        patterns: which files of the repository are wanted (weights of other formats are not).
    """

    repo: str
    revision: str = "main"
    patterns: tuple[str, ...] = (
        "config.json",
        "generation_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        "tokenizer*",
        "special_tokens_map.json",
        "chat_template*",
    )

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def find_hub(asset: HubModel, weights: bool = True) -> Path | None:
    """Folder of a complete copy in the hub's cache on this disk, or None; no network.

    Without `weights`, configuration and tokenizer are all that is looked for.
    """
    from huggingface_hub import constants

    store = Path(constants.HF_HUB_CACHE) / ("models--" + asset.repo.replace("/", "--"))
    try:
        commit = (store / "refs" / asset.revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = asset.revision  # a commit has no ref: it names the folder itself
    folder = store / "snapshots" / commit
    try:
        shards = {"model.safetensors"}
        index = folder / "model.safetensors.index.json"
        if index.exists():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        needed = {"config.json", "tokenizer.json", "tokenizer_config.json"}
        needed |= shards if weights else set()
        complete = all((folder / name).exists() for name in needed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if complete else None


def fetch_hub(asset: HubModel, progress: bool = True, weights: bool = True) -> Path:
    """Folder with a hub model's files, downloaded unless a complete copy is on this disk.

    The folder's name is the commit. An interrupted download goes on where it stopped. Without
    `weights` only the few small files beside them are fetched.

    Raises:
        AssetUnavailable: gated, no token, offline, or no such repository or revision.
        CacheError: the disk is full or cannot be written.
    """
    found = find_hub(asset, weights)
    if found:
        return found
    import huggingface_hub
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = not (progress and sys.stderr.isatty()) and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        with cache_errors(huggingface_hub.constants.HF_HUB_CACHE):
            huggingface_hub.snapshot_download(
                asset.repo,
                revision=asset.revision,
                allow_patterns=[p for p in asset.patterns if weights or not p.startswith("model")],
            )
    except LADError:
        raise
    except Exception as error:  # the hub's client raises its own errors, its transport's and more
        raise AssetUnavailable(_hub_reason(asset, error)) from error
    finally:
        if quiet:
            enable_progress_bars()
    found = find_hub(asset, weights)
    if found is None:
        raise AssetUnavailable(
            f"{asset} on the hub is incomplete: expected config.json, tokenizer.json, "
            "tokenizer_config.json and safetensors; check the repository and the revision"
        )
    return found


def _hub_reason(asset: HubModel, error: Exception) -> str:
    """One line on why the hub did not give `asset`, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{asset.repo}"
    root = error
    while root.__cause__ is not None:  # the client wraps some refusals in "not on this disk"
        root = root.__cause__
    status = getattr(getattr(root, "response", None), "status_code", None)
    log_in = "run `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        if status == 401:
            return (
                f"{asset.repo} is gated and no valid token was sent: accept its licence at {page}, "
                f"then {log_in}"
            )
        return (
            f"{asset.repo} is gated and your account has no access yet: accept its licence at "
            f"{page}, wait for approval, and try again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{asset.repo} has no revision {asset.revision!r}: see {page} for those it has"
    if status == 401:
        return f"the hub asks who you are before it gives {asset.repo} (401): {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no repository {asset.repo}, or hides it: check {page} and {log_in}"
    if constants.HF_HUB_OFFLINE:
        return (
            f"{asset} is not in the cache {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set: "
            "unset it once to download, or point HF_HOME at a cache that has it"
        )
    said = f"it answered {status}" if status else f"{type(root).__name__}: {one_line(root)}"
    return (
        f"{asset} is not in the cache {constants.HF_HUB_CACHE} and could not be had from "
        f"{constants.ENDPOINT} ({said}): check the network and try again; what has arrived is kept"
    )
