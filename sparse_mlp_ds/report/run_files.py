"""A run folder as a report reads it: what its files hold, as far as they are there and sound."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.log import results, train_log

METRICS = "metrics.jsonl"
LOG_BYTES = 20 << 20
"""Most bytes of train.log that are looked at, from its end."""

Record = dict[str, Any]


@dataclass
class RunFiles:
    """What the files of one run hold. Contents are as they were found; who uses them checks them."""

    path: Path
    """The run folder."""
    name: str = ""
    """What the run is called in a report."""
    records: dict[str, list[Record]] = field(default_factory=dict)
    """Stage -> the records of its log steps, in their order."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The resolved recipe; empty if config.yaml is missing or damaged."""
    recipe_text: str = ""
    """The text of config.yaml."""
    ds_config: str = ""
    """The text of ds_config.json."""
    summary: list[Record] = field(default_factory=list)
    """The entries of the finished stages."""
    starts: list[Record] = field(default_factory=list)
    """The entries of environment.json, the oldest first."""
    events: list[Record] = field(default_factory=list)
    """The entries of events.jsonl, the oldest first."""
    checkpoints: list[tuple[Path, Record]] = field(default_factory=list)
    """Checkpoint folders that can be read and their manifests, the newest first."""
    log: list[str] = field(default_factory=list)
    """The lines of train.log."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    @property
    def stages(self) -> list[str]:
        """The names of all stages: of the recipe, and of records and results that it does not name."""
        given = self.recipe.get("stages")
        names = [str(name) for name in given] if isinstance(given, dict) else []
        found = [*self.records, *(str(entry.get("name")) for entry in self.summary)]
        return list(dict.fromkeys([*names, *found]))

    def entry(self, stage: str) -> Record:
        """Return the entry of a finished stage; an empty one if it is not finished."""
        return next((entry for entry in self.summary if entry.get("name") == stage), {})

    def outcome(self, stage: str) -> Record:
        """Return the content of RUN/STAGE.json; an empty one if there is none that can be read."""
        path = self.path / f"{stage}.json"
        if "/" in stage or not path.is_file():
            return {}
        return _json(path, dict, self.remarks)


def read(path: Path) -> RunFiles:
    """Read a run folder. Raises UserError if it is none, or has no records."""
    run = RunFiles(path, files.real(path).name)
    run.records = _records(path, run.remarks)
    run.recipe_text = _text(path / "config.yaml", run.remarks)
    run.recipe = _recipe(path / "config.yaml", run.recipe_text, run.remarks)
    run.ds_config = _text(path / "ds_config.json", run.remarks)
    if (path / "summary.json").exists():
        stages = _json(path / "summary.json", dict, run.remarks).get("stages")
        run.summary = [one for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []
    if (path / "environment.json").exists():
        run.starts = [one for one in _json(path / "environment.json", list, run.remarks) if isinstance(one, dict)]
    if (path / "events.jsonl").exists():
        run.events = lines(_text(path / "events.jsonl", run.remarks))
    run.log = _tail(path / train_log.NAME, run.remarks).splitlines()
    run.checkpoints = _checkpoints(path / "checkpoints", run.remarks)
    return run


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a number, which may be NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value from JSON is a finite number."""
    return is_number(value) and math.isfinite(value)


def as_dict(value: Any) -> dict[str, Any]:
    """Return a value from JSON if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def _records(path: Path, remarks: list[str]) -> dict[str, list[Record]]:
    """Return the records by stage. Raises UserError if there are none."""
    fix = "give the folder of a run that has taken its first steps"
    file = path / METRICS
    try:
        if not path.is_dir():
            raise UserError(f"{path}: no run folder; {fix}")
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: a folder without records of a run ({METRICS}); {fix}") from None
    except OSError as error:
        raise UserError(f"{file}: no records of the run ({error.strerror}); {fix}") from None
    found: dict[str, list[Record]] = {}
    unreadable = 0
    for line in lines:
        try:
            record = json.loads(line)
            if not (is_finite(record["step"]) and isinstance(record["stage"], str)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += line is not lines[-1]  # the last one may be what a killed process was writing
            continue
        if not results.is_result(record):
            found.setdefault(record["stage"], []).append(record)
    if not found:
        raise UserError(f"{file}: holds no records of the run; {fix}")
    if unreadable:
        remarks.append(f"{file}: {unreadable} damaged lines were passed over")
    return found


def _text(path: Path, remarks: list[str]) -> str:
    """Return a file's text; an empty one, and a remark, if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        remarks.append(f"{path}: {error.strerror}")
        return ""


def _tail(path: Path, remarks: list[str]) -> str:
    """Return the end of a log as text; an empty one if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - LOG_BYTES, 0))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        remarks.append(f"{path}: {error.strerror}")
        return ""


def _json(path: Path, kind: Callable[[], Any], remarks: list[str]) -> Any:
    """Return what a JSON file holds; an empty value of the kind, and a remark, if that is something else."""
    text = _text(path, remarks)
    try:
        content = json.loads(text) if text else kind()
        if type(content) is not kind:
            raise ValueError("it holds something else than expected")
        return content
    except (ValueError, RecursionError) as error:
        remarks.append(f"{path}: damaged ({one_line(error, 100)})")
        return kind()


def lines(text: str) -> list[Record]:
    """Return the lines of JSON that hold a record; the last line may be what a run is writing just now."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _recipe(path: Path, text: str, remarks: list[str]) -> dict[str, Any]:
    """Return the tree of config.yaml; an empty one, and a remark, if it is damaged."""
    try:
        tree = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # safe, in C
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        remarks.append(f"{path}: damaged ({one_line(error, 100)})")
        return {}
    return tree if isinstance(tree, dict) else {}


def _checkpoints(folder: Path, remarks: list[str]) -> list[tuple[Path, Record]]:
    """Return the checkpoints that can be read, by their manifests alone, the newest first."""
    found = []
    try:
        for path in manifest.numbered(folder):
            try:
                found.append((path, manifest.read_manifest(path)))
            except UserError as error:
                remarks.append(str(error))
    except OSError as error:
        remarks.append(f"{folder}: {error.strerror}")
    return found
