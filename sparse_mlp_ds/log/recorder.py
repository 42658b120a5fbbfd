"""The records of one training stage: what metrics.jsonl, TensorBoard, wandb and the progress line show of a step."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_mlp_ds.log.console import ProgressLine
from sparse_mlp_ds.log.sinks import Sink


class Recorder:
    """Writes a record at log steps, after the first step of this process, and after the last step of the stage."""

    def __init__(self, stage: str, steps: range, every_steps: int, sinks: Sequence[Sink], line: ProgressLine | None):
        """Start the clock from which the time left is estimated.

        Args:
            stage: Name of the stage.
            steps: The steps that this process will take, counted within the stage.
            every_steps: Steps between two records.
            sinks: Where records go; empty on all ranks but 0.
            line: The progress line of the terminal; None on all ranks but 0.
        """
        self._stage, self._steps, self._every, self._sinks, self._line = stage, steps, every_steps, sinks, line
        self._began = time.perf_counter()

    def is_due(self, done: int) -> bool:
        """Say whether a record belongs to the moment when `done` steps of the stage are taken."""
        return done % self._every == 0 or done in (self._steps.start + 1, self._steps.stop)

    def move(self, done: int) -> None:
        """Move the progress bar to `done` steps of the stage."""
        if self._line:
            self._line.step(done)

    def write(self, done: int, step: int, epoch: float, figures: Mapping[str, Any]) -> None:
        """Write one record.

        Args:
            done: Steps of the stage taken so far.
            step: Steps of the whole run taken so far.
            epoch: Epochs of the stage seen so far.
            figures: What was measured since the last record, by name.
        """
        pace = (time.perf_counter() - self._began) / (done - self._steps.start)
        record = {"stage": self._stage, "step": step, "epoch": epoch, **figures}
        record |= {"eta_seconds": pace * (self._steps.stop - done), "time": time.time()}
        for sink in self._sinks:
            sink.write(record)
        if self._line:
            self._line.show(done, record)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._line:
            self._line.close()
