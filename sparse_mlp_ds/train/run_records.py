"""What rank 0 keeps of a run beside its figures: train.log, environment.json, events.jsonl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparse_mlp_ds import errors
from sparse_mlp_ds.errors import StoppedError
from sparse_mlp_ds.log import train_log
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.log.output import begin_output, end_output
from sparse_mlp_ds.log.train_log import TrainLog
from sparse_mlp_ds.watchdog.events import Events

if TYPE_CHECKING:  # wrong flags must not wait for the import of torch
    from sparse_mlp_ds.distributed.discovery import Launch
    from sparse_mlp_ds.train.preflight import Facts
    from sparse_mlp_ds.train.run_folder import RunFolder
    from sparse_mlp_ds.watchdog.client import Watch


def events_alone(folder: RunFolder) -> Events:
    """Return what records the events of a run, and tells no command of them."""
    return Events(folder.path, ())


class RunRecords:
    """Opened as soon as the run folder belongs to this run; until then, what is printed is kept in memory."""

    def __init__(self) -> None:
        """Begin to take what this process prints."""
        self._log = TrainLog(say)
        self._events: Events | None = None
        begin_output(self._log.take)
        errors.COPIES.append(self._log.take)

    def only_on_rank_zero(self, rank: int) -> None:
        """Take nothing on the other ranks. rank: of this process."""
        if rank:
            self._log.close()

    def open(self, folder: RunFolder, launch: Launch, facts: list[Facts], watch: Watch) -> Events:
        """Begin to write, and tell the watchdog where.

        Args:
            folder: The run folder, which belongs to this run.
            launch: How this process, rank 0, was launched.
            facts: What every rank reported before training.
            watch: The watchdog of this rank.

        Returns what takes the run's events.
        """
        from sparse_mlp_ds.train import environment_file

        path, on_event = folder.path / train_log.NAME, folder.job.recipe.log.on_event
        self._log.open(path)
        watch.begin_run(folder.path, None if self._log.holds(2) else path, on_event)
        environment_file.add_start(folder, launch, facts)
        self._events = Events(folder.path, on_event)
        return self._events

    def tell(self, error: Exception) -> None:
        """Tell of the error that ends the run: a stop on request, or a failure."""
        if self._events and isinstance(error, StoppedError):
            self._events.add("stopped", f"{error}; the same command continues it")
        elif self._events:
            self._events.add("failed", str(error) or "a different rank has failed, and has printed why")

    def close(self) -> None:
        """Wait for the user's command, and take nothing more."""
        if self._events:
            self._events.wait()
        errors.COPIES.remove(self._log.take)
        self._log.close()
        end_output()
