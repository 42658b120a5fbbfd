"""The plots of a sweep: how far each setting is above the lowest one, and its difference to the first setting."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from sparse_mlp_ds import files
from sparse_mlp_ds.sweep.page import About, Page
from sparse_mlp_ds.sweep.results import Row, cell, is_share

if TYPE_CHECKING:  # only drawing waits for the import of matplotlib
    from matplotlib.figure import Figure

LEAST_POINTS, LEAST_SHARE = 1.0, 0.02
"""Shortest axis, in points of an accuracy, and as a share of a different metric: smaller differences look small."""


def draw(build: "Callable[[], Figure | None]", path: Path) -> bool:
    """Write a picture as SVG, and return whether there is one; the same figures always give the same file.

    build: makes the picture, or returns None. Raises OSError.
    """
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "sparse_mlp_ds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        if (drawn := build()) is None:
            return False
        svg = io.StringIO()
        drawn.savefig(svg, format="svg", metadata={"Date": None})
    files.replace(path, svg.getvalue())
    return True


def figure(about: About, table: Sequence[Row]) -> "Figure":
    """Return the picture of a sweep's first metric.

    A bar is the difference between the setting's mean and the lowest mean, so that bars begin at no difference. Its
    error bar is one standard deviation over the seeds, where there are several; each seed is a dot. The figures
    themselves stand at the right.

    Args:
        about: Name and metrics of the sweep.
        table: One row for each setting; at least one has the metric.
    """
    from matplotlib.figure import Figure

    metric = about.metrics[0]
    scale = 100 if is_share(metric) else 1
    values = [[scale * value for value in row.values[metric].values()] for row in table]
    lowest = min(mean(one) for one in values if one)
    texts = [cell(metric, list(row.values[metric].values())) for row in table]
    letters = max(len(row.setting) for row in table) + max(map(len, texts))
    drawn = Figure(figsize=(5 + 0.08 * letters, 1.0 + 0.34 * len(table)), layout="constrained")
    axes = drawn.subplots()
    for height, one in enumerate(values):
        if one:
            spread = stdev(one) if len(one) > 1 else None
            axes.barh(height, mean(one) - lowest, 0.6, color="#9fbfd9", xerr=spread, ecolor="#222222", capsize=3)
            dots = [value - lowest for value in one]
            axes.plot(dots, [height] * len(dots), "o", color="#1f4e79", markersize=3.5, clip_on=False)
    ends = [value - lowest for one in values for value in (*one, *_ends(one))]
    least = LEAST_POINTS if scale == 100 else LEAST_SHARE * (abs(lowest) or 1.0)
    right, left = max(*ends, least), min(*ends, 0.0)
    axes.set_xlim(left - 0.05 * (right - left) * (left < 0), right + 0.05 * (right - left))
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(table)), [row.setting for row in table])
    axes.set_ylim(len(table) - 0.5, -0.5)
    figures = axes.secondary_yaxis("right")
    figures.set_yticks(range(len(table)), texts)
    figures.tick_params(length=0)
    figures.spines["right"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    unit = "points" if scale == 100 else metric.rpartition(".")[2]
    axes.set_xlabel(f"{metric}: above the lowest setting, {unit}")
    axes.set_title(f"{about.name}: mean, standard deviation and seeds", loc="left", fontsize=10)
    return drawn


def differences(page: Page) -> "Figure | None":
    """Return the picture of the differences of the first metric to the first setting; None if no runs are paired.

    A circle is the mean over seeds, full if it is significant. The thick line is the 95 % interval over seeds, the thin
    one below it that over held-out samples; each seed is a dot.
    """
    metric = page.about.metrics[0]
    compared = [one for one in page.differences if one.metric == metric]
    if not compared:
        return None
    from matplotlib.figure import Figure

    scale = 100 if is_share(metric) else 1
    letters = max(len(one.setting) for one in compared)
    drawn = Figure(figsize=(5 + 0.08 * letters, 1.3 + 0.4 * len(compared)), layout="constrained")
    axes = drawn.subplots()
    for height, one in enumerate(compared):
        difference = one.difference
        for interval, below, width in ((difference.over_seeds, 0.0, 2.5), (difference.over_images, 0.2, 1.0)):
            if interval:
                ends = [scale * end for end in interval]
                axes.plot(ends, [height + below] * 2, color="#1f4e79", linewidth=width, solid_capstyle="butt")
        seeds = [scale * value for value in difference.by_seed.values()]
        axes.plot(seeds, [height - 0.2] * len(seeds), "o", color="#9fbfd9", markersize=3)
        face = "#1f4e79" if difference.is_significant else "white"
        axes.plot(scale * difference.mean, height, "o", color="#1f4e79", markerfacecolor=face, zorder=3)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(compared)), [one.setting for one in compared])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    what = f"{metric}: difference to {page.rows[0].setting}, {'points' if scale == 100 else 'same unit'}"
    axes.set_xlabel(f"{what}\nthick: over seeds, thin: over {page.samples}; full circle: significant")
    axes.set_title(
        f"{page.about.name}: 95 % intervals",
        loc="left",
        fontsize=10,
    )
    return drawn


def _ends(values: Sequence[float]) -> tuple[float, ...]:
    """Return both ends of the error bar of a setting's values; none if there is no bar."""
    if len(values) < 2:
        return ()
    return mean(values) - stdev(values), mean(values) + stdev(values)
