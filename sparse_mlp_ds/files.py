"""Files that are whole or absent, and on disk when it matters."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO


def replace(path: Path, text: str) -> None:
    """Replace a file's text: a reader sees the old one or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim(path: Path, owner: str, seconds: float) -> IO | str:
    """Hold a file for as long as this process lives; returns what keeps it held, or who else holds it.

    owner: what the file says of the holder. seconds: to wait for another one to end. A POSIX lock, which the kernel
    frees at any death and child processes do not inherit; where a network disk has no locks, nobody is refused.
    """
    held = path.open("a+")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                held.seek(0)
                return held.read().strip() or "another process"
            time.sleep(0.2)
        except OSError:  # no locks here
            break
    with contextlib.suppress(OSError):
        held.truncate(0)
        held.write(owner)
        held.flush()
    return held
