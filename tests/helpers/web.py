"""A web server for tests in which many processes ask at once."""

from http.server import ThreadingHTTPServer


class WebServer(ThreadingHTTPServer):
    """Python's, with room for all who wait.

    Python's own holds five. Whoever comes sixth may take itself for connected, and waits until it gives up.
    """

    request_queue_size = 128
