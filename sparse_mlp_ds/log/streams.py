"""Standard output and standard error of every command."""

import sys


def accept_any_text() -> None:
    """Print what a stream's encoding lacks as an escape, such as `\\xe9`, instead of raising an error.

    Names of classes and files may hold any character, while a stream may be ASCII (PYTHONIOENCODING, an old locale), or
    a file name no text at all: an answer or an error message must not be lost to that.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a stream that was put in its place may lack it, and a closed one is None
            stream.reconfigure(errors="backslashreplace")
