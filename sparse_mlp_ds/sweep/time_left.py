"""How long a sweep will still take, from the runs that are finished and from how far the others are."""

import heapq
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sparse_mlp_ds.config.stages import TrainingStage
from sparse_mlp_ds.sweep.plan import SweepRun

_TAIL = 1 << 16  # bytes of metrics.jsonl that are read, from its end


class TimeLeft:
    """Knows how long runs of each setting took, and since when the others run."""

    def __init__(self, folder: Path, jobs: int, seconds: Mapping[str, Sequence[float]]):
        """Start from durations that are known already.

        Args:
            folder: Folder of the sweep.
            jobs: Number of runs at the same time.
            seconds: Setting -> durations of its finished runs.
        """
        self._folder, self._jobs = folder, jobs
        self._seconds = {setting: list(one) for setting, one in seconds.items()}
        self._started: dict[str, float] = {}

    def begin(self, run: SweepRun) -> None:
        """Note that a run starts now."""
        self._started[run.name] = time.monotonic()

    def end(self, run: SweepRun) -> None:
        """Note that a run is finished."""
        if run.name in self._started:
            elapsed = time.monotonic() - self._started.pop(run.name)
            self._seconds.setdefault(run.setting, []).append(elapsed)

    def estimate(self, running: Sequence[SweepRun], waiting: Sequence[SweepRun]) -> float | None:
        """Return the seconds until all runs are done; None as long as nothing is known.

        A run takes as long as those of its setting did on average or, if none is finished, those of all settings. As
        long as none is finished at all, a run of one stage tells its own time.
        """
        now = time.monotonic()
        elapsed = {run.name: now - self._started.get(run.name, now) for run in running}
        known = self._seconds or self._as_they_say(running, elapsed)
        if not known:
            return None
        overall = fmean(seconds for own in known.values() for seconds in own)
        takes = {run.name: fmean(known.get(run.setting) or [overall]) for run in (*running, *waiting)}
        left = [max(takes[run.name] - elapsed[run.name], 0.0) for run in running]
        return until_done(left, [takes[run.name] for run in waiting], self._jobs)

    def _as_they_say(self, running: Sequence[SweepRun], elapsed: Mapping[str, float]) -> dict[str, list[float]]:
        """Return how long running runs will have taken, by setting, as far as they tell."""
        found: dict[str, list[float]] = {}
        for run in running:
            stages = [stage for stage in run.recipe.stages.values() if isinstance(stage, TrainingStage)]
            record = last_record(self._folder / run.name / "metrics.jsonl")
            if record and len(stages) == 1:
                found.setdefault(run.setting, []).append(elapsed[run.name] + record["eta_seconds"])
        return found


def until_done(running: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """Return the seconds until the last of all runs ends, if each that waits starts as soon as a place is free.

    Args:
        running: Seconds that each run which has started still takes.
        waiting: Seconds that each of the others takes, in their order.
        jobs: Number of places.
    """
    places = [*running, *[0.0] * (jobs - len(running))]
    heapq.heapify(places)
    for seconds in waiting:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)


def last_record(path: Path) -> dict[str, Any] | None:
    """Return the last record of a log step in a metrics.jsonl; None if there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # a line that is being written, or the end of one
            continue
        if isinstance(record, dict) and {"stage", "epoch", "loss", "eta_seconds"} <= record.keys():
            return record
    return None
