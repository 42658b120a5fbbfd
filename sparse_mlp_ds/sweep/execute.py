"""Executes the runs of a sweep, one after the other or several at once.

A sweep that was killed goes on when the same command is started again. A run is finished when its summary.json lists
all of its stages. The process of a run holds a lock on the run's folder as long as it lives, so a second sweep, on this
host or on another one that shares the disk, skips that run and takes the next one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.distributed import deepspeed_command
from sparse_mlp_ds.errors import STOPPED, UserError
from sparse_mlp_ds.log.console import format_duration
from sparse_mlp_ds.log.train_log import NAME as LOG
from sparse_mlp_ds.sweep import jobs
from sparse_mlp_ds.sweep.plan import Sweep, SweepRun
from sparse_mlp_ds.sweep.time_left import TimeLeft

POLL_SECONDS = 1.0
"""Seconds between two looks at runs that another sweep holds."""


def is_finished(folder: Path, run: SweepRun) -> bool:
    """Return whether a run has finished all of its stages.

    folder: of the sweep. Raises UserError if the run's folder belongs to a different recipe.
    """
    try:
        summary = json.loads((folder / run.name / "summary.json").read_text(encoding="utf-8"))
        recipe = yaml.safe_load((folder / run.name / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if changed := loading.changed_key(recipe, run.recipe.model_dump(mode="json")):
        raise UserError(f"{folder / run.name}: {changed}; give the sweep another name, or --out")
    return {stage["name"] for stage in summary["stages"]} >= run.recipe.stages.keys()


class Execution:
    """Executes the unfinished runs of a sweep in threads, each of which watches one process at a time."""

    def __init__(
        self,
        sweep: Sweep,
        runs: Sequence[SweepRun],
        folder: Path,
        say: Callable[[str], None],
        recorded: Collection[str] = (),
        seconds: Mapping[str, Sequence[float]] | None = None,
        keep: Callable[[SweepRun], None] = lambda run: None,
    ):
        """Look which runs are left; nothing is started yet.

        Args:
            sweep: The sweep.
            runs: Those of its runs that may be executed.
            folder: Folder of the sweep, with one folder for each run.
            say: Is called with one line for each run that starts or ends.
            recorded: Names of runs that are finished, wherever that was.
            seconds: Setting -> durations of its finished runs, from which the time left is estimated.
            keep: Is called with each run that is finished, one at a time.

        Raises UserError if there are not enough GPUs for `sweep.jobs` runs at once.
        """
        self.sweep, self.folder, self.say, self._keep = sweep, folder, say, keep
        self.waiting = [run for run in runs if run.name not in recorded and not is_finished(folder, run)]
        """Runs that are neither finished nor started."""
        self.jobs = jobs.choose(sweep, len(self.waiting))
        """The places for runs on this machine."""
        self.jobs.environment(self.jobs.number - 1)  # raises before anything runs
        self.time_left = TimeLeft(folder, self.jobs.number, seconds or {})
        """Estimates when all runs are done."""
        self.running: list[SweepRun] = []
        """Runs that this sweep has started and that have not ended."""
        self.failed: list[SweepRun] = []
        """Runs that ended with an error."""
        self.stopped: list[SweepRun] = []
        """Runs that were asked to stop; they go on when the sweep is started again."""
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._problem: Exception | None = None
        self._processes: set[subprocess.Popen[bytes]] = set()

    def all(self) -> None:
        """Execute the runs until none is waiting.

        SIGTERM, SIGHUP and Ctrl-C end the processes of the runs; each goes on from its last checkpoint later. Raises
        OSError if a folder or a log cannot be written, or no process can be started.
        """
        threads = [threading.Thread(target=self._work, args=(slot,)) for slot in range(self.jobs.number)]
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: sys.exit(128 + received))
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and self._problem is None:
                time.sleep(POLL_SECONDS / 4)  # not join(), during which no signal is handled
        finally:
            self._stopping.set()
            for process in list(self._processes):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for thread in threads:
                thread.join()
        if self._problem is not None:
            raise self._problem

    def _work(self, slot: int) -> None:
        """Execute waiting runs; what goes wrong beside them is for `all` to raise. slot: number of this thread."""
        try:
            self._execute_waiting(slot)
        except Exception as error:
            self._problem = error

    def _execute_waiting(self, slot: int) -> None:
        """Execute one waiting run after the other. slot: number of this thread, which chooses cores and GPUs."""
        while not self._stopping.is_set():
            with self._mutex:
                if not self.waiting:
                    return
                taken = next(((run, lock) for run in self.waiting if (lock := _try_lock(self.folder / run.name))), None)
                if taken:
                    self.waiting.remove(taken[0])
            if taken is None:  # other sweeps hold all runs that are left
                self._stopping.wait(POLL_SECONDS)
                continue
            run, lock = taken
            with lock:
                if not is_finished(self.folder, run):
                    self._execute(run, lock, slot)

    def _execute(self, run: SweepRun, lock: TextIO, slot: int) -> None:
        folder = self.folder / run.name
        self.say(f"{run.name}: started, its output goes to {folder / LOG}")
        started = time.perf_counter()
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                self._command(run), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()], env=os.environ | self.jobs.environment(slot),
                preexec_fn=self.jobs.cores(slot),
            )  # fmt: skip
            self._processes.add(process)
            self.running.append(run)
            self.time_left.begin(run)
            code = process.wait()
            self.running.remove(run)
            self._processes.discard(process)
        if self._stopping.is_set():
            return
        if code == STOPPED:
            self.stopped.append(run)
            self.say(f"{run.name}: {last_line(folder / LOG)}")
        elif code or not is_finished(self.folder, run):
            self.failed.append(run)
            self.say(f"{run.name}: failed with exit code {code}: {last_line(folder / LOG)}")
        else:
            self.time_left.end(run)
            with self._mutex:
                self._keep(run)
            rest = f"; {text}" if (text := self.rest()) else ""
            self.say(f"{run.name}: finished in {(time.perf_counter() - started) / 60:.1f} min{rest}")

    def _command(self, run: SweepRun) -> list[str]:
        settings = [part for override in run.overrides for part in ("--set", override)]
        inputs = ["--recipe", self.sweep.recipe, "--ds_config", self.sweep.ds_config]
        return [*deepspeed_command.local(self.sweep.ranks), *inputs, "--out", str(self.folder / run.name), *settings]

    def rest(self) -> str:
        """Return how many runs are left and about how long they take; empty if none is left."""
        with self._mutex:
            running, waiting = list(self.running), list(self.waiting)
        if not (number := len(running) + len(waiting)):
            return ""
        seconds = self.time_left.estimate(running, waiting)
        about = "" if seconds is None else f", about {format_duration(seconds)}"
        return f"{number} run{'s are' if number > 1 else ' is'} left{about}"


def last_line(path: Path) -> str:
    """Return the last error in the log of a run, or its last line if there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return next(iter([*errors[-1:], *[line for line in reversed(lines) if line.strip()]]), "it printed nothing")


def _try_lock(folder: Path) -> TextIO | None:
    """Return an open file that locks a run's folder, or None while another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    return files.try_lock(folder / ".lock")
