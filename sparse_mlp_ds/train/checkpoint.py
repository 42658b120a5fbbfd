"""Writing checkpoints: a folder of safetensors files and a manifest that is written last.

A folder without a valid manifest does not exist. `sparse_mlp_ds.checkpoints` reads them, for training too, by the names
given here.
"""

import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as torch_dist

from sparse_mlp_ds import __version__, dist, files
from sparse_mlp_ds.checkpoints import keeping
from sparse_mlp_ds.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    newest,
    open_checkpoint,
    read_manifest,
    step_of,
)
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.train import tensor_file
from sparse_mlp_ds.train.state import Piece

__all__ = ["MANIFEST", "Checkpoint", "Reader", "newest", "open_checkpoint", "prune", "read_manifest", "save"]
T = TypeVar("T")


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
            "files": {k: v for own, _ in entries for k, v in own.items()},
            "tensors": {k: v for _, tensors in entries for k, v in sorted(tensors.items())},
        }
        if dist.rank() == 0:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            files.sync(partial / MANIFEST)
            shutil.rmtree(final, ignore_errors=True)  # left by a run that was resumed from an earlier step
            partial.rename(final)
            files.sync(folder)
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


def prune(folder: Path, keep: int, protected: Iterable[int], every: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and those of `protected` steps and of every so many, and leftovers.

    Called after a checkpoint was written, which is whole and the newest.
    """
    paths = sorted((p for p in folder.glob("step_*") if (p / MANIFEST).exists()), key=step_of)
    stays = set(protected) | {step_of(p) for p in paths if every and step_of(p) % every == 0}
    for path in [p for p in paths[:-keep] if step_of(p) not in stays]:
        with contextlib.suppress(OSError):
            keeping.remove(path)
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
