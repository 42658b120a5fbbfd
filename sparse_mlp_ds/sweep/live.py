"""A table of a sweep while its runs go: what is finished, and how far the others are."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.log.console import format_duration
from sparse_mlp_ds.sweep.execute import Execution, is_finished
from sparse_mlp_ds.sweep.plan import Sweep, SweepRun
from sparse_mlp_ds.sweep.results import cell
from sparse_mlp_ds.sweep.time_left import last_record

Results = dict[str, dict[str, Any]]
"""Finished run, by name -> stage -> metrics."""
SECONDS = 2.0
"""Time between two looks at the runs."""


@contextmanager
def live_table(
    sweep: Sweep, runs: list[SweepRun], execution: Execution, console: Console, recorded: Results | None = None
) -> Iterator[None]:
    """Show the table below what is printed, on a terminal alone, and remove it at the end.

    Args:
        sweep: The sweep.
        runs: All of its runs.
        execution: Executes them.
        console: Of the terminal.
        recorded: What runs have reached that were finished elsewhere.
    """
    if not console.is_terminal:
        yield
        return
    table = LiveTable(sweep, runs, execution, recorded)
    with Live(get_renderable=table.draw, console=console, refresh_per_second=1 / SECONDS, transient=True):
        yield


class LiveTable:
    """Looks at the run folders each time that it is drawn."""

    def __init__(self, sweep: Sweep, runs: list[SweepRun], execution: Execution, recorded: Results | None = None):
        """See `live_table`."""
        self._sweep, self._execution = sweep, execution
        self._results = dict(recorded or {})
        self._settings: dict[str, list[SweepRun]] = {}
        for run in runs:
            self._settings.setdefault(run.setting, []).append(run)

    def draw(self) -> Table:
        """Return the table: for each setting its finished seeds, what they reached, and what its runs do now."""
        rest = self._execution.rest()
        title = f"{self._sweep.name}: {rest}" if rest else self._sweep.name
        table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
        for name in ("setting", "seeds", *self._sweep.metrics, "now"):
            table.add_column(name, justify="right" if name == "seeds" else "left", no_wrap=name == "setting")
        for setting, runs in self._settings.items():
            finished = [self._results[run.name] for run in runs if self._is_finished(run)]
            reached = [cell(metric, _values(finished, metric)) for metric in self._sweep.metrics]
            now = "\n".join(text for run in runs if (text := self._now(run)))
            table.add_row(setting, f"{len(finished)}/{len(runs)}", *reached, now)
        return table

    def _is_finished(self, run: SweepRun) -> bool:
        """Return whether a run is finished, and read its results once."""
        folder = self._execution.folder
        with suppress(OSError, ValueError, KeyError, UserError):  # which are the sweep's to explain, not the table's
            if run.name not in self._results and run not in self._execution.running and is_finished(folder, run):
                summary = json.loads((folder / run.name / "summary.json").read_text(encoding="utf-8"))
                self._results[run.name] = {stage["name"]: stage["metrics"] for stage in summary["stages"]}
        return run.name in self._results

    def _now(self, run: SweepRun) -> str:
        """Return what a run does now; an empty text if it waits or is finished."""
        for state, runs in (("failed", self._execution.failed), ("stopped", self._execution.stopped)):
            if run in runs:
                return f"seed {run.seed} {state}"
        if run not in self._execution.running:
            return ""
        record = last_record(self._execution.folder / run.name / "metrics.jsonl")
        if record is None:
            return f"seed {run.seed} starts"
        left = format_duration(record["eta_seconds"])
        return f"seed {run.seed} {record['stage']} epoch {record['epoch']:.1f} loss {record['loss']:.3f} eta {left}"


def _values(finished: list[dict[str, Any]], metric: str) -> list[float]:
    """Return the values of a metric, STAGE.METRIC, of the runs that have it."""
    stage, _, name = metric.partition(".")
    return [stages[stage][name] for stages in finished if name in stages.get(stage, {})]
