"""What a rank prints: lines with the time in front, the progress of a stage, and the table at the end of a run."""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sparse_mlp_ds.log.train_log import Uncopied, copy_beside_a_bar

NARROW = 80 - len("00:00:00 ")
"""Characters of a line of 80 columns behind the time."""
MEASURED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("val", "val/top1", lambda share: f"{100 * share:.1f}%"),
    ("knn", "knn_top1", lambda share: f"{100 * share:.1f}%"),
    ("ppl", "val/perplexity", lambda perplexity: f"{perplexity:.1f}"),
    ("F1", "val/f1", lambda share: f"{100 * share:.1f}%"),
)
"""What was measured on held-out samples: its name in a line, its name in a record, and how it is written."""
SPEEDS = (("images_per_second", "img/s"), ("sequences_per_second", "seq/s"))
"""Names of speeds in a record, and their units in a line."""
PERCENT = ("f1", "exact_match")
"""Results that are shares, besides those with `top` in their names."""
STARVED = 0.1
"""Share of time spent waiting for data from which on that is shown before anything that can be left out."""


class ProgressLine:
    """Prints the records of one stage as lines; on a terminal, a bar below them shows how far the stage is."""

    def __init__(self, stage: str, done: int, total: int):
        """Start the bar if the output is a terminal.

        Args:
            stage: Name of the stage.
            done: Optimizer steps of the stage that an earlier try has taken.
            total: Optimizer steps of the stage.
        """
        self.stage, self.total = stage, total
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True,
            console=Console(file=Uncopied(sys.stdout)),  # type: ignore[arg-type]  # it passes on what it lacks
        )  # fmt: skip
        self._task = self._bar.add_task(stage, completed=done, total=total)
        self._measured: dict[str, Any] = {}
        self._live = _is_terminal()
        if self._live:
            self._bar.start()
            copy_beside_a_bar()

    def step(self, done: int) -> None:
        """Move the bar to `done` optimizer steps."""
        if self._live:
            self._bar.update(self._task, completed=done)

    def show(self, done: int, record: dict[str, Any]) -> None:
        """Print the record of the stage's step `done` as one line, with what was measured last on held-out images."""
        self._measured |= {key: record[key] for _, key, _ in MEASURED if key in record}
        say(progress_text(self.stage, done, self.total, self._measured | record, _room()))

    def close(self) -> None:
        """Remove the bar."""
        if self._live:
            self._bar.stop()


def say(text: str) -> None:
    """Print text at once, each line with the local time in front (`12:04:31 `).

    On a terminal a running bar stays below the text. Tables, errors and what commands answer are printed without times.
    """
    now = time.strftime("%H:%M:%S")
    show("\n".join(f"{now} {line}" for line in text.splitlines()))


