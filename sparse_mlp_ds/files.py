"""Files that are whole or absent, and on disk when it matters."""

import os
from pathlib import Path


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
