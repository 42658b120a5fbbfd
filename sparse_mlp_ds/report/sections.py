"""The parts of a page about one run that are text and tables: results, plan, time, checkpoints, provenance."""

import json
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any

from sparse_mlp_ds.log.console import format_duration
from sparse_mlp_ds.report.charts import number, percent, shares_bar
from sparse_mlp_ds.report.markup import Markup, element, facts, folded, joined, note, table
from sparse_mlp_ds.report.run_files import Record, RunFiles, as_dict, is_finite, is_number

PHASES = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "update": "update",
    "save": "saving",
    "evaluate": "evaluation",
    "record": "records",
    "stop": "agreeing whether to stop",
}
"""Phase of a stage -> what a page calls it, in this order."""
MOST_LINES = 20
"""Most lines of a list that may be long: events, bad samples, checkpoints."""
_TIME = re.compile(r"^\d\d:\d\d:\d\d ")
_PLAN = ("ranks ", "images ", "stage ", "told of events", "memory", "WARNING: ")
_BAD = re.compile(r": sample '.*': ")


def state(run: RunFiles) -> str:
    """Return how far a run is, in a few words."""
    last = run.events[-1] if run.events else {}
    finished = [name for name in run.stages if run.entry(name)]
    if len(finished) == len(run.stages):
        return "finished"
    told = last.get("event")
    word = str(told) if told in ("failed", "stopped", "stalled") else "not finished"
    return f"{word}: {len(finished)} of {len(run.stages)} stages done, step {_last_step(run)}"


def figure(name: str, value: Any) -> str:
    """Return a result as text: accuracies and calibration errors in percent."""
    if not is_number(value):
        return "" if value is None else str(value)
    return percent(value) if re.search(r"top\d|ece$|accuracy|^f1$|^exact_match$", name) else number(value)


def results(run: RunFiles) -> Markup:
    """Return what each finished stage reached."""
    names = list(dict.fromkeys(name for entry in run.summary for name in as_dict(entry.get("metrics"))))
    samples = "sequences" if any("sequences" in entry for entry in run.summary) else "images"
    rows = []
    for entry in run.summary:
        metrics, seconds = as_dict(entry.get("metrics")), entry.get("seconds", 0)
        took = format_duration(seconds) if is_finite(seconds) else ""
        row = [entry.get("name", ""), entry.get("steps", ""), entry.get(samples, ""), took]
        rows.append(row + [figure(name, metrics.get(name)) for name in names])
    if not rows:
        return note("No stage is finished.")
    return joined([table(["stage", "steps", samples, "time", *names], rows), *map(_best, run.summary)])


def plan(run: RunFiles) -> Markup:
    """Return what the run was to do: the stages of its recipe, and the plan that it printed."""
    model = as_dict(run.recipe.get("model")).get("name", "unknown")
    data, stages = as_dict(run.recipe.get("data")), as_dict(run.recipe.get("stages"))
    pairs = [("Recipe", run.recipe.get("name", "unknown")), ("Model", model), ("Classes", data.get("classes", ""))]
    for name in ("train", "val"):
        sources = data.get(name)
        paths = [str(as_dict(one).get("path", one)) for one in sources] if isinstance(sources, list) else [str(sources)]
        pairs.append((f"Data, {name}", ", ".join(paths)))
    rows = []
    for name, stage in stages.items():
        stage = as_dict(stage)
        optimizer = as_dict(stage.get("optimizer"))
        length = stage.get("epochs") or (f"{stage['steps']} steps" if stage.get("steps") else None)
        values = [stage.get("kind"), length, stage.get("batch_size"), optimizer.get("name")]
        values += [optimizer.get("base_lr"), optimizer.get("weight_decay")]
        rows.append([name, *("" if value is None else value for value in values)])
    head = ["stage", "kind", "epochs", "batch size", "optimizer", "base rate", "weight decay"]
    printed = printed_plan(run.log)
    return joined(
        [
            facts(pairs),
            table(head, rows),
            *([element("pre", "\n".join(printed))] if printed else []),
            folded("Recipe with every key (config.yaml)", element("pre", run.recipe_text)),
            folded("DeepSpeed JSON (ds_config.json)", element("pre", run.ds_config)),
        ]
    )


