"""Saving beside training: a copy is made in host memory, and a thread writes it to disk while training goes on."""

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sparse_mlp_ds.checkpoints import best, retention, writer
from sparse_mlp_ds.checkpoints.host_copy import HostCopy
from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.writer import Piece, SaveError
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import RunError

LAST_TRIES = 3
"""How often a save is tried that the run cannot do without."""


class Saver:
    """Writes one checkpoint at a time. Every rank calls the same methods at the same steps.

    The threads of the ranks communicate over a process group of their own, so that their messages never meet those of
    training.
    """

    newest: Checkpoint | None = None
    """The newest checkpoint that this run has written."""
    failed: int | None = None
    """Step of the newest save, if it has failed."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int | None,
        warn: Callable[[str], None],
        written: Callable[[], None] = lambda: None,
    ):
        """Prepare to save. Collective.

        Args:
            folder: the folder of the run's checkpoints.
            keep: how many of the newest checkpoints stay.
            keep_every: checkpoints whose step is a multiple of it stay as well.
            warn: takes a line about a save that failed, on rank 0, as soon as that is known.
            written: called on rank 0 when a checkpoint has been written and older ones were removed; has to return
                at once.
        """
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self._warn, self._written = warn, written
        self._group = process_group.control_group()
        self._copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._step = 0

    def start(self, step: int, pieces: Iterable[Piece], about: dict[str, Any], protected: Iterable[int] = ()) -> None:
        """Copy the pieces and begin to write them. Waits until the save before this one has ended.

        Call `hold` before the pieces' tensors change: a GPU may still be copying them.

        Args:
            step: the run's optimizer steps so far.
            pieces: what this rank contributes.
            about: further entries of the manifest, see `writer.save`.
            protected: steps whose checkpoints stay.
        """
        self.look(wait=True)
        copies = self._copy.take(pieces)
        about = json.loads(json.dumps(about))  # a copy: training goes on to change it
        self._step = step
        self._thread = threading.Thread(target=self._write, args=(step, copies, about, list(protected)), daemon=True)
        self._thread.start()

    def hold(self) -> None:
        """Let a GPU finish its copy of the last pieces before it does what it is asked for next; the host goes on."""
        self._copy.hold()

    def look(self, wait: bool = False) -> bool:
        """Return whether no save is in progress; one that has failed is only warned of, and training goes on.

        wait: wait for the save in progress to end.
        """
        if self._thread is None:
            return True
        if self._thread.is_alive() and not wait:
            return False
        if isinstance(failure := self._end(), SaveError):
            self.failed = self._step
            self._report(f"no checkpoint of step {self._step}: {failure}; training goes on to the next save")
        elif failure:
            raise failure
        return True

    def finish(self, step: int, pieces: Iterable[Piece], about: dict[str, Any], protected: Iterable[int] = ()) -> None:
        """Write a checkpoint that the run cannot do without, and wait for it; the arguments are those of `start`.

        Raises RunError if it cannot be written in LAST_TRIES tries; its text is empty on all ranks but 0.
        """
        pieces = list(pieces)
        for number in range(1, LAST_TRIES + 1):
            self.start(step, pieces, about, protected)
            failure = self._end()
            if failure is None:
                return
            if not isinstance(failure, SaveError):
                raise failure
            self._report(f"no checkpoint of step {step}: {failure}, try {number} of {LAST_TRIES}")
        text = f"{failure}; older checkpoints are whole: mend it and start again with the same command"
        raise comm.printed_by_rank_zero(RunError(text))

    def _report(self, text: str) -> None:
        if process_group.rank() == 0:
            self._warn(f"WARNING: {text}")

    def _write(self, step: int, pieces: list[Piece], about: dict[str, Any], protected: list[int]) -> None:
        try:
            self._copy.wait()
            self.newest = writer.save(self.folder, step, pieces, about, self._group)
            if process_group.rank() == 0:
                retention.prune(self.newest.path, self.keep, protected, self.keep_every)
                best.name_it(self.folder, self.newest.progress)
                self._written()
        except BaseException as failure:  # for the thread that trains
            self._failure = failure

    def _end(self) -> BaseException | None:
        """Wait for the save in progress to end, and return why it failed, if it did."""
        if self._thread:
            self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        return failure
