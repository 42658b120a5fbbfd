"""The results of a sweep from everywhere: its run folders, its own results file, and files from different machines."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.sweep import page, records, table
from sparse_mlp_ds.sweep.execute import is_finished
from sparse_mlp_ds.sweep.page import Named, Page
from sparse_mlp_ds.sweep.plan import Sweep, SweepRun
from sparse_mlp_ds.sweep.records import RESULTS, Records
from sparse_mlp_ds.sweep.run_results import collect

cost_of = cache(cost.cost)
"""Returns what a model costs; the same one is counted once."""


class Gathered:
    """The results of a sweep that need no execution, because some file or folder has them."""

    def __init__(self, sweep: Sweep, runs: Sequence[SweepRun], folder: Path, given: Path | None = None):
        """Read the results that there are, but no run folder yet.

        Args:
            sweep: The sweep.
            runs: All of its runs.
            folder: Folder of the sweep, with its own results file if there is one.
            given: A further results file, written on a different machine.

        Raises UserError for a file that is damaged, of a different sweep, or with a run of a different recipe.
        """
        self.sweep, self.runs, self.folder = sweep, runs, folder
        self._remarks: list[str] = []
        self._elsewhere = Records()
        if given:
            self._elsewhere.add(records.read(given, sweep.name))
            self._check(given, self._elsewhere)
        self.known = self._read()
        """All results so far."""
        self._check(folder / RESULTS, self.known)

    def recorded(self) -> set[str]:
        """Return the names of the runs whose results of all stages are known."""
        return {run.name for run in self.runs if self.known.of(run.key).keys() >= run.recipe.stages.keys()}

    def update(self, finished: Sequence[SweepRun]) -> None:
        """Add runs that are finished to the results file, and the runs of the given file.

        One process at a time reads and writes: when several tasks of a batch system end together, nothing is lost.
        Raises OSError.
        """
        with self._alone():
            self._add(finished)

    def write(self) -> tuple[str, list[str]]:
        """Write results, tables and plots into the sweep's folder. Return the Markdown, and the names of the files.

        When several tasks of a batch system end together, the last one to write sees all runs. Raises OSError.
        """
        with self._alone():
            self._add([run for run in self.runs if is_finished(self.folder, run)])
            shown = self._page()
            record = {"sweep": self.sweep.model_dump(mode="json")} | table.as_json(shown)
            files.replace(self.folder / "table.json", json.dumps(record, indent=1))
            written = [*table.write(shown, self.folder, "table"), "table.json"]
            if self.known.results:
                written += [RESULTS, records.details_of(self.folder / RESULTS).name]
        return table.markdown(shown), written

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return what each run has reached whose results are known: run, by name -> stage -> metric -> value."""
        recorded, found = self.recorded(), dict[str, dict[str, dict[str, float]]]()
        for run in self.runs:
            for stage, result in self.known.of(run.key).items() if run.name in recorded else ():
                own = {name: getattr(result, name) for name in ("top1", "loss")}
                known = {name: value for name, value in own.items() if value is not None}
                found.setdefault(run.name, {})[stage] = self.known.stage(run.key, stage).metrics | known
        return found

    def seconds(self) -> dict[str, list[float]]:
        """Return the durations of the runs whose results are known, by setting."""
        recorded, found = self.recorded(), dict[str, list[float]]()
        for run in self.runs:
            if run.name in recorded:
                own = sum(one.seconds for one in self.known.of(run.key).values())
                found.setdefault(run.setting, []).append(own)
        return found

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.lock(self.folder / ".table.lock"):
            yield

    def _add(self, finished: Sequence[SweepRun]) -> None:
        self.known = self._read()
        for run in finished:
            results, details = collect(self.sweep, run, self.folder / run.name, cost_of(run.recipe.spec))
            before = self.known.of(run.key)
            for one in results:
                self._compare(run, one, before.get(one.stage))
            self.known.put(results, details)
        self.known.sort([run.key for run in self.runs])  # a table of the file alone compares with its first setting
        if self.known.results:
            records.write(self.folder / RESULTS, self.known)

    def _page(self) -> Page:
        settings: dict[str, list[int]] = {}
        costs: dict[str, tuple[int, int]] = {}
        for run in self.runs:
            settings.setdefault(run.setting, []).append(run.seed)
            of_model = cost_of(run.recipe.spec)
            costs[run.setting] = (of_model.params, of_model.macs)
        remarks = [*dict.fromkeys(self._remarks), *_without_recipe(self.runs, self.known)]
        return page.make(self.sweep, page.rows_of(self.sweep, settings, costs, self.known), self.known, remarks)

    def _read(self) -> Records:
        """Return the results of the sweep's own file, and what else the given one has."""
        own, path = Records(), self.folder / RESULTS
        if path.exists():
            own = records.read(path, self.sweep.name)
        own.add(self._elsewhere)
        return own

    def _check(self, path: Path, known: Records) -> None:
        for run in self.runs:
            if changed := changed_recipe(run, known):
                fix = "give the sweep another name, or leave that run out of the file"
                raise UserError(f"{path}: {run.name}: {changed}; {fix}")

    def _compare(self, run: SweepRun, now: records.Result, before: records.Result | None) -> None:
        """Note that the result of a run's folder takes the place of a different one."""
        if before and (before.top1, before.commit) != (now.top1, now.commit):
            was, is_now = (f"top1 {one.top1} of commit {one.commit or 'unknown'}" for one in (before, now))
            self._remarks.append(f"{run.name}, {now.stage}: {is_now} of the run folder takes the place of {was}.")


