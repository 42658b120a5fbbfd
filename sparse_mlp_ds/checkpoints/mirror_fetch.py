"""Bringing the newest complete checkpoint of a mirror into a run folder, with the files that lie beside it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparse_mlp_ds.checkpoints import best
from sparse_mlp_ds.checkpoints import mirror as mirrors
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, Checkpoint, is_readable, open_checkpoint
from sparse_mlp_ds.checkpoints.mirror import Mirror
from sparse_mlp_ds.errors import UserError

OWN = ("config.yaml", "ds_config.json")
"""Files that every start of a run writes anew."""
_PARTIAL = ".mirror.partial"


def fetch(
    mirror: Mirror,
    run: Path,
    than: int,
    keep: int,
    aside: Callable[[], Path],
) -> tuple[Checkpoint | None, list[str]]:
    """Bring the newest complete checkpoint of a mirror into a run folder, if it has more steps than `than`.

    The files beside the checkpoints come with it, and the checkpoints that the run may still need: the newest `keep`
    and the best ones. It appears last and whole: it is written beside, every file is compared with the manifest's size
    and hash, and then it is renamed.

    Args:
        mirror: the run's mirror.
        run: the run folder.
        than: steps of the newest complete checkpoint in the run folder; -1 if it has none.
        keep: how many of the newest checkpoints the run keeps.
        aside: makes a folder for files that are in the way, and returns it; called at most once.

    Returns the checkpoint, or None if there is none that is newer, and a line for each one that is damaged. Raises
    MirrorError, and OSError if the run folder cannot be written.
    """
    found: Checkpoint | None = None
    arrived, passed_over, bests = list[Path](), list[str](), list[int]()
    files = mirror.list()
    for step, manifest in mirrors.manifests(mirror, files):
        final = run / "checkpoints" / f"step_{step}"
        if step <= than if found is None else len(arrived) >= keep and step > max(bests, default=-1):
            break
        if found and (is_readable(final) or (len(arrived) >= keep and step not in bests)):
            continue
        try:
            arrived.append(_bring(mirror, files, final, manifest))
        except UserError as error:
            passed_over.append(str(error))
            continue
        if found is None:
            found = open_checkpoint(arrived[0])
            bests = best.steps(found.progress)
    if found is None:
        return None, passed_over
    _place(mirror, files, run, arrived[::-1], aside)
    return Checkpoint(_final(arrived[0]), found.manifest), passed_over


def _bring(mirror: Mirror, files: dict[str, int], final: Path, manifest: dict[str, Any] | UserError) -> Path:
    """Fetch a checkpoint that is to be placed at `final`, and return the folder beside that where it is complete.

    Raises UserError if it is damaged in the mirror.
    """
    if isinstance(manifest, UserError):
        raise manifest
    name, partial = f"checkpoints/{final.name}", final.with_name(f".{final.name}.partial")
    if missing := [one for one in manifest["files"] if f"{name}/{one}" not in files]:
        raise UserError(f"{mirror.url}/{name}/{missing[0]}: missing; use another checkpoint")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mirror.get([f"{name}/{one}" for one in (*manifest["files"], MANIFEST)], partial)
    try:
        open_checkpoint(partial)
    except UserError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(str(error).replace(str(partial), f"{mirror.url}/{name}")) from None
    return partial


def _final(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


def _place(
    mirror: Mirror,
    files: dict[str, int],
    run: Path,
    partials: Sequence[Path],
    aside: Callable[[], Path],
) -> None:
    """Put the files beside the checkpoints into their places, then the checkpoints, which are whole in `partials`."""
    beside = [name for name in files if "/" not in name and name not in OWN and not name.startswith(".")]
    arrived = run / _PARTIAL
    shutil.rmtree(arrived, ignore_errors=True)
    arrived.mkdir()
    mirror.get(beside, arrived)
    moves = [(arrived / name, run / name) for name in beside] + [(partial, _final(partial)) for partial in partials]
    in_the_way = [target for source, target in moves if target.exists() and not _are_same(source, target)]
    if in_the_way:
        previous = aside()
        for target in in_the_way:
            kept = previous / target.relative_to(run)
            kept.parent.mkdir(exist_ok=True)
            target.rename(kept)
    for source, target in moves:
        source.replace(target)
    arrived.rmdir()


def _are_same(file: Path, other: Path) -> bool:
    return file.is_file() and other.is_file() and file.read_bytes() == other.read_bytes()
