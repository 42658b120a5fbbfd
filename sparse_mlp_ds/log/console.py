"""The progress line of rank 0: printed at every log step, and a live bar below it on a terminal."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class ProgressLine:
    """Shows a stage's records and how far it is."""

    def __init__(self, stage: str, done: int, total: int):
        """done, total: steps of the stage."""
        self.stage, self.total = stage, total
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        self._task = self._bar.add_task(stage, completed=done, total=total)
        self._live = sys.stdout.isatty()
        if self._live:
            self._bar.start()

    def step(self, done: int) -> None:
        """Move the bar."""
        if self._live:
            self._bar.update(self._task, completed=done)

    def show(self, done: int, record: dict[str, Any]) -> None:
        """Print one record as one line."""
        say(line(self.stage, done, self.total, record))

    def close(self) -> None:
        """Remove the bar."""
        if self._live:
            self._bar.stop()


def say(text: str) -> None:
    """Print a line at once; on a terminal a running bar stays below it."""
    print(text, flush=True)


def line(stage: str, done: int, total: int, record: dict[str, Any]) -> str:
    """Return the dense line: step, percent, loss, rate, throughput, expert load, time left."""
    parts = [
        f"{stage} {done:>{len(str(total))}}/{total} {100 * done // total:3d}%",
        f"loss {record['loss']:.3f}",
        f"lr {record['lr']:.1e}",
        f"grad {record['grad_norm']:.2f}",
        f"{record['images_per_second']:.0f} img/s",
    ]
    load = [value for key, value in record.items() if key.endswith("/load_cv")]
    if load:
        dropped = [value for key, value in record.items() if key.endswith("/dropped")]
        dead = sum(value for key, value in record.items() if key.endswith("/dead"))
        experts = f"experts cv {max(load):.2f} drop {100 * sum(dropped) / len(dropped):.1f}%"
        parts.append(f"{experts} dead {dead}" if dead else experts)
    if "knn_top1" in record:
        parts.append(f"knn {100 * record['knn_top1']:.1f}%")
    if bad := sum(value for key, value in record.items() if key.startswith("bad/")):
        parts.append(f"bad {bad}")
    if record.get("skipped_steps"):
        parts.append(f"skipped {record['skipped_steps']}")
    parts += [f"wait {100 * record['data_wait']:.0f}%", f"eta {duration(record['eta_seconds'])}"]
    return " | ".join(parts)


def duration(seconds: float) -> str:
    """Return h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def final_table(summary: dict[str, Any], folder: str) -> None:
    """Print what every stage reached, and where the run lies."""
    table = Table(title=f"{summary['recipe']}: {summary['world_size']} ranks, ep_size {summary['ep_size']}, "
                        f"ZeRO-{summary['zero_stage']}")  # fmt: skip
    for column in ("stage", "steps", "images", "time", "result"):
        table.add_column(column, justify="left" if column in ("stage", "result") else "right")
    for stage in summary["stages"]:
        result = "  ".join(f"{name} {_figure(name, value)}" for name, value in stage["metrics"].items())
        table.add_row(stage["name"], str(stage["steps"]), str(stage["images"]), duration(stage["seconds"]), result)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    say(f"run folder: {folder}")


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.2f} %" if "top" in name else f"{value:.4g}"
