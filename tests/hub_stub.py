"""A stand-in for the Hugging Face hub on 127.0.0.1: the few endpoints that a download uses.

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
    """What the stand-in serves, and the requests that came."""

    def __init__(self, repo: str, files: dict[str, bytes]):
        self.repo, self.files = repo, files
        self.refuse: tuple[int, str] | None = None  # status and X-Error-Code of every answer
        self.requests: list[tuple[str, str]] = []  # method and path
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
        data = self.files.get(path.removeprefix(f"/{self.repo}/resolve/{COMMIT}/"))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"ETag": f'"{_git_hash(data)}"', "X-Repo-Commit": COMMIT}, data


def _git_hash(data: bytes) -> str:
    """What the hub uses as the ETag of a file kept in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(stub: HubStub):

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = stub.answer(self.command, self.path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        yield stub
        server.shutdown()
        thread.join()
