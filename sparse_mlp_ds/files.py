"""Files that are written whole or not at all, locks between processes, and hashes of contents."""

import contextlib
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from filelock import FileLock

from sparse_mlp_ds.errors import UserError

BLOCK = 1 << 20
"""Bytes of a file that are read at once."""


def expand(path: str) -> str:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` filled in; a variable that is not set stays as it is."""
    return os.path.expandvars(os.path.expanduser(path))


def read_text(path: Path, given: str, fix: str) -> str:
    """Return the text of a file that a user wrote: UTF-8, with or without the byte order mark of some editors.

    given: the flag or key that names the file, for messages. fix: what to give instead. Raises UserError.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{given} {path}: {error.strerror}; {fix}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{given} {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def real(path: Path) -> Path:
    """Return a path without links. Path.resolve raises RuntimeError for a link to itself; here it stays as it is."""
    return Path(os.path.realpath(path))


def nearest(path: Path) -> Path:
    """Return a path, or the nearest of the folders above it that exists; a link counts even if it leads nowhere."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))


def check_writable(folder: Path, given: str) -> None:
    """Try whether a folder can be made, or written if it is there; leaves nothing behind.

    The try is a real one: permissions do not tell of a disk that is full, read-only or on a server with its own mind.

    given: the flag that names the folder, for messages. Raises UserError.
    """
    fix = "give a folder that can be written"
    there = nearest(folder)
    try:
        if there.is_symlink() and not there.exists():
            raise UserError(f"{given} {folder}: {there} is a link that leads nowhere; remove it or give a folder")
        if not there.is_dir():
            raise UserError(f"{given} {folder}: {there} is a file; give a folder")
        for name in folder.absolute().relative_to(there).parts:
            if hasattr(os, "pathconf") and len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX"):
                raise UserError(f"{given} {folder}: '{name[:40]}...' is too long for a file name; {fix}")
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            file.write(bytes(4096))  # an empty file has room on a full disk
    except OSError as error:
        raise UserError(f"{given} {folder}: {there}: {error.strerror}; {fix}") from None


def plain_name(text: str) -> str:
    """Return a text from elsewhere as part of a file name that can be printed, stored and put into a pattern."""
    kept = "".join(c if c.isprintable() and c not in "/\\{}[]*?'\"" else "-" for c in text)
    return kept.lstrip(".") or "data"


def replace(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Replace a file's content: a reader sees the old content or the new one, never a part.

    content: bytes, or text that is stored as UTF-8. durable: return only when it is on disk. Raises OSError.
    """
    with replacing(path, durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of `path` at the end of the `with` block, unless it raises.

    durable: whether the content is on disk then. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with partial.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, is on disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file during the `with` block, after a wait for the other processes that want it.

    Where the disk knows no locks, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NotImplementedError):
            stack.enter_context(FileLock(path, mode=0o666))
        yield


def try_lock(path: Path) -> TextIO | None:
    """Take the lock of a file, or return None at once if another process holds it.

    The lock (flock) is held until the returned file is closed, and by child processes that inherit the open file. Where
    the disk knows no locks, nobody is refused.
    """
    import fcntl  # not on Windows, where no trainer runs

    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # the disk knows no locks
        pass
    return file


def claim(path: Path, owner: str, seconds: float) -> TextIO | str:
    """Take the lock of a file for the life of this process alone, without its child processes.

    The lock is a POSIX one (lockf), which the kernel frees at any death of the process. Where the disk knows no locks,
    nobody is refused.

    Args:
        path: the file to lock.
        owner: text about this process; it is written into the file.
        seconds: how long to wait for another process that holds the lock.

    Returns the open file, to be kept; or the text about the process that still holds the lock.
    """
    import fcntl  # not on Windows, where no trainer runs

    file = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                file.seek(0)
                return file.read().strip() or "another process"
            time.sleep(0.2)
        except OSError:  # the disk knows no locks
            break
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(owner)
        file.flush()
    return file


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return at most `size` bytes of an open file from an offset on. Raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    return os.read(descriptor, size)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError."""
    return sha256_of(_blocks(path))


def sha256_of(blocks: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256, in hexadecimal, of blocks of bytes one after another."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[memoryview]:
    """Yield a file's content in pieces of one buffer; each is valid until the next is asked for."""
    buffer = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]
