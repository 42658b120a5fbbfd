"""The tables of a sweep as Markdown and for programs, and the files with them and the plots."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.log.console import format_duration
from sparse_mlp_ds.sweep import curves, plot
from sparse_mlp_ds.sweep.intervals import Interval
from sparse_mlp_ds.sweep.page import Compared, Page, RoutingRow, macs_share
from sparse_mlp_ds.sweep.results import cell, is_share


def write(page: Page, folder: Path, name: str) -> list[str]:
    """Write NAME.md and the plots into a folder, and return the files' names. Raises OSError."""
    table, metric = page.rows, page.about.metrics[0]
    files.replace(folder / f"{name}.md", markdown(page))
    pictures = {
        f"{name}.svg": lambda: plot.figure(page.about, table) if any(row.values[metric] for row in table) else None,
        f"{name}.differences.svg": lambda: plot.differences(page),
        f"{name}.curves.svg": lambda: curves.figure(page),
    }
    return [f"{name}.md", *(file for file, build in pictures.items() if plot.draw(build, folder / file))]


def as_json(page: Page) -> dict[str, Any]:
    """Return rows, differences, routing and remarks for programs."""
    differences = [vars(one) | {"difference": vars(one.difference)} for one in page.differences]
    routing = [vars(one) for one in page.routing]
    rows = [vars(row) for row in page.rows]
    return {"rows": rows, "differences": differences, "routing": routing, "remarks": page.remarks}


def markdown(page: Page) -> str:
    """Return the tables as Markdown.

    The first one has the mean over seeds; if several are finished, standard deviation and range too. Below it are the
    differences to the first setting and the routing, if there are any, and what to mind.
    """
    parts = [_settings(page)]
    if page.differences:
        first = page.rows[0].setting
        text = (
            f"Difference to {first}, paired by seed, with the 95 % interval of the mean over seeds (Student's t) and "
        )
        parts += [f"{text}over held-out {page.samples} (bootstrap); of accuracies, in points:\n", _differences(page)]
    if page.routing:
        parts += ["Routing at the end of training, mean over layers and seeds:\n", _routing(page.routing)]
    return "\n".join([*parts, *(f"{remark}\n" for remark in page.remarks)])


def _settings(page: Page) -> str:
    metrics, first = page.about.metrics, page.rows[0]
    lines = [["setting", "params", "MACs", *metrics, "seeds", "time of a run"]]
    for row in page.rows:
        done, share = len(row.seconds), macs_share(row, first)
        lines.append(
            [
                row.setting,
                f"{row.params / 1e6:.2f} M",
                f"{row.macs / 1e6:.{1 if row.macs >= 1e7 else 2}f} M" + (f" ({100 * share:+.1f} %)" if share else ""),
                *(cell(metric, list(row.values[metric].values())) for metric in metrics),
                str(done) if done == row.seeds else f"{done} of {row.seeds}",
                format_duration(mean(row.seconds.values())) if done else "-",
            ]
        )
    return _table(lines)


def _differences(page: Page) -> str:
    lines = [["setting", "metric", "difference", "over seeds", f"over {page.samples}", "seeds", "to mind"]]
    for one in page.differences:
        over = [shown_interval(one, interval) for interval in (one.difference.over_seeds, one.difference.over_images)]
        seeds = str(len(one.difference.by_seed))
        lines.append(
            [one.setting, one.metric, shown(one.metric, one.difference.mean), *over, seeds, ", ".join(one.marks)]
        )
    return _table(lines, texts=2, last_is_text=True)


def _routing(rows: Sequence[RoutingRow]) -> str:
    lines = [["setting", "stage", "mixture", "load CV", "dropped", "dead experts", "gate entropy"]]
    for one in rows:
        figures = [f"{one.load_cv:.3f}", f"{100 * one.dropped:.1f} %", f"{one.dead:.1f}", f"{one.entropy:.2f}"]
        lines.append([one.setting, one.stage, one.mixture, *figures])
    return _table(lines, texts=3)


def shown(metric: str, difference: float) -> str:
    """Return a difference with its sign; of accuracies, in points."""
    difference += 0.0  # -0.0 becomes 0.0
    return f"{100 * difference:+.2f}" if is_share(metric) else f"{difference:+.4g}"


def shown_interval(one: Compared, interval: Interval | None) -> str:
    """Return an interval as text; `-` if there is none."""
    return f"{shown(one.metric, interval[0])} .. {shown(one.metric, interval[1])}" if interval else "-"


def _table(lines: Sequence[Sequence[str]], texts: int = 1, last_is_text: bool = False) -> str:
    """Return a Markdown table. lines: the head first. texts: number of first columns that are no numbers."""
    numbers = len(lines[0]) - texts - last_is_text
    rule = [*["---"] * texts, *["---:"] * numbers, *["---"] * last_is_text]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (lines[0], rule, *lines[1:]))
