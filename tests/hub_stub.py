"""A stand-in for the Hugging Face hub on 127.0.0.1: the few endpoints that a download uses.

    GET  /api/models/OWNER/NAME/revision/REVISION      which commit a revision is, and its files
    GET  /api/models/OWNER/NAME/tree/COMMIT            names, sizes and hashes of the files
    HEAD, GET /OWNER/NAME/resolve/COMMIT/FILE          one file

Refusals carry the status and the `X-Error-Code` header that the hub documents. Point a process at
it with `HF_ENDPOINT`, which the hub's client reads when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStub:
    """What the stand-in serves and what it was asked.

    Attributes:
        url: its address, for `HF_ENDPOINT`.
        requests: `(method, path)` in order.
        refuse: None, or `(status, X-Error-Code)` to answer everything with.
    """

    def __init__(self, repo: str, files: dict[str, bytes]):
        self.repo = repo
        self.files = files
        self.refuse: tuple[int, str] | None = None
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for one request."""
        self.requests.append((method, path))
        path = path.split("?")[0]
        if self.refuse:
            status, code = self.refuse
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        api = f"/api/models/{self.repo}/"
        if path in (f"{api}revision/main", f"{api}revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            body = {"id": self.repo, "sha": COMMIT, "siblings": siblings}
            return 200, {}, json.dumps(body).encode()
        if path.startswith(f"{api}revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path == f"{api}tree/{COMMIT}":
            body = [
                {"type": "file", "path": name, "size": len(data), "oid": _git_hash(data)}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(body).encode()
        prefix = f"/{self.repo}/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and name in self.files:
            data = self.files[name]
            return 200, {"ETag": f'"{_git_hash(data)}"', "X-Repo-Commit": COMMIT}, data
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"


def _git_hash(data: bytes) -> str:
    """What the hub uses as the ETag of a file kept in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(stub: HubStub):
    """Run the stand-in for the length of the block, on a port of the system's choice."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = stub.answer(self.command, self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
