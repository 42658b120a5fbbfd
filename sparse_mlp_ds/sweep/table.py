"""What a sweep's runs reached so far: one table as markdown and JSON, and a plot."""

import fcntl
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from sparse_mlp_ds import files
from sparse_mlp_ds.log.console import duration
from sparse_mlp_ds.models import macs
from sparse_mlp_ds.sweep.execute import is_finished
from sparse_mlp_ds.sweep.plan import Run, Sweep


@dataclass(frozen=True)
class Row:
    """One setting, over its seeds."""

    setting: str
    params: int
    macs: int
    values: dict[str, dict[int, float]]
    """Metric -> seed -> value, of finished runs."""
    seconds: dict[int, float]
    """Training time by seed."""
    seeds: int
    """Asked for."""


def rows(sweep: Sweep, runs: Sequence[Run], folder: Path) -> list[Row]:
    """Return a row for each setting, in the sweep's order."""
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(run.setting, []).append(run)
    return [_row(sweep, setting, of_seeds, folder) for setting, of_seeds in by_setting.items()]


def write(sweep: Sweep, runs: Sequence[Run], folder: Path) -> str:
    """Write table.md, table.json and table.svg into the sweep's folder; return the markdown.

    One process at a time looks and writes: of a batch system's tasks that end together, the last one sees all runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".table.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = rows(sweep, runs, folder)
        text = markdown(sweep, table)
        files.replace(folder / "table.md", text)
        record = {"sweep": sweep.model_dump(mode="json"), "rows": [vars(row) for row in table]}
        files.replace(folder / "table.json", json.dumps(record, indent=1))
        if any(row.values[sweep.metrics[0]] for row in table):
            draw(sweep, table, folder / "table.svg")
    return text


def markdown(sweep: Sweep, table: Sequence[Row]) -> str:
    """Return the table: mean over seeds, and the range where there are several."""
    head = ["setting", "params", "MACs", *sweep.metrics, "seeds", "time of a run"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in table:
        done = len(row.seconds)
        lines.append(
            [
                row.setting,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e6:.1f} M",
                *(_cell(metric, list(row.values[metric].values())) for metric in sweep.metrics),
                str(done) if done == row.seeds else f"{done} of {row.seeds}",
                duration(mean(row.seconds.values())) if done else "-",
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def draw(sweep: Sweep, table: Sequence[Row], path: Path) -> None:
    """Draw the first metric: a dot for each seed, a bar at their mean."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    metric = sweep.metrics[0]
    scale = 100 if _is_share(metric) else 1
    with rc_context({"svg.hashsalt": "sparse_mlp_ds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7, 0.8 + 0.32 * len(table)), layout="constrained")
        axes = FigureCanvasSVG(figure).figure.subplots()
        for place, row in enumerate(table):
            values = [scale * value for value in row.values[metric].values()]
            axes.plot(values, [place] * len(values), "o", color="#4477aa", alpha=0.6, markersize=6)
            if values:
                axes.plot([mean(values)], [place], "|", color="#222222", markersize=16, markeredgewidth=2)
        axes.set_yticks(range(len(table)), [row.setting for row in table])
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(f"{metric}, %" if scale == 100 else metric)
        axes.set_title(f"{sweep.name}: each seed, and the mean", loc="left", fontsize=10)
        partial = path.with_name(f".{path.name}.partial")
        figure.savefig(partial, format="svg", metadata={"Date": None})
    partial.replace(path)


def _row(sweep: Sweep, setting: str, runs: Sequence[Run], folder: Path) -> Row:
    cost = macs.cost(runs[0].recipe.spec)
    values: dict[str, dict[int, float]] = {metric: {} for metric in sweep.metrics}
    seconds = {}
    for run in runs:
        if not is_finished(folder, run):
            continue
        stages = json.loads((folder / run.name / "summary.json").read_text())["stages"]
        seconds[run.seed] = sum(stage["seconds"] for stage in stages)
        for metric in sweep.metrics:
            stage, _, name = metric.partition(".")
            reached = next(entry["metrics"] for entry in stages if entry["name"] == stage)
            if name in reached:
                values[metric][run.seed] = reached[name]
    return Row(setting, cost.params, cost.macs, values, seconds, len(runs))


def _cell(metric: str, values: list[float]) -> str:
    if not values:
        return "-"
    show = (lambda v: f"{100 * v:.2f} %") if _is_share(metric) else (lambda v: f"{v:.4g}")
    spread = f" ({show(min(values)).removesuffix(' %')} .. {show(max(values)).removesuffix(' %')})"
    return show(mean(values)) + (spread if len(values) > 1 else "")


def _is_share(metric: str) -> bool:
    return "top" in metric
