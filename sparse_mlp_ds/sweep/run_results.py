"""What a finished run's folder says, as lines of the sweep's results."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_mlp_ds.log import image_hits, results
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.models.cost import Cost
from sparse_mlp_ds.sweep.plan import Sweep, SweepRun
from sparse_mlp_ds.sweep.records import CurvePoint, Details, Result, RoutingPoint, StageDetails

COMMIT = 12
"""Characters of a commit's hash that are kept."""
MOST_POINTS = 100
"""Most routing statistics of a stage that are kept, evenly spread over its steps."""
NOT_COMPARED = ("checkpoint", "log")
"""Sections of a recipe that change no weight. They hold places on one machine, so they are not kept."""
_ROUTING = re.compile(r"moe/(.+)/(load_cv|dropped|dead|entropy)")

Record = dict[str, Any]


def costs(runs: Sequence[SweepRun]) -> dict[str, Cost]:
    """Return what the model of each setting costs."""
    settings = {run.setting: run.recipe.spec for run in runs}
    return {setting: cost.cost(spec) for setting, spec in settings.items()}


def collect(sweep: Sweep, run: SweepRun, folder: Path, of_model: Cost) -> tuple[list[Result], Details]:
    """Return the results of a finished run.

    Args:
        sweep: The sweep.
        run: One of its runs.
        folder: The run's folder.
        of_model: What its model costs.
    """
    entries = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]
    records, starts = _lines(folder / "metrics.jsonl"), _json(folder / "environment.json", [])
    commit, found, stages = _commit(starts), list[Result](), dict[str, StageDetails]()
    end = 0  # step of the run with which a stage ends
    for entry in entries:
        name, metrics = entry["name"], entry["metrics"]
        end = entry.get("last_step", end + entry["steps"])
        begin = end - entry["steps"]
        samples = entry["sequences"] if "sequences" in entry else entry["images"]
        of_stage = {one["step"] - begin: one for one in records if one["stage"] == name}  # of a step, the last one
        own = [of_stage[step] | {"step": step} for step in sorted(of_stage) if step <= entry["steps"]]
        found.append(
            Result(
                sweep=sweep.name, variant=run.setting, seed=run.seed, stage=name,
                top1=metrics.get("top1"), loss=metrics.get("loss"), train_loss=_train_loss(own),
                params=of_model.params, params_active=of_model.params_active, macs=of_model.macs,
                steps=entry["steps"], images=samples, seconds=entry["seconds"], commit=commit,
            )
        )  # fmt: skip
        per_step = samples / max(entry["steps"], 1)
        stages[name] = StageDetails(
            metrics=metrics,
            curve=[_point(one, per_step) for one in own if {"val/top1", "val/perplexity"} & one.keys()],
            routing=_routing(own),
            hits=_json(folder / image_hits.file_name(name), None),
        )
    recipe = run.recipe.model_dump(mode="json", exclude=set(NOT_COMPARED))
    about: dict[str, Any] = {"recipe": recipe, "device": _device(starts), "stages": stages}
    return found, Details(sweep=sweep.name, variant=run.setting, seed=run.seed, **about)


def _train_loss(records: Sequence[Record]) -> float | None:
    """Return the mean loss over the last epoch, in which each record stands for the steps since the one before.

    records: of one stage, by step.
    """
    if not records:
        return None
    last, total, weight, before = records[-1]["epoch"], 0.0, 0, 0
    for one in records:
        if one["epoch"] > last - 1:
            total += one["loss"] * (one["step"] - before)
            weight += one["step"] - before
        before = one["step"]
    return total / weight


def _point(record: Record, per_step: float) -> CurvePoint:
    measured = {name: record.get(f"val/{name}") for name in ("top1", "perplexity", "loss")}
    return CurvePoint(step=record["step"], images=round(record["step"] * per_step), **measured)


def _routing(records: Sequence[Record]) -> list[RoutingPoint]:
    """Return the routing statistics at some of the records, the last one among them."""
    points = []
    for one in records:
        layers: dict[str, dict[str, float]] = {}
        for key, value in one.items():
            if name := _ROUTING.fullmatch(key):
                layers.setdefault(name[1], {})[name[2]] = value
        if layers:
            points.append(RoutingPoint(step=one["step"], layers=layers))
    every = -(-len(points) // MOST_POINTS) or 1
    return points[::-1][::every][::-1]


def _lines(path: Path) -> list[Record]:
    """Return the records of log steps in metrics.jsonl; none if there is no such file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # what a killed process was writing
            continue
        if {"stage", "step", "epoch", "loss"} <= record.keys() and not results.is_result(record):
            found.append(record)
    return found


def _json(path: Path, otherwise: Any) -> Any:
    """Return what a file holds; `otherwise` if it is not there or damaged: it only adds to the results."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise


def _commit(starts: list[Record]) -> str | None:
    """Return the commits of all starts of a run, one behind the other; None if one is not known."""
    found = [start.get("git") for start in starts]
    if not found or not all(found):
        return None
    texts = [one["commit"][:COMMIT] + ("-dirty" if one["dirty"] else "") for one in found if one]
    return " ".join(dict.fromkeys(texts))


def _device(starts: list[Record]) -> str | None:
    """Return the devices of the hosts of the last start."""
    hosts = starts[-1].get("hosts", []) if starts else []
    return ", ".join(dict.fromkeys(str(host.get("device")) for host in hosts)) or None
