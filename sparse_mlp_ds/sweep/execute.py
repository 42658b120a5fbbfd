"""Runs one after the other, or several at once; killed at any time, the same command goes on where it was.

A run is finished when its summary.json says so. While it is alive it holds a lock on its folder, which its process
inherits: so a second sweep, on this host or another that shares the disk, leaves it alone and takes the next.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import yaml

from sparse_mlp_ds import config, discovery
from sparse_mlp_ds.errors import STOPPED, UserError
from sparse_mlp_ds.sweep.plan import Run, Sweep

TRAIN = Path(__file__).parents[2] / "train.py"
LOG = "train.log"
POLL_SECONDS = 1.0


def is_finished(folder: Path, run: Run) -> bool:
    """Say whether a run's folder holds all of its stages. Raises UserError if they are another recipe's."""
    try:
        summary = json.loads((folder / run.name / "summary.json").read_text())
        recipe = yaml.safe_load((folder / run.name / "config.yaml").read_text())
    except (OSError, ValueError):
        return False
    if changed := config.changed_key(recipe, run.recipe.model_dump(mode="json")):
        raise UserError(f"{folder / run.name}: {changed}; give the sweep another name, or --out")
    return {stage["name"] for stage in summary["stages"]} >= run.recipe.stages.keys()


class Execution:
    """The runs of a sweep that are not finished yet, shared among `sweep.jobs` threads that each watch one process."""

    def __init__(self, sweep: Sweep, runs: Sequence[Run], folder: Path, say: Callable[[str], None]):
        """say: takes a line for each run that starts and ends."""
        self.sweep, self.folder, self.say = sweep, folder, say
        self.waiting = [run for run in runs if not is_finished(folder, run)]
        self._devices(sweep.jobs - 1)  # raises before anything runs
        self.failed: list[Run] = []
        self.stopped: list[Run] = []
        """On request; they go on when they are started again."""
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._processes: set[subprocess.Popen] = set()

    def all(self) -> None:
        """Start what waits, until nothing does. A signal ends the processes; what they saved is where they go on."""
        threads = [threading.Thread(target=self._work, args=(slot,)) for slot in range(self.sweep.jobs)]
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda received, _: sys.exit(128 + received))
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(POLL_SECONDS / 4)  # not join(), which keeps signals waiting
        finally:
            self._stopping.set()
            for process in list(self._processes):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for thread in threads:
                thread.join()

    def _work(self, slot: int) -> None:
        while not self._stopping.is_set():
            with self._mutex:
                if not self.waiting:
                    return
                taken = next(((run, lock) for run in self.waiting if (lock := _lock(self.folder / run.name))), None)
                if taken:
                    self.waiting.remove(taken[0])
            if taken is None:  # others hold all that is left
                self._stopping.wait(POLL_SECONDS)
                continue
            run, lock = taken
            with lock:
                if not is_finished(self.folder, run):
                    self._execute(run, lock, slot)

    def _execute(self, run: Run, lock: IO, slot: int) -> None:
        folder = self.folder / run.name
        self.say(f"{run.name}: started, its output goes to {folder / LOG}")
        started = time.perf_counter()
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                self._command(run), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()], env=os.environ | self._devices(slot), preexec_fn=self._cores(slot),
            )  # fmt: skip
            self._processes.add(process)
            code = process.wait()
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
            self.say(f"{run.name}: finished in {(time.perf_counter() - started) / 60:.1f} min")

    def _command(self, run: Run) -> list[str]:
        start = [sys.executable, str(TRAIN)]
        if self.sweep.ranks > 1:
            launcher = Path(sys.executable).with_name("deepspeed")
            port = str(discovery.free_port())
            start = [str(launcher), "--num_gpus", str(self.sweep.ranks), "--master_port", port, str(TRAIN)]
        settings = [part for override in run.overrides for part in ("--set", override)]
        files = ["--recipe", self.sweep.recipe, "--ds_config", self.sweep.ds_config]
        return [*start, *files, "--out", str(self.folder / run.name), *settings]

    def _cores(self, slot: int) -> Callable[[], None] | None:
        """Return what ties a new process to its share of the cores, so that runs side by side do not compete."""
        if self.sweep.jobs == 1 or not hasattr(os, "sched_setaffinity"):
            return None
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[slot :: self.sweep.jobs] or cores
        return lambda: os.sched_setaffinity(0, mine)

    def _devices(self, slot: int) -> dict[str, str]:
        """Return the variable that gives a run its own GPUs."""
        import torch

        if self.sweep.jobs == 1 or not torch.cuda.is_available():
            return {}
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        every = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
        mine = every[slot * self.sweep.ranks : (slot + 1) * self.sweep.ranks]
        if len(mine) < self.sweep.ranks:
            raise UserError(
                f"jobs {self.sweep.jobs} x ranks {self.sweep.ranks} exceed the {len(every)} GPUs; lower jobs"
            )
        return {"CUDA_VISIBLE_DEVICES": ",".join(mine)}


def last_line(path: Path) -> str:
    """Return what a run said last, its errors before anything else."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    errors = [line for line in lines if line.startswith("error: ")]
    return next(iter([*errors[-1:], *[line for line in reversed(lines) if line.strip()]]), "it said nothing")


def _lock(folder: Path) -> IO | None:
    """Return an open, locked file, or None while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
