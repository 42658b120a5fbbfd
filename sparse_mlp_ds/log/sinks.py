"""Where records go. metrics.jsonl is the one that is always complete; the others can be made from it."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from sparse_mlp_ds.recipe import Log


class Sink(Protocol):
    """Takes records as they come."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record; must not block training."""

    def close(self) -> None:
        """Finish."""


class Jsonl:
    """metrics.jsonl: one line per record, on disk when `write` returns."""

    def __init__(self, path: Path):
        self._file = path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        """Append and flush; a killed process loses at most the line it was writing."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, step: int):
        """step: where the run resumes; later points of an earlier try are hidden."""
        from torch.utils.tensorboard import SummaryWriter  # a second of import, on rank 0 only

        self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def write(self, record: dict[str, Any]) -> None:
        """Add each figure under STAGE/NAME."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(f"{record['stage']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Follower:
    """wandb, fed by a process that reads metrics.jsonl: nothing is handed over here, so nothing can block."""

    def __init__(self, folder: Path, log: Log, name: str):
        from sparse_mlp_ds.log.wandb_follow import WandbFollower

        self._follower = WandbFollower(folder, log.wandb, name)

    def write(self, record: dict[str, Any]) -> None:
        """Do nothing: the follower reads the file."""

    def close(self) -> None:
        """Let it send what is left, for a bounded time."""
        self._follower.close()


def open_sinks(folder: Path, log: Log, name: str, step: int) -> list[Sink]:
    """Open what the recipe asks for; records of steps after `step`, from a try that was killed, are taken back."""
    metrics = folder / "metrics.jsonl"
    _truncate(metrics, step)
    sinks: list[Sink] = [Jsonl(metrics)]
    if log.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", step))
    if log.wandb.mode != "disabled":
        sinks.append(Follower(folder, log, name))
    return sinks


def _truncate(metrics: Path, step: int) -> None:
    """Keep the complete records up to `step`; the file is replaced whole, so a stop here loses nothing."""
    if not metrics.exists():
        return
    kept = []
    for text in metrics.read_text().splitlines():
        try:
            if json.loads(text)["step"] <= step:
                kept.append(text + "\n")
        except ValueError:  # the line that a killed process was writing
            continue
    partial = metrics.with_name(f".{metrics.name}.{os.getpid()}")
    partial.write_text("".join(kept))
    partial.replace(metrics)
