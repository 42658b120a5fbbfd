"""Writing checkpoints: a folder of safetensors files and a manifest that is written last.

A folder without a valid manifest does not exist. `sparse_mlp_ds.checkpoints` reads them, for training too, by the names
given here.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist
from safetensors.torch import save_file

from sparse_mlp_ds import __version__, dist
from sparse_mlp_ds.checkpoints.manifest import (
    FORMAT,
    MANIFEST,
    Checkpoint,
    newest,
    open_checkpoint,
    read_manifest,
    sha256,
    step_of,
)
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.train.state import Piece

__all__ = ["MANIFEST", "Checkpoint", "Reader", "newest", "open_checkpoint", "prune", "read_manifest", "save"]


def save(folder: Path, step: int, pieces: Iterable[Piece], about: dict[str, Any]) -> Path:
    """Write folder/step_<step>, all ranks together: each its pieces, rank 0 the manifest, last of all.

    about: what the manifest says besides, anything JSON; `progress` is where the run stood.
    Returns the checkpoint's path on every rank.
    """
    final = folder / f"step_{step}"
    partial = folder / f".step_{step}.partial"
    if dist.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()

    file = f"rank_{dist.rank():05d}.safetensors"
    mine = list(pieces)
    save_file({f"{p.name}@{p.start}": p.values.detach().cpu().clone() for p in mine}, partial / file)
    _sync(partial / file)
    entry = {file: {"bytes": (partial / file).stat().st_size, "sha256": sha256(partial / file)}}
    entries = _gather((entry, {p.name: list(p.shape) for p in mine}))

    if dist.rank() == 0:
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "step": step,
            **about,
            "files": {k: v for files, _ in entries for k, v in files.items()},
            "tensors": {k: v for _, tensors in entries for k, v in sorted(tensors.items())},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync(partial / MANIFEST)
        shutil.rmtree(final, ignore_errors=True)  # left by a run that was resumed from an earlier step
        partial.rename(final)
        _sync(folder)
    dist.barrier()
    return final


def prune(folder: Path, keep: int, protected: Iterable[int]) -> None:
    """Remove all but the newest `keep` checkpoints and those of the `protected` steps, and half-written leftovers."""
    paths = sorted((p for p in folder.glob("step_*") if (p / MANIFEST).exists()), key=step_of)
    for path in [p for p in paths[:-keep] if step_of(p) not in set(protected)]:
        shutil.rmtree(path, ignore_errors=True)
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gather(value: Any) -> list[Any]:
    """Return every rank's value, on all ranks."""
    if not torch_dist.is_initialized():
        return [value]
    values = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(values, value)
    return values