def show(text: str) -> None:
    """Print text at once. What cannot be printed is dropped: a full disk or a closed terminal must not end a run."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream object itself is closed
        print(text, flush=True)


def _room() -> int:
    """Return how many characters a line has behind the time: those of the terminal, or of COLUMNS, at least 80."""
    return max(shutil.get_terminal_size((80, 24)).columns - 80, 0) + NARROW


def _is_terminal() -> bool:
    """Say whether standard output is a terminal; without any (`>&-`), Python has None for it."""
    return sys.stdout is not None and sys.stdout.isatty()


def progress_text(stage: str, done: int, total: int, record: dict[str, Any], width: int = NARROW) -> str:
    """Return a record as one line: what matters most of it, as far as there is room.

    Args:
        stage: Name of the stage.
        done: Optimizer steps of the stage so far.
        total: Optimizer steps of the stage.
        record: What `metrics.jsonl` holds of the step.
        width: Number of characters that fit.
    """
    parts = _parts(stage, done, total, record)
    chosen: list[int] = []
    for number in sorted(range(len(parts)), key=lambda number: parts[number][0]):
        taken = sorted([*chosen, number])
        if not chosen or len(" ".join(parts[n][1] for n in taken)) <= width:
            chosen = taken
    texts = [parts[number][1] for number in chosen]
    lines = [separator.join(texts) for separator in (" | ", "  ", " ")]
    return next((line for line in lines if len(line) <= width), lines[-1])


def _parts(stage: str, done: int, total: int, record: dict[str, Any]) -> list[tuple[int, str]]:
    """Return what can be said of a record, in the order of the line, each with its place by importance, 0 first."""
    parts = [(0, f"{stage} {done:>{len(str(total))}}/{total}"), (5, f"ep {record['epoch']:.1f}")]
    parts.append((1, f"loss {record['loss']:.3f}"))
    parts += [(2, f"{name} {written(record[key])}") for name, key, written in MEASURED if key in record]
    parts += [(9, f"lr {record['lr']:.1e}"), (10, f"grad {record['grad_norm']:.2f}")]
    parts += [(7, f"{record[key]:.0f} {unit}") for key, unit in SPEEDS if key in record]
    if "gpu/memory_gib" in record:
        parts.append((6, f"{record['gpu/memory_gib']:.0f}GiB"))
    if "gpu/mfu" in record:
        parts.append((6, f"mfu {100 * record['gpu/mfu']:.0f}%"))
    parts += _experts_parts(record)
    if bad := sum(value for key, value in record.items() if key.startswith("bad/")):
        parts.append((3, f"bad {bad}"))
    if record.get("skipped_steps"):
        parts.append((3, f"skipped {record['skipped_steps']}"))
    starved = record["data_wait"] >= STARVED
    parts.append((3 if starved else 11, f"wait {100 * record['data_wait']:.0f}%"))
    parts.append((4, f"eta {format_duration(record['eta_seconds'])}"))
    return parts


def format_duration(seconds: float) -> str:
    """Return a duration as h:mm:ss, or as m:ss below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def final_table(summary: dict[str, Any], folder: str) -> None:
    """Print a table of what every stage reached, and the run folder.

    summary: what `summary.json` holds.
    """
    table = Table(title=f"{summary['recipe']}: {summary['world_size']} ranks, ep_size {summary['ep_size']}, "
                        f"ZeRO-{summary['zero_stage']}")  # fmt: skip
    samples = "sequences" if any("sequences" in stage for stage in summary["stages"]) else "images"
    for column in ("stage", "steps", samples, "time", "result"):
        table.add_column(column, justify="left" if column in ("stage", "result") else "right")
    for stage in summary["stages"]:
        result = "  ".join(metric_text(name, value) for name, value in stage["metrics"].items())
        table.add_row(
            stage["name"], str(stage["steps"]), str(stage[samples]), format_duration(stage["seconds"]), result
        )
    drawn = io.StringIO()
    terminal = _is_terminal()
    Console(file=drawn, width=shutil.get_terminal_size().columns if terminal else 120, force_terminal=terminal).print(
        table
    )
    show(drawn.getvalue().rstrip("\n"))
    say(f"run folder: {folder}")


def _experts_parts(record: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the most uneven load, the share of dropped choices and the experts that got nothing; [] without MoE."""
    load = [value for key, value in record.items() if key.endswith("/load_cv")]
    if not load:
        return []
    dropped = [value for key, value in record.items() if key.endswith("/dropped")]
    dead = sum(value for key, value in record.items() if key.endswith("/dead"))
    parts = [(8, f"drop {100 * sum(dropped) / len(dropped):.1f}%"), (8, f"experts cv {max(load):.2f}")]
    return [*parts, (3, f"dead {dead}")] if dead else parts


def metric_text(name: str, value: float) -> str:
    """Return a result as `NAME VALUE`: accuracies in percent, everything else as a plain number."""
    return f"{name} {100 * value:.2f} %" if "top" in name or name in PERCENT else f"{name} {value:.4g}"
