"""A profile of some steps of a stage: torch.profiler's trace of every rank, and on GPUs what memory was used for."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sparse_mlp_ds.config.log import Profile
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import one_line
from sparse_mlp_ds.log.console import say

FOLDER = "profile"
"""Name of the folder in a run folder."""
_ROWS = 30  # of the table
_ALLOCATIONS = 200_000  # that a memory snapshot remembers


class StepProfiler:
    """Profiles the steps that the recipe names; every failure is only warned about."""

    def __init__(self, settings: Profile | None, folder: Path, stage: str):
        """settings: the recipe's `log.profile`; None profiles nothing. folder: of the run. stage: name of the stage."""
        self._settings, self._folder, self._stage = settings, folder / FOLDER, stage
        self._profiler: Any = None

    def begin_step(self, step: int) -> None:
        """Begin to profile if it is time. step: number of the coming step of the stage, from 1."""
        if self._settings is None or step != self._settings.at:
            return
        activities = [ProfilerActivity.CPU]
        if _on_gpu():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
        try:
            self._profiler = profile(activities=activities, record_shapes=True, profile_memory=True)
            self._profiler.start()
        except RuntimeError as error:  # another profiler is at work
            self._profiler = None
            say(f"WARNING: log.profile: nothing is profiled ({one_line(error, 200)})")

    def end_step(self, step: int) -> None:
        """End the profile if it is time, and write it. step: steps of the stage taken."""
        if self._profiler is None or self._settings is None:
            return
        if step >= self._settings.at + self._settings.steps - 1:
            self._write(f"{self._stage}_steps_{self._settings.at}-{step}_rank_{process_group.rank():05d}")

    def close(self) -> None:
        """Throw away a profile whose steps did not come."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            self._stop(profiler)

    def _write(self, name: str) -> None:
        profiler, self._profiler = self._profiler, None
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(self._stop, profiler)
                self._folder.mkdir(exist_ok=True)
                if _on_gpu():
                    torch.cuda.synchronize()
                    torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}.memory.pickle"))
            profiler.export_chrome_trace(str(self._folder / f"{name}.trace.json.gz"))
            order = "self_cuda_time_total" if _on_gpu() else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=_ROWS)
            (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        except (OSError, RuntimeError) as error:
            say(f"WARNING: {self._folder / name}: the profile was not written ({one_line(error, 200)})")
            return
        if process_group.rank() == 0:
            say(f"profile written: {self._folder / name}.trace.json.gz, for ui.perfetto.dev, and a table, .txt")

    @staticmethod
    def _stop(profiler: Any) -> None:
        profiler.stop()
        if _on_gpu():
            torch.cuda.memory._record_memory_history(enabled=None)


def _on_gpu() -> bool:
    return process_group.device().type == "cuda"
