"""The plot of learning curves, routing below: accuracy over steps and multiply-accumulates, perplexity over time."""

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
    takes about three times as many. Perplexity, on a logarithmic axis, is drawn over the stage's minutes in their
    place: steps that were not measured alone are taken to be equally long.
    """
    stage, _, metric = page.about.metrics[0].partition(".")
    is_text = metric == "perplexity"
    lines = {row.setting: measured(row, stage, "perplexity" if is_text else "top1", page.records) for row in page.rows}
    if not any(len(curve) > 1 for curve in lines.values()):
        return None
    from matplotlib.figure import Figure

    routed = [row for row in page.rows if _mixtures(row, stage, page.records)]
    drawn = Figure(figsize=(10, 7.5 if routed else 4.2), layout="constrained")
    grid = drawn.add_gridspec(2 if routed else 1, 6, height_ratios=[3, 2] if routed else [1])
    steps, costs = drawn.add_subplot(grid[0, :3]), drawn.add_subplot(grid[0, 3:])
    for place, row in enumerate(page.rows):
        scale = 1 if is_text else 100
        curve = {step: [scale * value for value in values] for step, values in lines[row.setting].items()}
        per_step = _minutes_per_step(row, stage, page.records) if is_text else _macs_per_step(row, stage, page.records)
        _draw(steps, curve, _colour(place), row.setting)
        _draw(costs, {step * per_step: values for step, values in curve.items()}, _colour(place), row.setting)
    steps.set_xlabel("optimizer step of the stage")
    costs.set_xlabel("minutes of the stage" if is_text else "10¹² multiply-accumulates, forward passes")
    steps.set_ylabel("held-out perplexity" if is_text else "held-out top-1, %")
    for axes in (steps, costs) if is_text else ():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    steps.legend(frameon=False, fontsize=8)
    steps.set_title(f"{page.about.name}, {stage}: mean over seeds, lowest and highest", loc="left", fontsize=10)
    for panel, (name, label) in enumerate(ROUTING.items() if routed else ()):
        _draw_routing(drawn.add_subplot(grid[1, 2 * panel : 2 * panel + 2]), page, stage, name, label)
    for axes in drawn.axes:
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def measured(row: Row, stage: str, metric: str, records: Records) -> Curve:
    """Return the held-out accuracy or perplexity of a setting over a stage's steps, the end of the stage included.

    Only steps at which every finished seed was validated count: a mean over fewer would jump.

    Args:
        row: The setting.
        stage: Name of the stage.
        metric: `top1` or `perplexity`.
        records: All results of the sweep.
    """
    found: Curve = {}
    seeds = list(row.seconds)
    for seed in seeds:
        of_stage = records.stage((row.setting, seed), stage)
        points = {one.step: getattr(one, metric) for one in of_stage.curve if getattr(one, metric) is not None}
        result = records.of((row.setting, seed)).get(stage)
        at_end = getattr(result, metric, of_stage.metrics.get(metric))
        if result and at_end is not None and result.steps:
            points[result.steps] = at_end
        for step, value in points.items():
            found.setdefault(step, []).append(value)
    return {step: found[step] for step in sorted(found) if len(found[step]) == len(seeds)}


def _macs_per_step(row: Row, stage: str, records: Records) -> float:
    """Return the multiply-accumulates of the forward passes of one optimizer step, in units of 10^12."""
    for seed in row.seconds:
        if (result := records.of((row.setting, seed)).get(stage)) and result.steps:
            return row.macs * result.images / result.steps / TERA
    return 0.0


def _minutes_per_step(row: Row, stage: str, records: Records) -> float:
    """Return the duration of one optimizer step: the mean over the stage and over the seeds, validations included."""
    results = [records.of((row.setting, seed)).get(stage) for seed in row.seconds]
    return fmean([result.seconds / result.steps / 60 for result in results if result and result.steps] or [0.0])


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
            axes.plot(list(curve), means, style, color=_colour(place), linewidth=1, label=f"{row.setting} {mixture}")
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


def _colour(place: int) -> str:
    """Return the colour of a setting, one of twenty: the second ten are paler than the first."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["tab20"](2 * (place % 10) + place // 10 % 2))
