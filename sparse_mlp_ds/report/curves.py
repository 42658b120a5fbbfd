"""Which curves are drawn of a stage's records."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparse_mlp_ds.report.charts import Curve, Form, line_chart, number, percent
from sparse_mlp_ds.report.markup import Markup
from sparse_mlp_ds.report.run_files import is_number

NO_CURVES = ("step", "stage", "epoch", "eta_seconds", "time", "loss", "balance_loss")
"""Entries of a record that are drawn elsewhere or say nothing as a curve."""
NORMS = ("grad_norm", "grad_norm_dense", "grad_norm_experts", "grad_norm_router")
"""Norms of all gradients, and of those of one kind of parameters."""
MOST_LAYERS = 6
"""Most MoE layers that are drawn one by one; of more, their mean, lowest and highest value."""
MOST_FURTHER = 12
"""Most charts of figures that this file does not know."""
_LAYER = re.compile(r"moe/(.+)/([^/]+)")

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Group:
    """Figures that are drawn over the same axes."""

    title: str
    """What is drawn, with its unit."""
    keys: tuple[str, ...]
    """Their names in the records."""
    form: Form = number
    """Writes a value."""
    logarithmic: bool = False
    """Whether the axis becomes logarithmic if the values span much."""


GROUPS = (
    Group("Loss", ("loss", "val/loss"), logarithmic=True),
    Group("Held-out accuracy", ("val/top1", "val/top5", "knn_top1"), percent),
    Group("Held-out perplexity", ("val/perplexity",), logarithmic=True),
    Group("Held-out masked tokens restored", ("val/masked_top1",), percent),
    Group("Held-out answers", ("val/f1", "val/exact_match"), percent),
    Group("Held-out calibration error", ("val/ece",), percent),
    Group("Spread of features (1: in all directions, 0: all are equal)", ("collapse/feature_std",)),
    Group("Directions that keys use (effective rank)", ("collapse/effective_rank",)),
    Group("Cosine of queries and keys", ("collapse/positive_similarity", "collapse/negative_similarity")),
    Group("Learning rate", ("lr",)),
    Group("Gradient norm, before clipping", NORMS, logarithmic=True),
    Group("Images per second", ("images_per_second",)),
    Group("Sequences per second", ("sequences_per_second",)),
    Group("Share of time spent waiting for data", ("data_wait",), percent),
    Group("Balance loss of the experts", ("balance_loss",)),
    Group("GPU memory, GiB", ("gpu/memory_gib",)),
    Group("Model FLOPs utilisation (MFU)", ("gpu/mfu",), percent),
)
"""The charts of every stage, in this order."""
OF_LAYERS: dict[str, tuple[str, Form]] = {
    "load_cv": ("Unevenness of the experts' load (standard deviation / mean)", number),
    "dropped": ("Share of choices dropped for lack of slots", percent),
    "entropy": ("Gate entropy, as a share of the highest possible", percent),
    "dead": ("Experts that got no item", number),
}
"""Figure of an MoE layer -> title and form of its chart."""


def points(records: Sequence[dict[str, Any]], key: str, x: str = "step") -> Points:
    """Return the values of one figure over the steps of the run, or over a different entry of the records."""
    return [(one[x], float(one[key])) for one in records if is_number(one.get(key)) and is_number(one.get(x))]


def of_stage(records: Sequence[dict[str, Any]]) -> list[Markup]:
    """Return the charts of one stage. records: of its log steps."""
    label, charts = "optimizer step of the run", []
    for group in GROUPS:
        curves = [Curve(key, points(records, key), key.startswith("val/")) for key in group.keys]
        curves = [one for one in curves if one.points]
        if group.keys == ("balance_loss",) and not any(y for one in curves for _, y in one.points):
            continue
        charts.append(line_chart(group.title, curves, label, group.form, group.logarithmic))
    charts += _of_layers(records, label)
    known = {key for group in GROUPS for key in group.keys} | set(NO_CURVES)
    further = [key for key in _keys(records) if key not in known and not _LAYER.fullmatch(key)]
    changing = [key for key in further if len({y for _, y in points(records, key)}) > 1]
    charts += [line_chart(key, [Curve(key, points(records, key))], label) for key in changing[:MOST_FURTHER]]
    return [one for one in charts if one]


def _of_layers(records: Sequence[dict[str, Any]], label: str) -> list[Markup]:
    layers: dict[str, list[str]] = {}
    for key in _keys(records):
        if name := _LAYER.fullmatch(key):
            layers.setdefault(name[2], []).append(name[1])
    charts = []
    for figure, (title, form) in OF_LAYERS.items():
        names = layers.get(figure, [])
        lines = [points(records, f"moe/{name}/{figure}") for name in names]
        if figure == "dead" and not any(y for line in lines for _, y in line):
            continue
        curves = [Curve(name, line) for name, line in zip(names, lines, strict=True)]
        charts.append(line_chart(title, _few(curves), label, form))
    return charts


def _few(curves: list[Curve]) -> list[Curve]:
    """Return the curves, or their mean, lowest and highest value where they are many."""
    if len(curves) <= MOST_LAYERS:
        return curves
    at: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in curve.points:
            at.setdefault(x, []).append(y)
    mean = [(x, sum(ys) / len(ys)) for x, ys in at.items()]
    what = f"of {len(curves)} layers"
    lowest, highest = ([(x, least(ys)) for x, ys in at.items()] for least in (min, max))
    return [Curve(f"mean {what}", mean), Curve("lowest", lowest), Curve("highest", highest)]


def _keys(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of all figures, in the order in which they first appear."""
    return list(dict.fromkeys(key for one in records for key, value in one.items() if is_number(value)))
