"""What the runs of one setting reached, over their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


@dataclass(frozen=True)
class Row:
    """A row of the table: one setting over its seeds."""

    setting: str
    """Name of the setting."""
    params: int
    """Parameters of the model, without the head."""
    macs: int
    """Multiply-accumulates of the model for one image."""
    values: dict[str, dict[int, float]]
    """Metric -> seed -> value of the finished run with that seed."""
    seconds: dict[int, float]
    """Seed -> training time of the finished run with that seed."""
    seeds: int
    """Number of seeds in the sweep, finished or not."""


def cell(metric: str, values: Sequence[float]) -> str:
    """Return a metric over seeds as text: mean, standard deviation and range; `-` without values.

    metric: STAGE.METRIC; accuracies are shown in per cent.
    """
    if not values:
        return "-"
    show = (lambda v: f"{100 * v:.2f}") if is_share(metric) else (lambda v: f"{v:.4g}")
    unit = " %" if is_share(metric) else ""
    if len(values) == 1:
        return show(values[0]) + unit
    return f"{show(mean(values))} ± {show(stdev(values))}{unit} ({show(min(values))} .. {show(max(values))})"


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of samples, such as top-1. metric: STAGE.METRIC."""
    return "top" in metric or metric.endswith((".f1", ".exact_match"))
