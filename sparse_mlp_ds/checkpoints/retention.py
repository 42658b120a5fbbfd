"""Which checkpoints of a run are removed: by the run itself after a save, or by hand with `checkpoint prune`."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_mlp_ds.checkpoints import best, model_weights
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, Checkpoint, newest, numbered, read_manifest, step_of
from sparse_mlp_ds.errors import UserError


def prune(written: Path, keep: int, protected: Iterable[int], keep_every: int | None = None) -> None:
    """Remove a run's older checkpoints and the leftovers of unfinished saves. What cannot be removed stays.

    Args:
        written: the checkpoint that was just written, which is known to be whole and stays.
        keep: how many of the newest stay.
        protected: steps whose checkpoints stay.
        keep_every: checkpoints whose step is a multiple of it stay; None protects none.
    """
    paths = [path for path in numbered(written.parent) if (path / MANIFEST).exists()]
    stays = {*protected, step_of(written)}
    stays |= {step_of(path) for path in paths if keep_every and step_of(path) % keep_every == 0}
    for path in [path for path in paths[keep:] if step_of(path) not in stays]:
        with contextlib.suppress(OSError):
            remove(path)
    for partial in written.parent.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def removable(folder: Path, keep: int, keep_every: int | None = None) -> tuple[list[Path], list[str]]:
    """Return the checkpoints of a run that nobody needs, and one line for each that is damaged.

    These stay: the newest `keep`, those whose step is a multiple of `keep_every`, the last one of each stage, the best
    one of each stage that keeps it, and the newest sound one. Damaged ones stay, too, and do not count: only their
    owner can tell what they are worth. Raises UserError if none is sound.
    """
    last, damaged = newest(folder)
    if last is None:
        raise UserError(f"{folder}: no complete checkpoint, so none is removed")
    sound, ends = list[Path](), set[Any](best.steps(last.progress))
    for path in numbered(folder):
        try:
            manifest = read_manifest(path)
        except UserError as error:
            damaged += [str(error)] if str(error) not in damaged else []
            continue
        ends |= {entry.get("last_step") for entry in model_weights.done(Checkpoint(path, manifest))}
        if step_of(path) <= step_of(last.path):  # the newer ones are damaged
            sound.append(path)
    multiple = lambda path: keep_every is not None and step_of(path) % keep_every == 0  # noqa: E731
    return [path for path in sound[keep:] if step_of(path) not in ends and not multiple(path)], damaged


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first: if this is cut short, the rest is no checkpoint. Raises OSError."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
