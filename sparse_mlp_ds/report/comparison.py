"""The page that compares several runs: results, what differs in their recipes, curves over the same axes."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.config import history, loading
from sparse_mlp_ds.report import curves, sections
from sparse_mlp_ds.report.charts import MOST_POINTS, Curve, Form, line_chart, number, percent
from sparse_mlp_ds.report.markup import Markup, element, joined, note, table
from sparse_mlp_ds.report.page import Section, page
from sparse_mlp_ds.report.run_files import RunFiles, as_dict, is_number

SHOWN: dict[str, tuple[str, Form]] = {
    "loss": ("Loss", number),
    "val/loss": ("Held-out loss", number),
    "val/top1": ("Held-out top-1", percent),
    "val/top5": ("Held-out top-5", percent),
    "val/perplexity": ("Held-out perplexity", number),
    "val/f1": ("Held-out F1", percent),
    "knn_top1": ("k-NN top-1", percent),
    "lr": ("Learning rate", number),
    "grad_norm": ("Gradient norm, before clipping", number),
    "images_per_second": ("Images per second", number),
    "sequences_per_second": ("Sequences per second", number),
    "data_wait": ("Share of time spent waiting for data", percent),
}
"""Figures that are compared as curves -> title and form of their chart."""
LOGARITHMIC = ("loss", "val/loss", "val/perplexity", "grad_norm")
"""Figures whose axis becomes logarithmic if the values span much."""
MOST_KEYS = 200
"""Most keys in the table of differences."""


def write(runs: Sequence[RunFiles]) -> str:
    """Return the page about several runs as HTML."""
    _name(runs)
    stages = list(dict.fromkeys(stage for run in runs for stage in run.records))
    parts: list[Section] = [
        ("Results", partial(_results, runs)),
        ("What differs in the recipes", partial(_differences, runs)),
        *((f"Stage {stage}", partial(_curves, runs, stage)) for stage in stages),
        ("Files that could not be read", partial(_remarks, runs)),
    ]
    rows = [[run.name, sections.state(run), run.path] for run in runs]
    return page(f"Comparison of {len(runs)} runs", [table(["run", "state", "folder"], rows, numbers=False)], parts)


def _name(runs: Sequence[RunFiles]) -> None:
    """Give each run as much of its path as tells it from the others."""
    parts = [files.real(run.path).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{name} ({place})" for place, name in enumerate(names, 1)]
    for run, name in zip(runs, names, strict=True):
        run.name = name


def _results(runs: Sequence[RunFiles]) -> Markup:
    """Return the results of all runs: a row for each figure, so that runs stand side by side."""
    keys: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for entry in run.summary:
            for name, value in (as_dict(entry.get("metrics")) | {"seconds": entry.get("seconds")}).items():
                keys.setdefault((str(entry.get("name")), name), {})[run.name] = value
    if not keys:
        return note("No stage of these runs is finished.")
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    rows = [
        [f"{stage}: {name}", *(sections.figure(name, values.get(run.name)) for run in runs)]
        for (stage, name), values in sorted(keys.items(), key=lambda item: stages.index(item[0][0]))
    ]
    return table(["", *(run.name for run in runs)], rows)


def _differences(runs: Sequence[RunFiles]) -> Markup:
    """Return the keys whose values are not the same in all recipes, with each run's value."""
    trees = [history.completed(run.recipe) if run.recipe else {} for run in runs]
    first, values = trees[0], dict[str, dict[int, Any]]()
    for place, tree in enumerate(trees[1:], start=1):
        for key, before, now in loading.differences(first, tree):
            values.setdefault(key, {})[0] = before
            values[key][place] = now
    if not values:
        return note("Nothing: all recipes are the same.")
    rows = []
    for key in sorted(values)[:MOST_KEYS]:
        own = values[key]
        rows.append([key, *(_value(own.get(place, own[0])) for place in range(len(runs)))])
    more = len(values) - MOST_KEYS
    texts = [note(f"{more} further keys differ; `sparse-mlp-ds recipe diff` lists them.")] if more > 0 else []
    return joined([table(["key", *(run.name for run in runs)], rows), *texts])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _curves(runs: Sequence[RunFiles], stage: str) -> Markup:
    """Return the curves of one stage: a chart for each figure, a curve for each run that has it."""
    charts = []
    for key, (title, form) in SHOWN.items():
        lines = [curves.points(run.records.get(stage, []), key, "epoch") for run in runs]
        if not any(lines) or not _is_of_interest(key, lines):
            continue
        drawn = [
            Curve(run.name, line, key.startswith("val/"), colour=place)
            for place, (run, line) in enumerate(zip(runs, lines, strict=True))
            if line
        ]
        charts.append(line_chart(title, drawn, "epoch of the stage", form, key in LOGARITHMIC))
    text = f"Curves have at most {MOST_POINTS} points; the lowest and highest stay. Legends have the last values."
    return joined([element("div", *charts, class_="charts"), note(text)])


def _is_of_interest(key: str, lines: Sequence[curves.Points]) -> bool:
    return key != "data_wait" or any(is_number(y) and y >= 0.01 for line in lines for _, y in line)


def _remarks(runs: Sequence[RunFiles]) -> Markup:
    texts = dict.fromkeys(remark for run in runs for remark in run.remarks)
    return joined(element("p", one, class_="warning") for one in texts)
