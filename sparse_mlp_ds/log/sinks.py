"""Where the records of a run are written. metrics.jsonl is always complete; the others can be made from it."""

import contextlib
import io
import json
import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from sparse_mlp_ds import files
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.log import hparams, results
from sparse_mlp_ds.log.append_file import AppendFile
from sparse_mlp_ds.log.console import say

NO_CURVES = ("step", "epoch", "eta_seconds", "time")
"""Entries of a record that say when it was written; a curve of them shows nothing."""


class Sink(Protocol):
    """Something that takes the record of every log step."""

    def write(self, record: dict[str, Any]) -> None:
        """Take one record; must not block training."""

    def close(self) -> None:
        """Write what is left and release the resources."""


class JsonlSink:
    """metrics.jsonl: one line of JSON per record, handed to the operating system when `write` returns."""

    def __init__(self, path: Path):
        """Open the file to append to it."""
        self._file = AppendFile(path, say)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a process that is killed loses at most the line it was writing."""
        self._file.append((json.dumps(record) + "\n").encode())

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, step: int):
        """Start a new event file in `folder`.

        TensorBoard's own writer has a thread and a queue: with a full disk the thread ends, and the training process
        waits for ever when the queue is full. Here events are written at once, by the encoder of that package.

        step: the run's optimizer step at which it resumes; points that an earlier try wrote after it are hidden.
        """
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._encoder = event_pb2.Event, summary_pb2.Summary, RecordWriter
        started = time.time()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{started:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendFile(folder / name, say)
        self._add(self._event(wall_time=started, file_version="brain.Event:2"))
        # From this step on, what earlier files of the folder say is replaced; the record of `step` itself stays.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(self._event(wall_time=started, step=step + 1, session_log=start))

        self._start, self._is_described = step, False

    def describe(self, recipe: Recipe) -> None:
        """Add the recipe, as text and as hyperparameters."""
        self._is_described = True
        for summary in hparams.at_start(recipe):
            self._add(self._event(wall_time=time.time(), step=self._start, summary=summary))

    def write(self, record: dict[str, Any]) -> None:
        """Add each figure of a record as a point of the curve STAGE/NAME."""
        values = [
            self._summary.Value(tag=f"{record['stage']}/{name}", simple_value=float(value))
            for name, value in record.items()
            if isinstance(value, (int, float)) and name not in NO_CURVES
        ]
        summary = self._summary(value=values)
        self._add(self._event(wall_time=record.get("time", time.time()), step=record["step"], summary=summary))

    def close(self) -> None:
        """Say that the run is finished, write what is left and close the file."""
        if self._is_described:
            self._add(self._event(wall_time=time.time(), step=self._start, summary=hparams.at_end()))
        self._file.close()

    def _add(self, event: Any) -> None:
        encoded = io.BytesIO()
        self._encoder(encoded).write(event.SerializeToString())
        self._file.append(encoded.getvalue())


class WandbSink:
    """Weights & Biases, fed by a process that reads metrics.jsonl, so that nothing here can block training."""

    def __init__(self, folder: Path, recipe: Recipe):
        """Start the process. folder: the run's."""
        from sparse_mlp_ds.log.wandb_follow import WandbFollower

        settings = recipe.log.wandb
        self._follower = WandbFollower(folder, settings, settings.name or recipe.name)

    def write(self, record: dict[str, Any]) -> None:
        """Pass on what the process has to say; it reads the record from metrics.jsonl."""
        self._follower.look()

    def close(self) -> None:
        """Let the process send what is left, for at most 15 seconds."""
        self._follower.close()


def open_sinks(folder: Path, recipe: Recipe, step: int, finished: Collection[str]) -> list[Sink]:
    """Open the sinks that the recipe asks for.

    What a try that was killed wrote later is removed from metrics.jsonl: records of steps after `step`, and results of
    stages that are not finished.

    Args:
        folder: The run folder.
        recipe: The recipe.
        step: Optimizer steps of the run so far.
        finished: Names of the stages that are finished.
    """
    metrics = folder / "metrics.jsonl"
    _truncate(metrics, step, finished)
    sinks: list[Sink] = [JsonlSink(metrics)]
    if recipe.log.tensorboard:
        tensorboard = TensorBoardSink(folder / "tensorboard", step)
        tensorboard.describe(recipe)
        sinks.append(tensorboard)
    if recipe.log.wandb.mode != "disabled":
        sinks.append(WandbSink(folder, recipe))
    return sinks


def _truncate(metrics: Path, step: int, finished: Collection[str]) -> None:
    """Keep the complete records up to `step`; the file is replaced as a whole, so that a stop here loses nothing."""
    try:
        _truncate_readable(metrics, step, finished)
    except OSError as error:
        text = f"{error.strerror}; records of later steps stay, and may follow a second time"
        say(f"WARNING: {metrics}: {text}")


def _truncate_readable(metrics: Path, step: int, finished: Collection[str]) -> None:
    """Do what `_truncate` says; raises OSError."""
    if not metrics.exists():
        return
    kept, unreadable = [], 0
    lines = metrics.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            record = json.loads(line)
            if record["step"] <= step and (not results.is_result(record) or record["stage"] in finished):
                kept.append(line.decode())
        except (ValueError, KeyError, TypeError):
            unreadable += line is not lines[-1]  # the last one may be what a killed process was writing
    if unreadable:
        say(f"WARNING: {metrics}: {unreadable} damaged lines were removed")
    files.replace(metrics, "".join(kept))
