"""What the results of a sweep say: rows of settings, differences to the first one, routing, and what to mind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np

from sparse_mlp_ds.config.stages import TEXT_KINDS
from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.sweep import intervals
from sparse_mlp_ds.sweep.intervals import Difference
from sparse_mlp_ds.sweep.records import Key, Records
from sparse_mlp_ds.sweep.results import Row

MACS_LIMIT = 0.01
"""Largest relative difference in multiply-accumulates at which two models count as equally expensive."""


class About(Protocol):
    """What a page must know of a sweep."""

    @property
    def name(self) -> str:
        """Name of the sweep."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics to show, as STAGE.METRIC."""


@dataclass(frozen=True)
class Named:
    """The name and the metrics of a sweep that is known by its results alone."""

    name: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """A metric of one setting compared with the same metric of the first setting."""

    setting: str
    """Name of the setting."""
    metric: str
    """STAGE.METRIC."""
    difference: Difference
    """By how much it is above the first setting's."""
    marks: tuple[str, ...]
    """What to mind, such as `not significant`."""


@dataclass(frozen=True)
class RoutingRow:
    """How all MoE layers of one mixture route at the end of a stage: means over layers and seeds."""

    setting: str
    """Name of the setting."""
    stage: str
    """Name of the stage."""
    mixture: str
    """`moe_s` or `moe_c`."""
    load_cv: float
    """Standard deviation of the experts' load over the mean load."""
    dropped: float
    """Share of choices without a slot."""
    dead: float
    """Number of experts that no item chose, all layers together."""
    entropy: float
    """Gate entropy, as a share of the highest possible."""


@dataclass(frozen=True)
class Page:
    """Everything that the table and the plots show."""

    about: About
    """Name and metrics."""
    rows: list[Row]
    """One for each setting; the first is what the others are compared with."""
    differences: list[Compared]
    """One for each metric of each setting but the first, as far as runs with the same seed are finished."""
    routing: list[RoutingRow]
    """One for each mixture of each setting that has experts."""
    remarks: list[str]
    """What to mind, one sentence each."""
    records: Records
    """The results."""

    @property
    def samples(self) -> str:
        """What the models were measured on, `images` or `sequences`, as far as the results have recipes."""
        recipes = [details.recipe or {} for details in self.records.details.values()]
        stages = [stage for recipe in recipes for stage in recipe.get("stages", {}).values()]
        of_text = any(stage.get("kind") in TEXT_KINDS for stage in stages)
        return "sequences" if of_text else "images"


def make(about: About, rows: list[Row], records: Records, remarks: Sequence[str] = ()) -> Page:
    """Return what results say.

    Args:
        about: Name and metrics.
        rows: One for each setting.
        records: The results, of which those of the rows' settings count.
        remarks: What is already known that a reader should mind.
    """
    compared = [one for row in rows[1:] for metric in about.metrics if (one := _compare(rows[0], row, metric, records))]
    routing = [one for row in rows for one in _routing(row, records)]
    found = [*remarks, *_macs_remark(rows), *_commits_remark(rows, records), *_absent_remark(about, rows)]
    return Page(about, rows, compared, routing, found, records)


def macs_share(row: Row, first: Row) -> float:
    """Return by what share a row's multiply-accumulates are above the first row's; 0 if that is within MACS_LIMIT."""
    share = row.macs / first.macs - 1
    return share if abs(share) > MACS_LIMIT else 0.0


def _compare(first: Row, row: Row, metric: str, records: Records) -> Compared | None:
    """Return a row's metric compared with the first row's; None if they have no finished seed in common."""
    hits = (_hits(first, metric, records), _hits(row, metric, records))
    difference = intervals.difference(first.values[metric], row.values[metric], hits)
    if difference is None:
        return None
    marks = [] if difference.is_significant else ["not significant"]
    if share := macs_share(row, first):
        marks.append(f"MACs {100 * share:+.1f} %")
    stage = metric.partition(".")[0]
    pairs = [(records.of((first.setting, seed)), records.of((row.setting, seed))) for seed in difference.by_seed]
    if any(a[stage].images != b[stage].images for a, b in pairs):
        marks.append("different number of images")
    if any(a[stage].commit != b[stage].commit for a, b in pairs):
        marks.append("different commits")
    return Compared(row.setting, metric, difference, tuple(marks))


