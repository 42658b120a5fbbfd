"""Remote tars on the local disk: fetched whole when first read, checked, shared by a host's processes, bounded."""

import fcntl
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sparse_mlp_ds.data.index import Shard
from sparse_mlp_ds.errors import UserError

_TRIES = 4
_PAUSE = 1.0  # seconds before the second try, twice as long before each further one
_TIMEOUT = 60  # seconds without a byte
_STALE = 3600  # seconds after which a partial file belongs to nobody


class Cache:
    """A folder that holds at most `limit` bytes of tars."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit

    def fetch(self, shard: Shard) -> Path:
        """Return the local copy of a remote tar; whoever needs it first fetches it, others on this host wait.

        A copy appears whole or not at all. It may be removed while it is open, which does not hurt its readers. Raises
        UserError if it cannot be fetched, differs from the index, or exceeds the cache.
        """
        if shard.bytes > self.limit:
            raise UserError(f"{shard.path}: {shard.bytes} bytes exceed data.cache.gigabytes; raise it")
        name = hashlib.sha256(f"{shard.path} {shard.sha256}".encode()).hexdigest()[:16]
        target = self.folder / f"{name}-{shard.name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / f".{name}.lock"):
            if target.exists():
                os.utime(target)  # used now; the longest unused goes first
                return target
            partial = self.folder / f".{name}.{os.uname().nodename}.{os.getpid()}.partial"
            try:
                with _lock(self.folder / ".lock"):
                    self._make_room(shard.bytes)
                    partial.touch()
                    os.truncate(partial, shard.bytes)  # so that others see the room as taken
                self._download(shard, partial)
                with _lock(self.folder / ".lock"):  # nobody else counts meanwhile
                    partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            return target

    def _download(self, shard: Shard, partial: Path) -> None:
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
                reason = " ".join(str(error).split())
                continue
            if size == shard.bytes and digest.hexdigest() == shard.sha256:
                return
            reason = f"{size} bytes came, which differ from the {shard.bytes} that the index describes"
        raise UserError(
            f"{shard.path}: cannot be fetched after {_TRIES} tries ({reason}); mend the source or the index"
        )

    def _make_room(self, needed: int) -> None:
        """Remove the tars that were not used for longest until `needed` more bytes fit."""
        held = []
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
    """Say whether a tar has to be fetched before it can be read at offsets."""
    return "://" in path or path.startswith("pipe:")


@contextmanager
def open_remote(path: str) -> Iterator[BinaryIO]:
    """Open a URL or the output of a `pipe:` command. Raises OSError, also for a command's non-zero exit status."""
    if path.startswith("pipe:"):
        with _output(path[5:]) as file:
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
        except Exception as error:  # each driver has its own
            raise OSError(f"{type(error).__name__}: {error}") from None


@contextmanager
def _output(command: str) -> Iterator[BinaryIO]:
    """Give what a shell command writes; whoever stops reading kills it, with all that it started."""
    options = {"shell": True, "stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, "start_new_session": True}
    # What it complains goes to a file: a pipe that nobody reads would stop it when full.
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stderr=errors, **options) as process:
        try:
            yield process.stdout
            process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise OSError(f"the command ended with status {process.returncode}{': ' if said else ''}{''.join(said)}")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check(folder: Path, needed: int) -> None:
    """Raise UserError if the cache's folder cannot be made or its disk lacks `needed` bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache.folder {folder}: {error.strerror}; name one that can be written") from None
    held = sum(path.stat().st_size for path in folder.glob("*.tar"))
    free = shutil.disk_usage(folder).free
    if free + held < needed:
        raise UserError(
            f"data.cache.folder {folder}: {free / 1e9:.1f} GB are free, the cache may need {needed / 1e9:.1f}; "
            "lower data.cache.gigabytes"
        )