def printed_plan(log: Sequence[str]) -> list[str]:
    """Return the plan that a run printed at its last start. log: the lines of train.log."""
    lines = [_TIME.sub("", line) for line in log]
    starts = [place for place, line in enumerate(lines) if line.startswith("recipe ") and ", run folder " in line]
    if not starts:
        return []
    found = [lines[starts[-1]]]
    for line in lines[starts[-1] + 1 :]:
        if not line.startswith(_PLAN):
            break
        found.append(line)
    return found


def where_time_went(run: RunFiles) -> Markup:
    """Return how each stage's time was divided."""
    parts = []
    for name in run.stages:
        phases = _phases(run, name)
        if phases:
            total = sum(seconds for _, seconds in phases)
            parts.append(element("h3", f"{name}: {format_duration(total)}"))
            parts.append(shares_bar(phases))
    if not parts:
        return note("Not recorded: the run was made by a version that did not measure it, or saved nothing yet.")
    text = "Seconds of rank 0, over all starts of a stage, without the checkpoint at its end. On a GPU they are the "
    text += (
        "device's: what it waits for counts for the part that the host was in. Version 0.1.0 recorded only how long "
    )
    text += "a step waited for data."
    return joined([*parts, note(text)])


def _phases(run: RunFiles, stage: str) -> list[tuple[str, float]]:
    """Return name and seconds of each phase of a stage; nothing if they are not known."""
    found = run.entry(stage).get("phases")
    if not isinstance(found, dict):
        progress = [as_dict(one.get("progress")) for _, one in run.checkpoints]
        found = next((one.get("phases") for one in progress if one.get("stage") == stage and one.get("phases")), None)
    if isinstance(found, dict):
        known = {name: seconds for name, seconds in found.items() if is_finite(seconds) and seconds > 0}
        return [(PHASES.get(name, name), known[name]) for name in sorted(known, key=_order)]
    waited = total = 0.0
    records = run.records.get(stage, [])
    for before, one in zip(records, records[1:], strict=False):
        if all(is_finite(value) for value in (before.get("time"), one.get("time"), one.get("data_wait"))):
            seconds = max(one["time"] - before["time"], 0.0)
            total, waited = total + seconds, waited + seconds * min(max(one["data_wait"], 0.0), 1.0)
    return [("data", waited), ("everything else", total - waited)] if total else []


def _order(phase: str) -> int:
    return list(PHASES).index(phase) if phase in PHASES else len(PHASES)


def checkpoints(run: RunFiles) -> Markup:
    """Return the checkpoints that are there."""
    rows = []
    best = {one.get("checkpoint") for one in map(as_dict, [entry.get("best") for entry in run.summary])}
    if run.checkpoints:
        best.add(as_dict(as_dict(run.checkpoints[0][1].get("progress")).get("best")).get("checkpoint"))
    for path, manifest in run.checkpoints[:MOST_LINES]:
        progress = as_dict(manifest.get("progress"))
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        mark = "yes" if path.name in best else ""
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime((path / "manifest.json").stat().st_mtime))
        row = [path.name, progress.get("stage", ""), progress.get("stage_step", ""), f"{size / 1e6:.1f} MB", written]
        rows.append([*row, mark])
    if not rows:
        return note("There is no checkpoint in the run folder that can be read.")
    more = len(run.checkpoints) - MOST_LINES
    texts = [note(f"{more} earlier ones are not shown.")] if more > 0 else []
    return joined([table(["checkpoint", "stage", "step of the stage", "size", "written", "best"], rows), *texts])


