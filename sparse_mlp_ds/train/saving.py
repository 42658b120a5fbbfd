"""Saving beside training: the loop waits for a copy in host memory, a thread writes it."""

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparse_mlp_ds import dist
from sparse_mlp_ds.errors import RunError
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.recipe import Checkpoint as Section
from sparse_mlp_ds.train import checkpoint
from sparse_mlp_ds.train.checkpoint import Checkpoint, SaveError
from sparse_mlp_ds.train.state import Piece

LAST_TRIES = 3
"""Of a save that the run cannot do without."""


class Saver:
    """Writes one checkpoint at a time. Every rank calls the same methods at the same steps.

    The threads of the ranks agree among themselves over a process group of their own, so that their messages never meet
    those of training.
    """

    def __init__(self, folder: Path, section: Section):
        """folder: of the checkpoints. section: how many are kept."""
        self.folder, self.section = folder, section
        self.newest: Checkpoint | None = None
        """The newest that this run has written."""
        self._group = dist.control_group()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._step = 0

    def start(self, step: int, pieces: Iterable[Piece], about: dict[str, Any], protected: Iterable[int] = ()) -> None:
        """Copy the pieces and begin to write them; waits for the one before, whose failure was only worth a warning.

        about: see `checkpoint.save`. protected: steps whose checkpoints stay.
        """
        self.look(wait=True)
        copies = [replace(piece, values=piece.values.detach().to("cpu", copy=True)) for piece in pieces]
        about = json.loads(json.dumps(about))  # a copy: training goes on to change it
        self._step = step
        self._thread = threading.Thread(target=self._write, args=(step, copies, about, list(protected)), daemon=True)
        self._thread.start()

    def look(self, wait: bool = False) -> bool:
        """Say whether nothing is being written; a save that failed is reported, training goes on."""
        if self._thread is None:
            return True
        if self._thread.is_alive() and not wait:
            return False
        if isinstance(failure := self._end(), SaveError):
            if dist.rank() == 0:
                say(f"WARNING: no checkpoint of step {self._step}: {failure}; training goes on to the next save")
        elif failure:
            raise failure
        return True

    def finish(self, step: int, pieces: Iterable[Piece], about: dict[str, Any], protected: Iterable[int] = ()) -> None:
        """Write a checkpoint that must exist before anything else happens. Raises RunError if it cannot be had."""
        pieces = list(pieces)
        for tried in range(1, LAST_TRIES + 1):
            self.start(step, pieces, about, protected)
            failure = self._end()
            if failure is None:
                return
            if not isinstance(failure, SaveError):
                raise failure
            if dist.rank() == 0:
                say(f"WARNING: no checkpoint of step {step}: {failure}, try {tried} of {LAST_TRIES}")
        text = f"{failure}; older checkpoints are whole: mend it and start again with the same command"
        raise RunError(text if dist.rank() == 0 else "")

    def _write(self, step: int, pieces: list[Piece], about: dict[str, Any], protected: list[int]) -> None:
        try:
            self.newest = checkpoint.save(self.folder, step, pieces, about, self._group)
            if dist.rank() == 0:
                checkpoint.prune(self.folder, self.section.keep, protected, self.section.keep_every)
        except BaseException as failure:  # for the thread that trains
            self._failure = failure

    def _end(self) -> BaseException | None:
        self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        return failure
