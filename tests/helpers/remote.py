"""A web server of this process that counts what it is asked, and answers wrongly where it is told to."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler

from tests.helpers.web import WebServer


class Server:
    """Serves the files of a folder."""

    def __init__(self, folder):
        self.folder, self.requests, self.answers, self.release = folder, Counter(), {}, threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                self.close_connection = True
                outer.answer(self, self.path.lstrip("/"))

            def log_message(self, *arguments):
                pass

        self._server = WebServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def answer(self, request, name):
        self.requests[name] += 1
        wrong = self.answers.get(name, [])
        how = wrong.pop(0) if wrong else "whole"
        content = (self.folder / name).read_bytes() if (self.folder / name).is_file() else None
        if how == "error" or content is None:
            request.send_error(503 if content else 404)
            return
        request.send_response(200)
        if how == "chunks cut":
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            request.wfile.write(b"1000\r\n" + content[:100])
            return
        request.send_header("Content-Length", str(len(content) + (len(content) if how == "longer" else 0)))
        request.end_headers()
        if how == "other":
            content = bytes(len(content))
        if how in ("short", "slow"):
            request.wfile.write(content[:1000])
            content = content[1000:] if how == "slow" else b""
            request.wfile.flush()
        if how == "slow":
            self.release.wait(60)
        request.wfile.write(content * (2 if how == "longer" else 1))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
