"""A checkpoint's manifest, believed only where it fits the files beside it.

A checkpoint may come from a stranger: nothing is unpickled, no name leads out of the folder, and no number that it
claims is used before the files' real sizes bear it out.
"""

import hashlib
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 2
LARGEST = 1 << 28
"""Bytes of a manifest; the largest model here needs a hundredth of it."""

HASHING = 8
"""Files that are hashed at the same time."""

_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_TENSOR = re.compile(r"[A-Za-z0-9_]+/[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    manifest: dict[str, Any]

    @property
    def progress(self) -> dict[str, Any]:
        """What `train.checkpoint.save` was given: where the run stood."""
        return self.manifest["progress"]


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises UserError naming what is wrong with it."""
    try:
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path}: not a checkpoint: no readable {MANIFEST}; give a folder step_N that has one")
        if leaves(path / MANIFEST, path):
            raise UserError(f"{path}: {MANIFEST} is a link out of the folder; copy the file there")
        if (path / MANIFEST).stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        manifest = json.loads((path / MANIFEST).read_text(), object_pairs_hook=unique)
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: checkpoint format {manifest['format']!r}, this version reads {FORMAT}")
        for key in ("progress", "recipe", "tensors", "files"):
            if not isinstance(manifest[key], dict):
                raise ValueError(f"{key} is no mapping")
        _check_files(manifest["files"])
        _check_shapes(manifest["tensors"], sum(entry["bytes"] for entry in manifest["files"].values()))
        return manifest
    except OSError as error:
        raise UserError(f"{path}: not a checkpoint: no readable {MANIFEST} ({error.strerror})") from None
    except KeyError as error:
        raise UserError(f"{path}: damaged {MANIFEST} ({error} is missing); use another checkpoint") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged {MANIFEST} ({' '.join(str(error).split())}); use another checkpoint"
        ) from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a manifest and compare every file with it. Raises UserError naming what is wrong."""
    manifest = read_manifest(path)
    with ThreadPoolExecutor(HASHING) as pool:
        for _ in pool.map(lambda item: _check_file(path / item[0], item[1]), manifest["files"].items()):
            pass  # raises what a file raised, in the manifest's order
    return Checkpoint(path, manifest)


def _check_file(file: Path, entry: dict[str, Any]) -> None:
    if not file.is_file():
        raise UserError(f"{file}: missing; use another checkpoint")
    if leaves(file, file.parent):
        raise UserError(f"{file}: a link out of the folder; copy the file there")
    if file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
        raise UserError(f"{file}: differs from what was written (size or sha256); use another checkpoint")


def numbered(folder: Path) -> list[Path]:
    """Return a run's checkpoint folders, sound or not, the newest first."""
    return sorted(folder.glob("step_*"), key=step_of, reverse=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint, and one line for each newer folder that was passed over."""
    passed_over = []
    for path in numbered(folder):
        try:
            return open_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def checkpoints_of(path: Path) -> Path | None:
    """Return the folder of a run's checkpoints, None where `path` is no run folder."""
    inside = path / "checkpoints"
    return inside if inside.is_dir() else None


def find(path: Path) -> tuple[Checkpoint, list[str]]:
    """Open a checkpoint folder, or a run folder's newest complete one.

    Returns the lines about what was passed over, too. Raises UserError if there is none.
    """
    folder = checkpoints_of(path)
    if folder is None:
        return open_checkpoint(path), []
    found, passed_over = newest(folder)
    if found is None:
        why = f": {passed_over[0]}" if passed_over else ""
        raise UserError(f"{path}: a run without a complete checkpoint; train it further{why}")
    return found, passed_over


def step_of(path: Path) -> int:
    """Return N of a folder step_N, -1 for another name."""
    number = path.name.removeprefix("step_")
    return int(number) if number.isdecimal() else -1


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def leaves(file: Path, folder: Path) -> bool:
    """Say whether a file is a link that leads out of its folder."""
    return file.resolve().parent != folder.resolve()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's entries (for json.loads). Raises ValueError if two have the same name."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("two entries have the same name")
    return entries


def _check_files(files: dict[str, Any]) -> None:
    for name, entry in files.items():
        if not _FILE.fullmatch(name):
            raise ValueError(f"{ascii(name[:80])} is no file name, or leaves the folder")
        if not (is_count(entry["bytes"]) and _SHA256.fullmatch(entry["sha256"])):
            raise ValueError(f"{name} has no size or no sha256")


def _check_shapes(tensors: dict[str, Any], bytes_there: int) -> None:
    """Raise ValueError unless the tensors have names and shapes, which all the files together could hold."""
    left = bytes_there
    for name, shape in tensors.items():
        if not _TENSOR.fullmatch(name):
            raise ValueError(f"{ascii(name[:80])} is no tensor name")
        if not (isinstance(shape, list) and all(is_count(size) and size > 0 for size in shape)):
            raise ValueError(f"'{name}' has no shape")
        left -= math.prod(shape)  # at least a byte for each element
        if left < 0:
            raise ValueError(f"'{name}' is larger than the files")


def is_count(value: Any) -> bool:
    """Say whether a value from JSON is a whole number that can count something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
