"""Remote tars on the local disk: fetched whole when first read, checked, shared by a host's processes, bounded."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sparse_mlp_ds.data.index import Shard
from sparse_mlp_ds.errors import UserError

_TRIES = 4
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
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            return target

    def _download(self, shard: Shard, partial: Path) -> None:
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(2.0**attempt / 2)
            digest, size = hashlib.sha256(), 0
            try:
                with open_remote(shard.path) as source, partial.open("r+b") as file:
                    while piece := source.read(1 << 20):
                        file.write(piece)
                        digest.update(piece)
                        size += len(piece)
                        if size > shard.bytes:
                            break
                    os.fsync(file.fileno())
            except (OSError, subprocess.SubprocessError) as error:
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
            with_status = path.stat()
            if path.suffix == ".partial" and time.time() - with_status.st_mtime > _STALE:
                path.unlink(missing_ok=True)
            elif path.suffix in (".tar", ".partial"):
                held.append((path.suffix == ".partial", with_status.st_mtime, with_status.st_size, path))
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
        with subprocess.Popen(path[5:], shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            yield process.stdout
            _, errors = process.communicate()
            if process.returncode:
                said = errors.decode(errors="replace").strip().splitlines()[-1:]
                raise OSError(
                    f"the command ended with status {process.returncode}{': ' if said else ''}{''.join(said)}"
                )
    elif path.startswith(("http://", "https://")):
        with urllib.request.urlopen(path, timeout=_TIMEOUT) as response:
            yield response
    else:
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                yield file
        except (ImportError, ValueError) as error:
            raise UserError(f"{path}: no driver for this kind of URL ({error}); install it") from None


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
