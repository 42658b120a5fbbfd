"""A Hugging Face Hub of one process: repositories in memory, behind the addresses that `huggingface_hub` asks."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.helpers.web import WebServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(WebServer):
    """Serves on a free port of this machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        """Repository -> file -> content."""
        self.asked: list[str] = []
        """Paths of the requests."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        if self.path.startswith("/api/repos/create"):
            self._create(json.loads(body))
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._json({"files": files})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._json({"errors": [], "warnings": []})

    def do_HEAD(self) -> None:  # noqa: N802
        self._file(body=False)

    def do_GET(self) -> None:  # noqa: N802
        if self.path.startswith("/api/"):
            self.server.asked.append(self.path)
            self._json({"sha": COMMIT, "siblings": [], "id": "x/y", "name": "someone", "type": "user", "orgs": []})
        else:
            self._file(body=True)

    def _create(self, repo: dict[str, Any]) -> None:
        name = f"{repo['organization']}/{repo['name']}" if repo.get("organization") else repo["name"]
        self.server.repos.setdefault(name, {})
        self._json({"url": f"{self.server.address}/{name}"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in lines:
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._json({"commitOid": COMMIT, "commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}"})

    def _file(self, body: bool) -> None:
        self.server.asked.append(self.path)
        name, _, rest = self.path.strip("/").partition("/resolve/")
        content = self.server.repos.get(name, {}).get(rest.partition("?")[0].partition("/")[2])
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if name in self.server.repos else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def serve() -> Iterator[Hub]:
    """Yield a hub that answers in a thread of its own."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