def changed_recipe(run: SweepRun, known: Records) -> str | None:
    """Return a line on the first difference between a run's recipe and that of its results; None without one.

    Where results do not have their recipe, the sizes of the models are compared.
    """
    results = known.of(run.key)
    if not results:
        return None
    details = known.details.get(run.key)
    if details and details.recipe:
        return loading.changed_key(details.recipe, run.recipe.model_dump(mode="json"))
    of_model = cost_of(run.recipe.spec)
    for result in results.values():
        for name in ("params", "params_active", "macs"):
            was, is_now = getattr(result, name), getattr(of_model, name)
            if was != is_now:
                return f"{name} of the model was {was} and is now {is_now}"
    return None


def page_of_file(
    path: Path, sweep: Sweep | None = None, runs: Sequence[SweepRun] = (), chosen: Sequence[str] = ()
) -> Page:
    """Return what a results file says, without a look at any run.

    Args:
        path: The file.
        sweep: The sweep that the results should be of, if it is known: its settings, seeds and metrics are shown.
        runs: Its runs; results of different recipes are marked.
        chosen: The settings to show; the others are compared with the first of them. Without any, all are shown.

    Raises UserError if the file is damaged, of a different sweep, or without one of the chosen settings.
    """
    known = records.read(path, sweep.name if sweep else None)
    settings: dict[str, list[int]] = {}
    costs: dict[str, tuple[int, int]] = {}
    for result in known.results.values():
        seeds = settings.setdefault(result.variant, [])
        seeds += [result.seed] * (result.seed not in seeds)
        costs.setdefault(result.variant, (result.params, result.macs))
    remarks = []
    if sweep:
        planned: dict[str, list[int]] = {}
        for run in runs:
            planned.setdefault(run.setting, []).append(run.seed)
            costs.setdefault(run.setting, (cost_of(run.recipe.spec).params, cost_of(run.recipe.spec).macs))
            if run.setting in (chosen or settings) and (changed := changed_recipe(run, known)):
                remarks.append(f"{run.name} is of a different recipe than sweep {sweep.name} has now: {changed}.")
        unplanned = [setting for setting in settings if setting not in planned]
        if unplanned:
            remarks.append(f"Not in sweep {sweep.name}, and left out: {', '.join(unplanned)}.")
        settings = planned
    for setting in chosen:
        if setting not in settings:
            raise UserError(f"{path}: has no setting {setting!r}, but {', '.join(settings)}")
    settings = {setting: settings[setting] for setting in chosen or settings}
    remarks += _mixed_recipes(settings, known) + _mixed_costs(settings, known)
    about = sweep or Named(next(iter(known.results.values())).sweep, _metrics(known))
    return page.make(about, page.rows_of(about, settings, costs, known), known, remarks)


def _metrics(known: Records) -> tuple[str, ...]:
    """Return the metrics of a table of these results: the main one of each stage, the last stage first."""
    found: dict[str, str] = {}
    for result in reversed(known.results.values()):
        for name in ("top1", "knn_top1", "f1", "perplexity", "loss"):
            if known.value(result.run, f"{result.stage}.{name}") is not None:
                found.setdefault(result.stage, f"{result.stage}.{name}")
    return tuple(found.values()) or (f"{next(iter(known.results.values())).stage}.top1",)


def _mixed_recipes(settings: dict[str, list[int]], known: Records) -> list[str]:
    """Say which seeds of a setting are of a different recipe than its first seed."""
    found = []
    for setting, seeds in settings.items():
        kept = {seed: own.recipe for seed in seeds if (own := known.details.get((setting, seed))) and own.recipe}
        for seed, recipe in list(kept.items())[1:]:
            first, tree = next(iter(kept.items()))
            if changed := loading.changed_key(_without_seed(tree), _without_seed(recipe)):
                found.append(f"{setting}: seed {seed} is of a different recipe than seed {first}: {changed}.")
    return found


def _without_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe as it is for all seeds, which start from weights of a run of their own seed."""
    own = rf"_seed-{recipe['train']['seed']}\b"
    same: dict[str, Any] = json.loads(re.sub(own, "_seed", json.dumps(recipe)))
    return same | {"train": same["train"] | {"seed": 0}}


def _mixed_costs(settings: dict[str, list[int]], known: Records) -> list[str]:
    """Say which settings have models of different sizes."""
    found = []
    for setting, seeds in settings.items():
        sizes = {(one.params, one.macs) for seed in seeds for one in known.of((setting, seed)).values()}
        if len(sizes) > 1:
            found.append(f"{setting}: the models of its runs have different sizes; those of the first are shown.")
    return found


def _without_recipe(runs: Sequence[SweepRun], known: Records) -> list[str]:
    """Say which runs have results, but not the recipe that they are of."""
    names = [run.name for run in runs if known.of(run.key) and not getattr(known.details.get(run.key), "recipe", None)]
    return [f"Of {', '.join(names)}, the recipe was not kept; only the sizes of the models were compared."] * bool(
        names
    )
