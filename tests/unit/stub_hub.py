"""A Hugging Face Hub of one process: repositories in memory, behind the addresses that `huggingface_hub` asks."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve():
    """Yield the address, the repositories (name -> file -> content), and the paths that were asked for."""
    repos, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(self.path)
            if self.path.startswith("/api/repos/create"):
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
                repos.setdefault(name, {})
                self._json({"url": f"http://{self.headers['Host']}/{name}"})
            elif "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._json({"files": files})
            elif "/commit/" in self.path:
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self._json({"commitOid": COMMIT, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"})
            else:
                self._json({"errors": [], "warnings": []})

        def do_HEAD(self):  # noqa: N802
            self._file(body=False)

        def do_GET(self):  # noqa: N802
            if self.path.startswith("/api/"):
                asked.append(self.path)
                self._json({"sha": COMMIT, "siblings": [], "id": "x/y", "name": "someone", "type": "user", "orgs": []})
            else:
                self._file(body=True)

        def _file(self, body):
            asked.append(self.path)
            name, _, rest = self.path.strip("/").partition("/resolve/")
            content = repos.get(name, {}).get(rest.partition("?")[0].partition("/")[2])
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if name in repos else "RepoNotFound")
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

        def _json(self, value):
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repos, asked
    finally:
        server.shutdown()
        server.server_close()
