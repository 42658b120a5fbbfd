"""Writing checkpoints: a folder of safetensors files and a manifest that is written last.

A folder without a valid manifest is no checkpoint, so a save that is cut short leaves the earlier checkpoints as they
were.
"""

import json
import shutil
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as torch_dist
from torch import Tensor

from sparse_mlp_ds import __version__, files
from sparse_mlp_ds.checkpoints import tensor_file
from sparse_mlp_ds.checkpoints.manifest import FORMAT, MANIFEST, Checkpoint
from sparse_mlp_ds.distributed import process_group

T = TypeVar("T")


class SaveError(Exception):
    """A checkpoint could not be written, on whichever rank; raised on all of them."""


@dataclass(frozen=True)
class Piece:
    """A run of consecutive elements of a named tensor."""

    name: str
    """Name of the whole tensor, such as `param/backbone.head.weight`."""
    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    start: int
    """Position of the first element, in row-major order."""
    values: Tensor
    """The elements, flat: [n]."""


def save(
    folder: Path,
    step: int,
    pieces: Iterable[Piece],
    about: dict[str, Any],
    group: torch_dist.ProcessGroup | None = None,
) -> Checkpoint:
    """Write the checkpoint folder/step_<step>: each rank its pieces, then rank 0 the manifest. Collective.

    Args:
        folder: the folder of all checkpoints of a run.
        step: the run's optimizer steps so far.
        pieces: what this rank contributes.
        about: further entries of the manifest, anything JSON; `progress` is where the run stands.
        group: the process group over which the ranks agree; None is the default group.

    Returns the checkpoint. Raises SaveError and leaves what was there before.
    """
    final = folder / f"step_{step}"
    partial = folder / f".step_{step}.partial"
    file = f"rank_{process_group.rank():05d}.safetensors"

    def begin() -> None:
        if process_group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> tuple[dict[str, Any], dict[str, list[int]]]:
        own = list(pieces)
        entry = tensor_file.write(partial / file, {f"{piece.name}@{piece.start}": piece.values for piece in own})
        return {file: entry}, {piece.name: list(piece.shape) for piece in own}

    def commit() -> dict[str, Any]:
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            **about,
            "files": {name: entry for of_rank, _ in entries for name, entry in of_rank.items()},
            "tensors": {name: shape for _, shapes in entries for name, shape in sorted(shapes.items())},
        }
        if process_group.rank() == 0:
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
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
        if process_group.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return Checkpoint(final, manifest)


def _together(action: Callable[[], T], group: torch_dist.ProcessGroup | None) -> list[T]:
    """Call `action` on every rank; return what each rank got, or raise the same SaveError on all if one failed."""
    value, failure = None, None
    try:
        value = action()
    except OSError as error:
        where = f"rank {process_group.rank()} on {socket.gethostname()}"
        failure = f"{error.filename or 'writing'}: {error.strerror or error} ({where})"
    outcomes = [(value, failure)]
    if torch_dist.is_initialized() and torch_dist.get_world_size() > 1:  # a GPU alone would have to carry messages
        outcomes *= torch_dist.get_world_size()
        torch_dist.all_gather_object(outcomes, (value, failure), group=group)
    if failures := [failure for _, failure in outcomes if failure]:
        raise SaveError(failures[0])
    return [cast(T, value) for value, _ in outcomes]
