"""The plot of learning curves: held-out accuracy over steps and over multiply-accumulates, routing below."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.sweep.page import Page
from sparse_mlp_ds.sweep.records import Records
from sparse_mlp_ds.sweep.results import Row

if TYPE_CHECKING:  # only drawing waits for the import of matplotlib
    from matplotlib.figure import Figure

ROUTING = {
    "load_cv": "load CV of experts",
    "dropped": "share of dropped choices",
    "entropy": "gate entropy",
}
"""Routing statistic -> label of its axis."""
TERA = 1e12
"""Multiply-accumulates in one unit of the axis."""
STYLES = {"moe_s": "--", "moe_c": "-"}
"""Mixture -> how its line is drawn."""

Curve = dict[int, list[float]]
"""Step -> the value of each seed."""


def figure(page: Page) -> "Figure | None":
    """Return the picture of the learning curves of the first metric's stage; None if no run was validated in it.

    A line is the mean over the seeds of a setting, and the band around it goes from the lowest to the highest seed.
    Multiply-accumulates are those of the forward passes of all images seen so far; with the backward passes, training
    takes about three times as many.
    """
    stage = page.about.metrics[0].partition(".")[0]
    lines = {row.setting: accuracy(row, stage, page.records) for row in page.rows}
    if not any(len(curve) > 1 for curve in lines.values()):
        return None
    from matplotlib.figure import Figure

    routed = [row for row in page.rows if _mixtures(row, stage, page.records)]
    drawn = Figure(figsize=(10, 7.5 if routed else 4.2), layout="constrained")
    grid = drawn.add_gridspec(2 if routed else 1, 6, height_ratios=[3, 2] if routed else [1])
    steps, macs = drawn.add_subplot(grid[0, :3]), drawn.add_subplot(grid[0, 3:])
    for place, row in enumerate(page.rows):
        curve = {step: [100 * value for value in values] for step, values in lines[row.setting].items()}
        per_step = _macs_per_step(row, stage, page.records)
        _draw(steps, curve, f"C{place % 10}", row.setting)
        _draw(macs, {step * per_step / TERA: values for step, values in curve.items()}, f"C{place % 10}", row.setting)
    steps.set_xlabel("optimizer step of the stage")
    macs.set_xlabel("10¹² multiply-accumulates, forward passes")
    steps.set_ylabel("held-out top-1, %")
    steps.legend(frameon=False, fontsize=8)
    steps.set_title(f"{page.about.name}, {stage}: mean over seeds, lowest and highest", loc="left", fontsize=10)
    for panel, (name, label) in enumerate(ROUTING.items() if routed else ()):
        _draw_routing(drawn.add_subplot(grid[1, 2 * panel : 2 * panel + 2]), page, stage, name, label)
    for axes in drawn.axes:
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def accuracy(row: Row, stage: str, records: Records) -> Curve:
    """Return the held-out accuracy of a setting over the steps of a stage, the end of the stage included.

    Only steps at which every finished seed was validated count: a mean over fewer would jump.
    """
    found: Curve = {}
    seeds = list(row.seconds)
    for seed in seeds:
        points = {point.step: point.top1 for point in records.stage((row.setting, seed), stage).curve}
        result = records.of((row.setting, seed)).get(stage)
        if result and result.top1 is not None and result.steps:
            points[result.steps] = result.top1
        for step, value in points.items():
            found.setdefault(step, []).append(value)
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(seeds)}


def _macs_per_step(row: Row, stage: str, records: Records) -> float:
    """Return the multiply-accumulates of the forward passes of one optimizer step."""
    for seed in row.seconds:
        if (result := records.of((row.setting, seed)).get(stage)) and result.steps:
            return row.macs * result.images / result.steps
    return 0.0


def _mixtures(row: Row, stage: str, records: Records) -> list[str]:
    """Return the mixtures of a setting that have routing statistics."""
    points = [point for seed in row.seconds for point in records.stage((row.setting, seed), stage).routing]
    return sorted({layer.rpartition(".")[2] for point in points for layer in point.layers})


def routing(row: Row, stage: str, records: Records, mixture: str, name: str) -> Curve:
    """Return a routing statistic of a setting over the steps of a stage: of each seed, the mean over layers."""
    found: Curve = {}
    for seed in row.seconds:
        for point in records.stage((row.setting, seed), stage).routing:
            own = [figures[name] for layer, figures in point.layers.items() if layer.rpartition(".")[2] == mixture]
            if own:
                found.setdefault(point.step, []).append(fmean(own))
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(row.seconds)}


def _draw_routing(axes: Any, page: Page, stage: str, name: str, label: str) -> None:
    """Draw one routing statistic of all settings over the steps."""
    for place, row in enumerate(page.rows):
        for mixture in _mixtures(row, stage, page.records):
            curve = routing(row, stage, page.records, mixture, name)
            style = STYLES.get(mixture, ":")
            means = [fmean(values) for values in curve.values()]
            axes.plot(list(curve), means, style, color=f"C{place % 10}", linewidth=1, label=f"{row.setting} {mixture}")
    axes.set_ylabel(label)
    axes.set_xlabel("optimizer step of the stage")
    if name == "load_cv":
        axes.legend(frameon=False, fontsize=6)


def _draw(axes: Any, curve: Mapping[Any, Sequence[float]], colour: str, label: str) -> None:
    """Draw the mean of a curve, and a band from its lowest to its highest value if there are several seeds."""
    if not curve:
        return
    places, values = list(curve), list(curve.values())
    axes.plot(places, [fmean(one) for one in values], color=colour, marker="o", markersize=2.5, label=label)
    if len(values[0]) > 1:
        axes.fill_between(places, [min(one) for one in values], [max(one) for one in values], color=colour, alpha=0.15)
