"""As much of wandb's server as a run asks for."""

import json
from http.server import BaseHTTPRequestHandler
from typing import ClassVar


class Server(BaseHTTPRequestHandler):
    """Answers as wandb's server does, as far as a run needs it; the id of a deleted run is refused with 409."""

    deleted: ClassVar[set[str]] = set()
    history: ClassVar[dict[str, list[int]]] = {}
    rows: ClassVar[dict[str, list[dict]]] = {}
    """The rows of each run's history, by the run's id."""
    summary: ClassVar[dict[str, dict]] = {}
    """The newest summary of each run."""
    begun: ClassVar[dict[str, dict]] = {}
    """What was said of each run when it began: its name, group, tags and config."""

    def log_message(self, *_):
        return

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        query, variables = asked.get("query", ""), asked.get("variables") or {}
        if "upsertBucket" in query and variables["name"] in self.deleted:
            message = f"run e/p/{variables['name']} was previously created and deleted; try a new run name"
            return self._answer({"errors": [{"message": message}], "data": {"upsertBucket": None}}, 409)
        if "upsertBucket" in query:
            said = {name: value for name, value in variables.items() if value}
            self.begun.setdefault(variables["name"], {}).update(said)
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": variables["name"], "config": "{}", "historyLineCount": 0, "project": project}
            return self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if "createRunFiles" in query:
            wanted = [{"name": name, "uploadUrl": self._url(name)} for name in variables["files"]]
            return self._answer({"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": wanted}}})
        if self.path.endswith("/file_stream"):
            run, files = self.path.split("/")[-2], asked.get("files") or {}
            rows = [json.loads(row) for row in files.get("wandb-history.jsonl", {}).get("content", [])]
            self.history.setdefault(run, []).extend(row["_step"] for row in rows)
            self.rows.setdefault(run, []).extend(rows)
            for text in files.get("wandb-summary.json", {}).get("content", []):
                self.summary[run] = json.loads(text)
        if "RunResumeStatus" in query:
            return self._answer({"data": {"model": {"bucket": None}}})
        return self._answer({"data": {}} if query else {})

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer({})

    def _url(self, name):
        return f"http://127.0.0.1:{self.server.server_address[1]}/upload/{name}"

    def _answer(self, answer, code=200):
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