def _hits(row: Row, metric: str, records: Records) -> dict[int, np.ndarray]:
    """Return which images the runs of a setting classify correctly: seed -> [images], 1 or 0; none for other metrics.

    The images are those that every run of the first and this setting counts; runs on other images have none.
    """
    stage, _, name = metric.partition(".")
    found = {}
    for seed in row.values[metric]:
        hits = records.stage((row.setting, seed), stage).hits
        if name == "top1" and hits and hits["data"] == _images_of(records, stage):
            found[seed] = (image_hits.unpacked(hits) == image_hits.RIGHT).astype(np.int8)
    return found


def _images_of(records: Records, stage: str) -> str | None:
    """Return the digest of the held-out images of the first run that has one."""
    for details in records.details.values():
        if stage in details.stages and (hits := details.stages[stage].hits):
            return str(hits["data"])
    return None


def _routing(row: Row, records: Records) -> list[RoutingRow]:
    """Return the routing of a setting at the end of the last stage that has experts, for each mixture."""
    of_stage: dict[str, dict[str, list[dict[str, float]]]] = {}  # stage -> mixture -> figures of each layer and seed
    for seed in row.seconds:
        details = records.details.get((row.setting, seed))
        for stage, known in details.stages.items() if details else ():
            for layer, figures in known.routing[-1].layers.items() if known.routing else ():
                of_stage.setdefault(stage, {}).setdefault(layer.rpartition(".")[2], []).append(figures)
    if not of_stage:
        return []
    stage, mixtures = list(of_stage.items())[-1]
    names = ("load_cv", "dropped", "dead", "entropy")
    found = []
    for mixture, layers in sorted(mixtures.items(), reverse=True):
        mean = {name: fmean(layer[name] for layer in layers) for name in names}
        mean["dead"] = sum(layer["dead"] for layer in layers) / len(row.seconds)
        found.append(RoutingRow(row.setting, stage, mixture, **mean))
    return found


def _macs_remark(rows: Sequence[Row]) -> list[str]:
    """Say which settings do not cost as much as the first one."""
    different = [f"{row.setting} ({100 * share:+.1f} %)" for row in rows[1:] if (share := macs_share(row, rows[0]))]
    if not different:
        return []
    return [f"Not at equal cost: the MACs of {', '.join(different)} differ from those of {rows[0].setting}."]


def _commits_remark(rows: Sequence[Row], records: Records) -> list[str]:
    """Say which runs are of which commit, if there are several, and which are of code that no commit has."""
    runs: dict[str | None, list[str]] = {}
    for row in rows:
        for seed in row.seconds:
            for commit in dict.fromkeys(one.commit for one in records.of((row.setting, seed)).values()):
                runs.setdefault(commit, []).append(f"{row.setting} seed {seed}")
    found = []
    if len(runs) > 1:
        parts = "; ".join(f"{commit or 'unknown'}: {', '.join(names)}" for commit, names in runs.items())
        found.append(f"The runs are of different commits, so the code may be a reason for differences. {parts}.")
    if dirty := [commit for commit in runs if commit and "-dirty" in commit]:
        found.append(f"Code of the package had changes that no commit has ({', '.join(dirty)}).")
    return found


def _absent_remark(about: About, rows: Sequence[Row]) -> list[str]:
    """Say which metrics no finished run has."""
    finished = any(row.seconds for row in rows)
    absent = [metric for metric in about.metrics if finished and not any(row.values[metric] for row in rows)]
    return [f"No finished run has {', '.join(absent)}; correct `metrics`."] if absent else []


def rows_of(
    about: About, settings: Mapping[str, Sequence[int]], costs: Mapping[str, tuple[int, int]], records: Records
) -> list[Row]:
    """Return one row for each setting.

    Args:
        about: Name and metrics.
        settings: Setting -> the seeds that it is to be run with.
        costs: Setting -> parameters and multiply-accumulates of its model.
        records: The results of finished runs; others have none.
    """
    return [_row(about, setting, seeds, costs[setting], records) for setting, seeds in settings.items()]


def _row(about: About, setting: str, seeds: Sequence[int], cost: tuple[int, int], records: Records) -> Row:
    keys: list[Key] = [(setting, seed) for seed in seeds]
    stages = {key: records.of(key) for key in keys}
    seconds = {key[1]: sum(one.seconds for one in stages[key].values()) for key in keys if stages[key]}
    values: dict[str, dict[int, float]] = {}
    for metric in about.metrics:
        known = {key[1]: records.value(key, metric) for key in keys}
        values[metric] = {seed: value for seed, value in known.items() if value is not None}
    return Row(setting, *cost, values, seconds, len(seeds))
