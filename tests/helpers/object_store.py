"""An object store on this machine: moto's S3 server in this process, which notes, holds up and refuses requests."""

import fnmatch
import threading

import fsspec
from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

BUCKET = "training"


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        return


class ObjectStore:
    """`requests`: (method, path) of everything that was asked, in order. A context manager with an empty bucket."""

    def __init__(self):
        self.requests: list[tuple[str, str]] = []
        self.held, self.refused = "", ""  # patterns of `METHOD PATH`
        self.arrived, self.release = threading.Event(), threading.Event()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True
        self.url = f"s3://{BUCKET}/runs/a"
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def hold(self, pattern: str) -> None:
        """Let requests such as `PUT */step_4/*` wait until `release` is set; `arrived` is set when one comes."""
        self.arrived.clear()
        self.release.clear()
        self.held = pattern

    def names(self) -> list[str]:
        """The keys of all objects below the run's URL, without that."""
        backend = get_backend("s3")["123456789012"]["global"]
        prefix = "runs/a/"
        return sorted(key.removeprefix(prefix) for key in backend.buckets[BUCKET].keys if key.startswith(prefix))

    def content(self, name: str) -> bytes:
        """What an object holds."""
        backend = get_backend("s3")["123456789012"]["global"]
        return backend.get_object(BUCKET, f"runs/a/{name}").value

    def _answer(self, environ, start_response):
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if self.held and fnmatch.fnmatch(asked, self.held):
            self.arrived.set()
            self.release.wait(120)
        if self.refused and fnmatch.fnmatch(asked, self.refused):
            text = "<Error><Code>AccessDenied</Code><Message>not you</Message></Error>"
            return Response(text, 403, content_type="application/xml")(environ, start_response)
        return self._app(environ, start_response)

    def __enter__(self):
        get_backend("s3").reset()
        get_backend("s3")["123456789012"]["global"].create_bucket(BUCKET, "us-east-1")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
