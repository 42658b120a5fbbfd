"""The best checkpoint of a run: which one it is, by the progress in the newest manifest, and its name for people.

A validation is the best of its stage by the highest top-1. `progress` is that of a manifest: its `best` belongs to the
stage that is going on, and the entry of a finished stage in `done` has its own. Both name a checkpoint only if the
stage keeps it (`keep_best`).
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints.manifest import Checkpoint, checkpoints_of, find, is_count, open_checkpoint
from sparse_mlp_ds.errors import UserError

FILE = "best.json"
"""Name of the file beside the checkpoints that says which one is the best."""


def kept(progress: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the best validations whose checkpoints are kept, one for each stage, the newest stage first."""
    entries = progress.get("done")
    done = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    going_on = not any(entry.get("name") == progress.get("stage") for entry in done)
    found = [progress.get("best")] if going_on else []
    found += [entry.get("best") for entry in reversed(done)]
    return [one for one in found if isinstance(one, dict) and is_count(one.get("step")) and "checkpoint" in one]


def steps(progress: dict[str, Any]) -> list[int]:
    """Return the run's steps whose checkpoints are the best of their stages, and stay.

    A finished stage that may go on again has two: the best at its end, and the best before its end.
    """
    before_the_end = progress | {"done": []}
    return [int(one["step"]) for one in (*kept(progress), *kept(before_the_end))]


def find_best(run: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Open the best checkpoint of a run's newest stage that keeps one. Returns it and the figures of its validation.

    Raises UserError if `run` is no run folder, or the checkpoint is missing or damaged.
    """
    folder = checkpoints_of(run)
    if folder is None:
        raise UserError(f"{run}: a single checkpoint has no best one beside it; give the folder of a run")
    newest, _ = find(run)
    return open_best(folder, newest.progress, str(run))


def open_best(folder: Path, progress: dict[str, Any], run: str) -> tuple[Checkpoint, dict[str, Any]]:
    """Do what `find_best` says. folder: of the checkpoints. progress: of the newest one. run: its name in messages."""
    best = next(iter(kept(progress)), None)
    if best is None:
        raise UserError(f"{run}: no stage kept a best checkpoint; set keep_best: true and val_every_epochs in a stage")
    return open_checkpoint(folder / f"step_{best['step']}"), best


def name_it(folder: Path, progress: dict[str, Any]) -> None:
    """Write best.json into the folder of the checkpoints, or remove it if there is no best one.

    It is for people: nothing reads it, so a full disk costs nothing more than the file.
    """
    with contextlib.suppress(OSError):
        if best := next(iter(kept(progress)), None):
            files.replace(folder / FILE, json.dumps(best, indent=1) + "\n")
        else:
            (folder / FILE).unlink(missing_ok=True)
