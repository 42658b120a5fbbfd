"""Checkpoints on disk: a folder of safetensors files and a manifest that is written last.

A folder without a valid manifest does not exist. Nothing is ever unpickled: tensors are safetensors, the rest is JSON.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_mlp_ds import __version__, dist
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import tensor_file
from sparse_mlp_ds.train.state import Piece

T = TypeVar("T")
MANIFEST = "manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    manifest: dict[str, Any]

    @property
    def progress(self) -> dict[str, Any]:
        """What `save` was given: where the run stood."""
        return self.manifest["progress"]


class SaveError(Exception):
    """A checkpoint could not be written, on whichever rank; raised on all of them."""


def save(
    folder: Path,
    step: int,
    pieces: Iterable[Piece],
    about: dict[str, Any],
    group: torch_dist.ProcessGroup | None = None,
) -> Checkpoint:
    """Write folder/step_<step>, all ranks together: each its pieces, rank 0 the manifest, last of all.

    about: what the manifest says besides, anything JSON; `progress` is where the run stood. group: the process group
    over which the ranks agree. Returns the checkpoint. Raises SaveError, leaving what was there before.
    """
    final = folder / f"step_{step}"
    partial = folder / f".step_{step}.partial"
    file = f"rank_{dist.rank():05d}.safetensors"

    def begin() -> None:
        if dist.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> tuple[dict[str, Any], dict[str, list[int]]]:
        mine = list(pieces)
        entry = tensor_file.write(partial / file, {f"{p.name}@{p.start}": p.values for p in mine})
        return {file: entry}, {p.name: list(p.shape) for p in mine}

    def commit() -> dict[str, Any]:
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            **about,
            "files": {k: v for files, _ in entries for k, v in files.items()},
            "tensors": {k: v for _, tensors in entries for k, v in sorted(tensors.items())},
        }
        if dist.rank() == 0:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            _sync(partial / MANIFEST)
            shutil.rmtree(final, ignore_errors=True)  # left by a run that was resumed from an earlier step
            partial.rename(final)
            _sync(folder)
        return manifest

    try:
        _together(begin, group)
        entries = _together(write, group)
        manifest = _together(commit, group)[0]
    except SaveError:
        if dist.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return Checkpoint(final, manifest)


def _together(action: Callable[[], T], group: torch_dist.ProcessGroup | None) -> list[T]:
    """Do something on every rank; return what each got, or raise the same SaveError on all if one failed."""
    value, failure = None, None
    try:
        value = action()
    except OSError as error:
        where = f"rank {dist.rank()} on {socket.gethostname()}"
        failure = f"{error.filename or 'writing'}: {error.strerror or error} ({where})"
    outcomes = [(value, failure)]
    if torch_dist.is_initialized():
        outcomes *= torch_dist.get_world_size()
        torch_dist.all_gather_object(outcomes, (value, failure), group=group)
    if failures := [failure for _, failure in outcomes if failure]:
        raise SaveError(failures[0])
    return [value for value, _ in outcomes]


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint, and one line for each newer folder that was passed over."""
    passed_over = []
    for path in sorted(folder.glob("step_*"), key=_step, reverse=True):
        try:
            return open_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest. Raises UserError naming what is wrong with it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: checkpoint format {manifest['format']}, this version reads {FORMAT}")
        if {"progress", "recipe", "tensors"} <= manifest.keys() and all(
            Path(name).name == name and {"bytes", "sha256"} <= entry.keys() for name, entry in manifest["files"].items()
        ):
            return manifest
        raise ValueError("an entry is missing, or a file name leaves the folder")
    except OSError as error:
        raise UserError(f"{path}: not a checkpoint: no readable {MANIFEST} ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged {MANIFEST} ({error}); use another checkpoint") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a manifest and compare every file with it. Raises UserError naming what is wrong."""
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing; use another checkpoint")
        if file.stat().st_size != entry["bytes"] or _sha256(file) != entry["sha256"]:
            raise UserError(f"{file}: differs from what was written (size or sha256); use another checkpoint")
    return Checkpoint(path, manifest)


def prune(folder: Path, keep: int, protected: Iterable[int], every: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and those of `protected` steps and of every so many, and leftovers.

    Called after a checkpoint was written, which is whole and the newest.
    """
    paths = sorted((p for p in folder.glob("step_*") if (p / MANIFEST).exists()), key=_step)
    stays = set(protected) | {_step(p) for p in paths if every and _step(p) % every == 0}
    for path in [p for p in paths[:-keep] if _step(p) not in stays]:
        shutil.rmtree(path, ignore_errors=True)
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


class Reader:
    """Reads any part of any tensor of a checkpoint, however many files its pieces lie in."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.shapes: dict[str, list[int]] = checkpoint.manifest["tensors"]
        self._pieces: dict[str, list[tuple[int, int, Any, str]]] = {}
        for name in checkpoint.manifest["files"]:
            try:
                file = safe_open(checkpoint.path / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{checkpoint.path / name}: not a safetensors file ({error})") from None
            for key in file.keys():  # noqa: SIM118 - the file itself is not iterable
                tensor, _, start = key.rpartition("@")
                count = file.get_slice(key).get_shape()[0]
                self._pieces.setdefault(tensor, []).append((int(start), count, file, key))

    def __call__(self, name: str, start: int, count: int) -> Tensor:
        """Return elements start .. start + count - 1 of a tensor, flat. Raises UserError where some are missing."""
        result = torch.empty(count)
        found = 0
        for first, size, file, key in self._pieces.get(name, ()):
            low, high = max(start, first), min(start + count, first + size)
            if low < high:
                result[low - start : high - start] = file.get_slice(key)[low - first : high - first]
                found += high - low
        if found != count:
            raise UserError(
                f"{self.checkpoint.path}: holds {found} of the {count} elements wanted of '{name}'; "
                "it was written by another model or is incomplete"
            )
        return result


def _step(path: Path) -> int:
    number = path.name.removeprefix("step_")
    return int(number) if number.isdigit() else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
