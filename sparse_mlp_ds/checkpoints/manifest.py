"""Finding checkpoints and reading their manifests, which are believed only where they fit the files beside them.

A checkpoint may come from a stranger: nothing is unpickled, no name may lead out of the folder, and no number in a
manifest is used before the real sizes of the files confirm it.
"""

import contextlib
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError, one_line

MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the checkpoint format; a checkpoint of a different version is refused."""
LARGEST = 1 << 28
"""Largest size of a manifest, bytes; the largest shipped model needs a hundredth of it."""
HASHING = 8
"""Number of files that are hashed at the same time."""

_NAME = re.compile(r"step_(0|[1-9][0-9]*)")
_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TENSOR = re.compile(r"[A-Za-z0-9_]+/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    """The folder step_N."""
    manifest: dict[str, Any]
    """The content of manifest.json."""

    @property
    def progress(self) -> dict[str, Any]:
        """Where the run stood: the stage, its steps, the finished stages (`train.run_folder.Progress` as JSON)."""
        return self.manifest["progress"]


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest, without looking at the files that it names. Raises UserError."""
    try:
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path}: not a checkpoint: no readable {MANIFEST}; give a folder step_N that has one")
        if leaves(path / MANIFEST, path):
            raise UserError(f"{path}: {MANIFEST} is a link out of the folder; copy the file there")
        if (path / MANIFEST).stat().st_size > LARGEST:
            raise UserError(f"{path}: damaged {MANIFEST} (more than {LARGEST >> 20} MiB); use another checkpoint")
        return parsed((path / MANIFEST).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: not a checkpoint: no readable {MANIFEST} ({error.strerror})") from None


def parsed(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest, given what its file holds. where: the checkpoint, for messages. Raises UserError."""
    try:
        manifest = json.loads(content.decode(), object_pairs_hook=unique)
        if manifest["format"] != FORMAT:
            raise UserError(f"{where}: checkpoint format {manifest['format']!r}, this version reads {FORMAT}")
        for key in ("progress", "recipe", "tensors", "files"):
            if not isinstance(manifest[key], dict):
                raise ValueError(f"{key} is no mapping")
        _check_files(manifest["files"])
        _check_shapes(manifest["tensors"], sum(entry["bytes"] for entry in manifest["files"].values()))
        return manifest
    except KeyError as error:
        raise UserError(f"{where}: damaged {MANIFEST} ({error} is missing); use another checkpoint") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: damaged {MANIFEST} ({one_line(error)}); use another checkpoint") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and compare the size and hash of every file with it.

    Raises UserError naming the first file that is missing or differs.
    """
    manifest = read_manifest(path)
    with ThreadPoolExecutor(HASHING) as pool:
        for _ in pool.map(lambda item: _check_file(path / item[0], item[1]), manifest["files"].items()):
            pass  # raises the error of a file, in the manifest's order
    return Checkpoint(path, manifest)


def _check_file(file: Path, entry: dict[str, Any]) -> None:
    if not file.is_file():
        raise UserError(f"{file}: missing; use another checkpoint")
    if leaves(file, file.parent):
        raise UserError(f"{file}: a link out of the folder; copy the file there")
    if file.stat().st_size != entry["bytes"] or files.sha256(file) != entry["sha256"]:
        raise UserError(f"{file}: differs from what was written (size or sha256); use another checkpoint")


def numbered(folder: Path) -> list[Path]:
    """Return the checkpoint folders step_N inside `folder`, sound or damaged, the newest first.

    Only exact names count: `step_3_best` or `step_3.bak` is the user's. The age is the step in the manifest, whatever
    number the name has; where the manifest cannot be read, the number must do. Raises
    OSError if the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    # Not glob, which returns nothing for a folder that this user may not read: the run would start over in silence.
    return sorted((path for path in folder.iterdir() if step_of(path) >= 0), key=age, reverse=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint inside `folder`, and a line for each newer one that is damaged.

    The checkpoint is None if there is no complete one.
    """
    passed_over: list[str] = []
    for path in numbered(folder):
        try:
            return open_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def start_of(checkpoints: Path, resume: str) -> Path | None:
    """Return the checkpoint that a run would continue from, as far as manifests tell; None if it would start over.

    Args:
        checkpoints: the folder of the run's checkpoints.
        resume: `auto`, `never`, or the path of a checkpoint.
    """
    if resume == "never":
        return None
    if resume != "auto":
        return Path(resume)
    return newest_readable(checkpoints)


def newest_readable(folder: Path) -> Path | None:
    """Return the newest checkpoint inside `folder` whose manifest can be read; None if there is none."""
    return next((path for path in numbered(folder) if is_readable(path)), None)


def is_readable(path: Path) -> bool:
    """Return whether a path is a checkpoint whose manifest can be read."""
    with contextlib.suppress(UserError):
        read_manifest(path)
        return True
    return False


def checkpoints_of(path: Path) -> Path | None:
    """Return the folder `checkpoints` inside a run folder; None if `path` has none."""
    inside = path / "checkpoints"
    return inside if inside.is_dir() else None


def find(path: Path) -> tuple[Checkpoint, list[str]]:
    """Open a checkpoint folder, or the newest complete checkpoint of a run folder.

    Returns also a line for each newer checkpoint that is damaged. Raises UserError if there is no complete one.
    """
    folder = checkpoints_of(path)
    if folder is None:
        return open_checkpoint(path), []
    checkpoint, passed_over = newest(folder)
    if checkpoint is None:
        why = f": {passed_over[0]}" if passed_over else ""
        raise UserError(f"{path}: a run without a complete checkpoint; train it further{why}")
    return checkpoint, passed_over


def step_of(path: Path) -> int:
    """Return the number N of a folder step_N; -1 for any different name."""
    exact = _NAME.fullmatch(path.name)
    return int(exact[1]) if exact else -1


def age(path: Path) -> tuple[int, int]:
    """Return what the checkpoints of a run are sorted by: the step in the manifest, then that in the name."""
    number = step_of(path)
    try:
        step = read_manifest(path).get("step")
    except UserError:
        return number, number
    return (step if is_count(step) else number), number


def leaves(file: Path, folder: Path) -> bool:
    """Return whether a file is a link that leads out of its folder."""
    return files.real(file).parent != files.real(folder)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the entries of a JSON object; an `object_pairs_hook` of json.loads.

    Raises ValueError if two entries have the same name.
    """
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("two entries have the same name")
    return entries


def _check_files(entries: dict[str, Any]) -> None:
    for name, entry in entries.items():
        if not _FILE.fullmatch(name):
            raise ValueError(f"{ascii(name[:80])} is no file name, or leaves the folder")
        if not (is_count(entry["bytes"]) and _SHA256.fullmatch(entry["sha256"])):
            raise ValueError(f"{name} has no size or no sha256")


def _check_shapes(tensors: dict[str, Any], bytes_there: int) -> None:
    """Raise ValueError unless every tensor has a name and a shape and all fit into the files together."""
    left = bytes_there
    for name, shape in tensors.items():
        if not _TENSOR.fullmatch(name):
            raise ValueError(f"{ascii(name[:80])} is no tensor name")
        if not (isinstance(shape, list) and all(is_count(size) and size > 0 for size in shape)):
            raise ValueError(f"'{name}' has no shape")
        left -= math.prod(shape)  # at least a byte for each element
        if left < 0:
            raise ValueError(f"'{name}' is larger than the files")


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value from JSON is an integer from 0 up to 2^62 (and not true or false)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