def bad_samples(run: RunFiles) -> Markup:
    """Return how many samples could not be used and why, and those that the log names."""
    rows = []
    for stage, records in run.records.items():
        reasons = sorted({key for one in records for key in one if key.startswith("bad/")})
        for reason in reasons:
            rows.append([stage, reason.removeprefix("bad/"), max(one[reason] for one in records if reason in one)])
    named = [_TIME.sub("", line) for line in run.log if _BAD.search(line)]
    if not rows and not named:
        return note("None were met.")
    parts = [table(["stage", "reason", "samples"], rows)] if rows else []
    if named:
        parts.append(element("pre", "\n".join(named[:MOST_LINES])))
    if len(named) > MOST_LINES:
        parts.append(note(f"train.log names {len(named) - MOST_LINES} more."))
    return joined([*parts, note("Counts are those since the last start of a stage, over all ranks.")])


def events(run: RunFiles) -> Markup:
    """Return what happened to the run as a whole."""
    if not run.events:
        return note("None were recorded.")
    rows = [[_when(one.get("time")), one.get("event", ""), one.get("message", "")] for one in run.events[-MOST_LINES:]]
    return table(["time", "event", "message"], rows, numbers=False)


def provenance(run: RunFiles) -> Markup:
    """Return where and with what the run took place, start by start."""
    if not run.starts:
        if not run.checkpoints:
            return note("Not recorded.")
        manifest = run.checkpoints[0][1]
        pairs = [("Version", manifest.get("version", "")), ("Topology", json.dumps(manifest.get("topology")))]
        return joined([facts(pairs), note("environment.json is missing; this is from the newest checkpoint.")])
    parts = [facts(_start(run.starts[-1]))]
    if earlier := run.starts[:-1]:
        rows = [[one.get("time", ""), one.get("step", ""), one.get("version", ""), _commit(one)] for one in earlier]
        title = f"Earlier starts ({len(earlier)})"
        parts.append(folded(title, table(["time", "at step", "version", "commit"], rows[-MOST_LINES:])))
    return joined(parts)


def _start(start: Record) -> list[tuple[str, object]]:
    packages = ", ".join(f"{name} {version}" for name, version in as_dict(start.get("packages")).items())
    hosts = start.get("hosts")
    told = [
        f"{one.get('host')}: {len(one.get('ranks') or [])} ranks on {one.get('device')}"
        for one in map(as_dict, hosts if isinstance(hosts, list) else [])
    ]
    topology = ", ".join(f"{key} {json.dumps(value)}" for key, value in as_dict(start.get("topology")).items())
    command = start.get("deepspeed_command") or start.get("command")
    pairs: list[tuple[str, object]] = [
        ("Started", start.get("time", "")),
        ("Resumed from", start.get("resumed_from") or "nothing, at step 0"),
        ("Version", start.get("version", "")),
        ("Commit", _commit(start)),
        ("Digest of the code", start.get("code", "")),
        ("Python", start.get("python", "")),
        ("Packages", packages),
        ("CUDA of torch", start.get("cuda") or "none"),
        ("Command", shlex.join(map(str, command)) if isinstance(command, list) else ""),
        ("Folder", start.get("folder", "")),
        ("Launcher", start.get("launcher", "")),
        ("Hosts", "; ".join(told[:MOST_LINES])),
        ("Topology", topology),
        ("Data, SHA-256", start.get("data", "")),
    ]
    return pairs


def _commit(start: Record) -> str:
    code = as_dict(start.get("git"))
    if not code:
        return "not known: the package did not run from a git checkout"
    return f"{code.get('commit')}{' with changes' if code.get('dirty') else ''}"


def _best(entry: Record) -> Markup:
    best = as_dict(entry.get("best"))
    names = {"perplexity": "perplexity", "f1": "F1", "top1": "top-1"}
    by = next((name for name in names if is_finite(best.get(name))), None)
    if by is None:
        return Markup("")
    where = f" ({best['checkpoint']})" if "checkpoint" in best else ""
    text = (
        f"Best validation of {entry.get('name')}: {names[by]} {figure(by, best[by])} at step {best.get('stage_step')}"
    )
    ended = "; the stage ended there for lack of gain" if entry.get("ended_by") == "stop_after" else ""
    return note(f"{text} of the stage{where}{ended}.")


def _last_step(run: RunFiles) -> int:
    return max(int(one["step"]) for records in run.records.values() for one in records)


def _when(seconds: Any) -> str:
    if not is_finite(seconds) or not 0 <= seconds < 1e11:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
