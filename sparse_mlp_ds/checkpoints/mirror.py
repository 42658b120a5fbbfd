"""A copy of a run at a URL that fsspec opens: which checkpoints it holds, and how single ones get there and back.

URL/checkpoints/step_<n>/   as in the run folder; a folder without a manifest is no checkpoint, so manifests are
                            written last and removed first
URL/metrics.jsonl ...       the files that lie directly in the run folder
URL/previous-<n>/           checkpoints that the run went back behind
"""

import contextlib
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparse_mlp_ds.checkpoints.manifest import LARGEST, MANIFEST, Checkpoint, age, newest_readable, parsed, step_of
from sparse_mlp_ds.errors import UserError, one_line

_STEP = re.compile(r"checkpoints/step_(0|[1-9][0-9]*)/([^/]+)")
_PREVIOUS = re.compile(r"previous-([1-9][0-9]*)/.*")
_PROBE = ".writable"


class MirrorError(Exception):
    """What a mirror was asked for could not be done; the text is the reason, on one line."""


class Mirror:
    """The copy of one run."""

    def __init__(self, url: str):
        """Find the driver of a URL; nothing is asked of the network yet. Raises UserError if there is none."""
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.url = url.rstrip("/")
        try:
            self._files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            fix = 'install it, for s3:// with pip install "sparse_mlp_ds[s3]", or correct the URL'
            raise UserError(
                f"checkpoint.mirror {url}: no driver for this kind of URL ({one_line(error)}); {fix}"
            ) from None
        if isinstance(self._files, LocalFileSystem):
            self._files = LocalFileSystem(auto_mkdir=True)  # the folders of a path are made with it, as elsewhere
        self._root = str(root).rstrip("/")
        if not self._root:
            raise UserError(f"checkpoint.mirror {url}: names no place; write it as s3://bucket/path")

    def check(self) -> None:
        """Try whether something can be written there; leaves nothing behind. Raises MirrorError."""
        with tempfile.NamedTemporaryFile(prefix="mirror-") as file:
            self.put(Path(file.name), _PROBE)
        with self._asked():
            self._files.rm_file(self._place(_PROBE))

    def list(self) -> dict[str, int]:
        """Return the size in bytes of every file, by its path below the URL. Raises MirrorError."""
        with self._asked():
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
        own = len(self._root) + 1
        return {str(path)[own:]: int(about["size"] or 0) for path, about in found.items()}

    def read(self, name: str) -> bytes:
        """Return what a file holds. name: its path below the URL. Raises MirrorError."""
        with self._asked():
            return bytes(self._files.cat_file(self._place(name)))

    def put(self, file: Path, name: str) -> None:
        """Copy a file there. name: its path below the URL. Raises MirrorError."""
        with self._asked():
            self._files.put_file(str(file), self._place(name))

    def get(self, names: Sequence[str], folder: Path) -> None:
        """Copy files into a folder, which is there, under the last part of their names. Raises MirrorError."""
        with self._asked():
            if names:
                targets = [str(folder / name.rpartition("/")[2]) for name in names]
                self._files.get([self._place(name) for name in names], targets)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, a manifest among them first. Raises MirrorError."""
        with self._asked():
            for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
                self._files.rm_file(self._place(name))

    def set_aside(self, names: Sequence[str], files: dict[str, int]) -> str:
        """Move files of checkpoints into the next free folder previous-N, and return its name. Raises MirrorError.

        files: what `list` returns.
        """
        taken = [int(match[1]) for name in files if (match := _PREVIOUS.fullmatch(name))]
        target = f"previous-{max(taken, default=0) + 1}"
        with self._asked():
            for name in sorted(names, key=lambda name: name.endswith(f"/{MANIFEST}")):
                self._files.cp_file(self._place(name), self._place(f"{target}/{name}"))
        self.remove(names)
        return target

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Raise MirrorError in place of every exception of a driver: each has its own."""
        try:
            yield
        except Exception as error:
            kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
            raise MirrorError(f"{kind}{one_line(error, 300)}") from None


def checkpoints(files: dict[str, int]) -> dict[int, dict[str, int]]:
    """Return the size of each file of the folders step_N, by step and name, those without a manifest too.

    files: what `Mirror.list` returns.
    """
    found: dict[int, dict[str, int]] = {}
    for path, size in files.items():
        if match := _STEP.fullmatch(path):
            found.setdefault(int(match[1]), {})[match[2]] = size
    return found


def manifests(mirror: Mirror, files: dict[str, int]) -> Iterator[tuple[int, dict[str, Any] | UserError]]:
    """Yield step and manifest of every checkpoint in a mirror, the newest first; in place of a damaged one its error.

    files: what `Mirror.list` returns. Raises MirrorError.
    """
    for step, sizes in sorted(checkpoints(files).items(), reverse=True):
        name = f"checkpoints/step_{step}"
        if sizes.get(MANIFEST, math.inf) <= LARGEST:
            content = mirror.read(f"{name}/{MANIFEST}")
            try:
                yield step, parsed(content, f"{mirror.url}/{name}")
            except UserError as error:
                yield step, error


def newest(url: str, folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in a mirror, as far as manifests tell; None if there is none.

    Args:
        url: the mirror's.
        folder: the run's folder of checkpoints; the path of the checkpoint is the one that it would have there.

    Raises UserError if the mirror cannot be reached, or not be written.
    """
    mirror = Mirror(url)
    try:
        mirror.check()
        for step, manifest in manifests(mirror, mirror.list()):
            if not isinstance(manifest, UserError):
                return Checkpoint(folder / f"step_{step}", manifest)
    except MirrorError as error:
        raise unreachable(url, error) from None
    return None


def unreachable(url: str, error: MirrorError) -> UserError:
    """Return the error of a run that cannot begin because of its mirror."""
    fix = "correct the URL or its credentials, or set it to null to train without a mirror"
    return UserError(f"checkpoint.mirror {url}: {error}; {fix}")


def is_newer(mirrored: Checkpoint, folder: Path) -> bool:
    """Return whether a mirror's checkpoint has more steps than every readable one in a run's own folder of them."""
    own = newest_readable(folder)
    return own is None or step_of(mirrored.path) > age(own)[0]
