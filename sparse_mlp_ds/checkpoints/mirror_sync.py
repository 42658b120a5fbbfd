"""Making a mirror hold what a run folder holds: complete checkpoints, the files beside them, and exports.

A checkpoint's manifest goes last, so half of an upload is never taken for a checkpoint; and in a mirror the newest
complete checkpoint is never removed.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparse_mlp_ds.checkpoints import best
from sparse_mlp_ds.checkpoints import mirror as mirrors
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, is_count, numbered, parsed, read_manifest, step_of
from sparse_mlp_ds.checkpoints.mirror import Mirror, MirrorError
from sparse_mlp_ds.errors import UserError

NOT_COPIED = ("stop",)
"""Files in a run folder that ask something of the run on this machine alone."""
_HELD = ".step_{}.upload"  # links to a checkpoint's files, so that they outlive its removal


class MirrorSync:
    """Copies what is new of one run folder, and notes what was copied."""

    def __init__(self, run: Path, mirror: Mirror):
        """run: the run folder. mirror: where it is copied to."""
        self._run, self._mirror = run, mirror
        self._checkpoints = run / "checkpoints"
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of change of each file, by its path in the run
        self._manifests: dict[int, bytes] = {}  # those that the mirror is known to hold
        for left in self._checkpoints.glob(_HELD.format("*")):
            shutil.rmtree(left, ignore_errors=True)

    def __call__(self) -> int | None:
        """Copy what is new, and remove from the mirror what the run has removed.

        Returns the step of the newest checkpoint in the mirror; None if there is none. Raises MirrorError.
        """
        self._set_aside()
        while path := self._next():
            self._copy(path)
            self._prune()
        self._prune()
        self._copy_files(self._beside())
        self._copy_files(self._exports())
        return max(self._complete(), default=None)

    def _local(self) -> dict[int, Path]:
        """Return the run's complete checkpoints by step, as far as their manifests tell."""
        found: dict[int, Path] = {}
        for path in numbered(self._checkpoints):
            with contextlib.suppress(UserError):
                read_manifest(path)
                found[step_of(path)] = path
        return found

    def _complete(self) -> set[int]:
        return {step for step, sizes in mirrors.checkpoints(self._mirror.list()).items() if MANIFEST in sizes}

    def _next(self) -> Path | None:
        """Return the newest checkpoint that the mirror does not hold as it is; None if there is none."""
        there = self._complete()
        for step, path in sorted(self._local().items(), reverse=True):
            with contextlib.suppress(OSError):  # it has been removed since
                own = (path / MANIFEST).read_bytes()
                if step in there and step not in self._manifests:
                    self._manifests[step] = self._mirror.read(f"checkpoints/{path.name}/{MANIFEST}")
                if step not in there or self._manifests[step] != own:
                    return path
        return None

    def _copy(self, path: Path) -> None:
        """Copy one checkpoint; if the run removes it meanwhile, the copy is completed all the same."""
        with self._hold(path) as held:
            if not (held / MANIFEST).exists():
                return
            name, content = f"checkpoints/{path.name}", (held / MANIFEST).read_bytes()
            files = parsed(content, str(path))["files"]
            if not self._holds_files(step_of(path), files):
                for file in files:
                    self._mirror.put(held / file, f"{name}/{file}")
            self._copy_files(self._beside())  # so records of all steps up to the checkpoint's are there before it
            there = self._mirror.list()
            if wrong := [file for file, entry in files.items() if there.get(f"{name}/{file}") != entry["bytes"]]:
                raise MirrorError(f"{name}/{wrong[0]} did not arrive whole")
            self._mirror.put(held / MANIFEST, f"{name}/{MANIFEST}")
            self._manifests[step_of(path)] = content

    def _holds_files(self, step: int, files: dict[str, Any]) -> bool:
        """Return whether the mirror holds these very files, of an earlier try that came to the same result.

        A complete checkpoint of the step with different files is moved aside. files: those of a manifest.
        """
        there = self._mirror.list()
        names = [name for name in there if name.startswith(f"checkpoints/step_{step}/")]
        if f"checkpoints/step_{step}/{MANIFEST}" not in names:
            return False
        with contextlib.suppress(UserError):
            if parsed(self._manifests[step], self._mirror.url)["files"] == files:
                return True
        self._mirror.set_aside(names, there)
        return False

    @contextlib.contextmanager
    def _hold(self, path: Path) -> Iterator[Path]:
        """Give a folder with the files of a checkpoint that stay while they are copied: links, which take no room."""
        links = path.with_name(_HELD.format(step_of(path)))
        shutil.rmtree(links, ignore_errors=True)
        try:
            try:
                links.mkdir()
                for file in sorted(path.iterdir(), key=lambda file: file.name == MANIFEST):
                    os.link(file, links / file.name)
            except FileNotFoundError:  # the run removes it just now
                pass
            except OSError:  # a disk without links: the files themselves, which may go
                shutil.rmtree(links, ignore_errors=True)
                yield path
                return
            yield links
        finally:
            shutil.rmtree(links, ignore_errors=True)

    def _prune(self) -> None:
        """Remove what the run has removed, and what is left of uploads that were cut short; the newest one stays."""
        local, there = self._local(), mirrors.checkpoints(self._mirror.list())
        complete = {step for step, sizes in there.items() if MANIFEST in sizes}
        # Beside the run's own, those stay that it would keep but has not: on a new machine it fetches only the newest.
        stays = {*local, *sorted(complete)[-1:]}
        if local:
            stays |= _kept(complete, read_manifest(local[max(local)]))
        for step, sizes in there.items():
            if step not in complete or step not in stays:
                self._mirror.remove([f"checkpoints/step_{step}/{file}" for file in sizes])
                self._manifests.pop(step, None)

    def _set_aside(self) -> None:
        """Move checkpoints aside that are later than all of the run: it has gone back to an earlier one."""
        local, files = self._local(), self._mirror.list()
        later = [step for step in mirrors.checkpoints(files) if local and step > max(local)]
        names = [name for name in files for step in later if name.startswith(f"checkpoints/step_{step}/")]
        if names:
            self._mirror.set_aside(names, files)
            self._manifests = {step: one for step, one in self._manifests.items() if step not in later}

    def _beside(self) -> list[Path]:
        """Return the files that lie directly in the run folder: records, results, the recipe."""
        found = [path for path in self._run.iterdir() if path.is_file() and not path.is_symlink()]
        return sorted(path for path in found if not path.name.startswith(".") and path.name not in NOT_COPIED)

    def _exports(self) -> list[Path]:
        """Return the files of exported models in the run folder and its folders, each model's weights first."""
        configs = [*self._run.glob("*/config.json"), *self._run.glob("*/*/config.json")]
        folders = [path.parent for path in configs if (path.parent / "model.safetensors").is_file()]
        folders = [path for path in folders if not path.relative_to(self._run).parts[0].startswith((".", "previous-"))]
        return [file for folder in folders for file in sorted(folder.iterdir(), reverse=True) if file.is_file()]

    def _copy_files(self, paths: Iterable[Path]) -> None:
        """Copy the files that have changed since they were copied."""
        for path in paths:
            name = path.relative_to(self._run).as_posix()
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if self._sent.get(name) != (now := (status.st_size, status.st_mtime_ns)):
                    self._mirror.put(path, name)
                    self._sent[name] = now


def _kept(steps: Iterable[int], newest: dict[str, Any]) -> set[int]:
    """Return the steps whose checkpoints a run keeps, by the manifest of its newest one.

    These are the newest ones, as many as its recipe says, the multiples of `keep_every`, the best ones and the last one
    of each stage.
    """
    section, done = newest["recipe"].get("checkpoint"), newest["progress"].get("done")
    section = section if isinstance(section, dict) else {}
    keep, every = (section[key] if is_count(section.get(key)) else 0 for key in ("keep", "keep_every"))
    ends = [entry.get("last_step") for entry in done if isinstance(entry, dict)] if isinstance(done, list) else []
    protected, ordered = {*ends, *best.steps(newest["progress"])}, sorted(steps, reverse=True)
    return {step for step in ordered if step in ordered[:keep] or step in protected or (every and step % every == 0)}
