"""Copies of remote tars on the local disk, shared by the processes of a host and limited in total size.

A tar is fetched whole when a sample of it is read for the first time, and compared with the hash in the index.
"""

import hashlib
import http.client
import io
import math
import os
import platform
import select
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.data.index import Shard
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.errors import UserError, one_line

_TRIES = 4
_PAUSE = 1.0  # seconds before the second try; each further pause is twice as long
_TIMEOUT = 60  # seconds without a byte
_COMMAND_TIMEOUT = 120.0  # the same for a command, which may have to do something first
_STALE = 3600  # seconds after which no process works on a partial file any more


class Cache:
    """A folder that holds at most `limit` bytes of tars."""

    def __init__(self, folder: Path, limit: int):
        """Use `folder`, which is made when it is needed. limit: Largest total size of the tars, bytes."""
        self.folder, self.limit = folder, limit

    def open(self, shard: Shard) -> IO[bytes]:
        """Open the local copy of a remote tar, fetched first if there is none. The caller closes it.

        A copy that is removed while it is open stays readable. Raises UserError as `fetch` does.
        """
        while True:
            path = self.fetch(shard)
            with suppress(FileNotFoundError):  # another process made room meanwhile
                return path.open("rb")

    def fetch(self, shard: Shard) -> Path:
        """Return the local copy of a remote tar. If there is none, one process of this host fetches it, others wait.

        A copy appears whole or not at all. Other processes may remove it at any time to make room: whoever reads it
        calls `open`. Raises UserError if the tar cannot be fetched, differs from the index, or exceeds the cache.
        """
        if shard.bytes > self.limit:
            raise UserError(f"{shard.path}: {shard.bytes} bytes exceed data.cache.gigabytes; raise it")
        name = files.sha256_of([f"{shard.path} {shard.sha256}".encode()])[:16]
        target = self.folder / f"{name}-{shard.name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.lock(self.folder / f".{name}.lock"):  # whoever holds it fetches the tar, and is watched meanwhile
            if target.exists():
                os.utime(target)  # used now; the copy that was not used for longest is removed first
                return target
            partial = self.folder / f".{name}.{platform.node()}.{os.getpid()}.partial"
            try:
                with files.lock(self.folder / ".lock"):
                    self._make_room(shard.bytes)
                    partial.touch()
                    os.truncate(partial, shard.bytes)  # so that other processes see the space as taken
                self._download(shard, partial)
                with files.lock(self.folder / ".lock"):  # no other process counts meanwhile
                    partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            return target

    def _download(self, shard: Shard, partial: Path) -> None:
        """Write a remote tar to `partial`, trying several times. Raises UserError."""
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            digest, size = hashlib.sha256(), 0
            try:
                with open_remote(shard.path) as source, partial.open("r+b") as file:
                    while piece := source.read(1 << 20):
                        size += len(piece)
                        if size > shard.bytes:
                            raise OSError(f"more came than the {shard.bytes} bytes that the index describes")
                        file.write(piece)
                        digest.update(piece)
                    os.fsync(file.fileno())
            except OSError as error:
                reason = one_line(error)
                continue
            if size == shard.bytes and digest.hexdigest() == shard.sha256:
                return
            reason = f"{size} bytes came, which differ from the {shard.bytes} that the index describes"
        raise UserError(
            f"{shard.path}: cannot be fetched after {_TRIES} tries ({reason}); correct the source or the index"
        )

    def _make_room(self, needed: int) -> None:
        """Remove the tars that were not used for longest, until `needed` more bytes fit."""
        held: list[tuple[bool, float, int, Path]] = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # a partial file that could not be completed
                continue
            if path.suffix == ".partial" and time.time() - status.st_mtime > _STALE:
                path.unlink(missing_ok=True)
            elif path.suffix in (".tar", ".partial"):
                held.append((path.suffix == ".partial", status.st_mtime, status.st_size, path))
        total = sum(size for _, _, size, _ in held)
        for is_partial, _, size, path in sorted(held):
            if total + needed <= self.limit or is_partial:
                break
            path.unlink(missing_ok=True)
            total -= size


def is_remote(path: str) -> bool:
    """Return whether a tar has to be fetched before it can be read at offsets."""
    return "://" in path or path.startswith("pipe:")


@contextmanager
def open_remote(path: str) -> Iterator[IO[bytes]]:
    """Open a URL, or the output of a `pipe:` command.

    Raises OSError, also if the command ends with an exit status other than 0; UserError for an unknown kind of URL.
    """
    if path.startswith("pipe:"):
        with _command_output(path[5:]) as file:
            yield file
    elif path.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(path, timeout=_TIMEOUT) as response:
                yield response
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from None
    else:
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                yield file
        except (ImportError, ValueError) as error:
            raise UserError(f"{path}: no driver for this kind of URL ({error}); install it") from None
        except OSError:
            raise
        except Exception as error:  # each driver has its own exceptions
            raise OSError(f"{type(error).__name__}: {error}") from None


def fetch(url: str, target: Path, largest: float = math.inf) -> None:
    """Write all that is behind a URL into a file. largest: most bytes that it may be. Raises OSError, UserError."""
    with open_remote(url) as source, target.open("wb") as file:
        # http.client ends a connection that breaks off like one that is complete; fsspec's files know their size.
        expected = getattr(source, "length", None) or getattr(source, "size", None)
        while piece := source.read(files.BLOCK):
            file.write(piece)
            if file.tell() > largest:
                raise OSError(f"it is larger than {largest / 2**30:.0f} GiB")
        if expected is not None and file.tell() != expected:
            raise OSError(f"{file.tell()} of {expected} bytes came")


@contextmanager
def _command_output(command: str) -> Iterator[IO[bytes]]:
    """Give what a shell command writes. If the reader stops early, the command and all that it started are killed."""
    # Error messages go to a file: a pipe that nobody reads would stop the command when it is full.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            preexec_fn=host.end_with_parent,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield io.BufferedReader(_Patient(process.stdout.fileno()))
            process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode:
            errors.seek(0)
            last_line = "".join(errors.read().decode(errors="replace").strip().splitlines()[-1:])
            reason = f": {last_line}" if last_line else ""
            raise OSError(f"the command ended with status {process.returncode}{reason}")


class _Patient(io.RawIOBase):
    """What a command writes; a command that writes nothing for too long raises TimeoutError, an OSError."""

    def __init__(self, descriptor: int):
        """descriptor: the reading end of the command's pipe, which stays its owner's."""
        self._descriptor = descriptor

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, after waiting for at least one byte or the end."""
        if not select.select([self._descriptor], [], [], _COMMAND_TIMEOUT)[0]:
            raise TimeoutError(f"the command wrote nothing for {_COMMAND_TIMEOUT:.0f} s")
        return os.readv(self._descriptor, [buffer])


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the cache's folder cannot be written, or if its disk has less than `needed` bytes for it."""
    files.check_writable(folder, "data.cache.folder")
    held = sum(path.stat().st_size for path in folder.glob("*.tar"))
    free = shutil.disk_usage(files.nearest(folder)).free
    if free + held < needed:
        raise UserError(
            f"data.cache.folder {folder}: {free / 1e9:.1f} GB are free, the cache may need {needed / 1e9:.1f}; "
            "lower data.cache.gigabytes"
        )
