"""Which checkpoints of a run may go, chosen by hand; a run in progress clears up by itself (`train.checkpoint`)."""

import shutil
from pathlib import Path

from sparse_mlp_ds.checkpoints import backbone
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, Checkpoint, newest, numbered, read_manifest, step_of
from sparse_mlp_ds.errors import UserError


def superfluous(folder: Path, keep: int, every: int | None = None) -> tuple[list[Path], list[str]]:
    """Return the checkpoints of a run's folder that may go, and one line for each that is damaged.

    Kept are the newest `keep`, those whose step is a multiple of `every`, the last one of each stage, the newest sound
    one, and what is damaged: it is not counted, and nobody but its owner can tell what it is worth. Raises UserError if
    none is sound.
    """
    last, damaged = newest(folder)
    if last is None:
        raise UserError(f"{folder}: no complete checkpoint, so none is removed")
    sound, ends = [], set()
    for path in numbered(folder):
        try:
            manifest = read_manifest(path)
        except UserError as error:
            damaged += [str(error)] if str(error) not in damaged else []
            continue
        ends |= {entry.get("last_step") for entry in backbone.done(Checkpoint(path, manifest))}
        if step_of(path) <= step_of(last.path):  # the newer ones are damaged
            sound.append(path)
    multiple = lambda path: every is not None and step_of(path) % every == 0  # noqa: E731
    return [path for path in sound[keep:] if step_of(path) not in ends and not multiple(path)], damaged


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first: what is left if this is cut short is none."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
