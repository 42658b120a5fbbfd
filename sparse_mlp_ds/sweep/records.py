"""The files of a sweep's results: NAME.jsonl, one line for each stage of each run, and NAME.details.jsonl beside it.

The first has what a table needs and is easy to read elsewhere. The second has one line for each run with what lets runs
be compared with care: the recipe, which held-out images were right, learning curves and routing statistics.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.schema import Section

S = TypeVar("S", bound=Section)
RESULTS = "results.jsonl"
"""Name of the file in a sweep's folder."""


class _Line(Section):
    """A line of one of the files, whose numbers may be NaN: a training that diverged is a result, too."""

    model_config = ConfigDict(allow_inf_nan=True)


class Result(_Line):
    """One stage of one run: a line of NAME.jsonl."""

    sweep: str
    """Name of the sweep."""
    variant: str
    """Name of the setting, the same for all of its seeds."""
    seed: int
    """Value of `train.seed`."""
    stage: str
    """Name of the stage."""
    top1: float | None
    """Share of held-out images that are classified correctly; null for a stage without a classifier."""
    loss: float | None
    """Mean loss on the held-out images; null where it is not measured."""
    train_loss: float | None
    """Mean loss over the steps of the stage's last epoch, without balance losses; null for a stage without training."""
    params: int
    """Parameters of the model, without its head."""
    params_active: int
    """Parameters that are used for one item, without the head."""
    macs: int
    """Multiply-accumulates of the model for one image or row of text."""
    steps: int
    """Optimizer steps of the stage."""
    images: int
    """Images, or rows of text, that the stage was trained on, each as often as it was seen; in an evaluation, those
    held out."""
    seconds: float
    """Duration of the stage."""
    commit: str | None
    """Git commit of the code, or several if the run went on with different code; `-dirty` behind a commit means that
    files of the package differed from it. Null if it is not known."""

    @property
    def run(self) -> "Key":
        """The run, as variant and seed."""
        return self.variant, self.seed


class CurvePoint(_Line):
    """One validation in the middle of a stage."""

    step: int
    """Optimizer steps of the stage taken before."""
    images: int
    """Images, or rows of text, that the stage was trained on before."""
    top1: float | None = None
    """Share of held-out images that are classified correctly; null for a stage without a classifier."""
    perplexity: float | None = None
    """Held-out perplexity of a masked language model; null for other stages."""
    loss: float | None = None
    """Mean loss on the held-out images or rows of text."""


class RoutingPoint(_Line):
    """How the MoE layers route after some steps of a stage."""

    step: int
    """Optimizer steps of the stage taken before."""
    layers: dict[str, dict[str, float]]
    """MoE layer -> `load_cv` (standard deviation of its experts' load over the mean load), `dropped` (share of choices
    without a slot), `dead` (experts without an item) and `entropy` (of the gates, as a share of the highest)."""


class StageDetails(_Line):
    """What Details holds of one stage."""

    metrics: dict[str, float] = {}
    """Everything that summary.json says of the stage by name, `top1` and `loss` among them."""
    curve: list[CurvePoint] = []
    """Learning curve: what each validation measured."""
    routing: list[RoutingPoint] = []
    """Routing statistics over the stage."""
    hits: dict[str, Any] | None = None
    """Content of RUN/STAGE.hits.json."""


class Details(_Line):
    """One run: a line of NAME.details.jsonl."""

    sweep: str
    """Name of the sweep."""
    variant: str
    """Name of the setting."""
    seed: int
    """Value of `train.seed`."""
    recipe: dict[str, Any] | None = None
    """The resolved recipe, without the sections `checkpoint` and `log`; null if it was not kept."""
    device: str | None = None
    """What the run was computed on; null if it was not kept."""
    stages: dict[str, StageDetails] = {}
    """Stage -> what is known of it."""


Key = tuple[str, int]
"""A run of a sweep, as variant and seed."""


@dataclass
class Records:
    """All results of one sweep."""

    results: dict[tuple[str, int, str], Result] = field(default_factory=dict)
    """(variant, seed, stage) -> result."""
    details: dict[Key, Details] = field(default_factory=dict)
    """(variant, seed) -> details; a run may have none."""

    def of(self, run: Key) -> dict[str, Result]:
        """Return the results of one run by stage; none if it has none."""
        return {stage: one for (variant, seed, stage), one in self.results.items() if (variant, seed) == run}

    def put(self, results: Iterable[Result], details: Details | None) -> None:
        """Add a run, or replace it."""
        for one in results:
            self.results[(*one.run, one.stage)] = one
            self.details.pop(one.run, None)
        if details:
            self.details[details.variant, details.seed] = details

    def add(self, other: "Records") -> None:
        """Add the runs of other records that are not here."""
        known = {one.run for one in self.results.values()}
        for run in dict.fromkeys(one.run for one in other.results.values()):
            if run not in known:
                self.put(other.of(run).values(), other.details.get(run))

    def sort(self, runs: Sequence[Key]) -> None:
        """Put the results into the order of these runs; those of other runs stand behind them."""
        place = {run: number for number, run in enumerate(runs)}
        by_place = sorted(self.results.items(), key=lambda item: place.get(item[1].run, len(place)))
        self.results = dict(by_place)
        self.details = dict(sorted(self.details.items(), key=lambda item: place.get(item[0], len(place))))

    def value(self, run: Key, metric: str) -> float | None:
        """Return a metric, STAGE.METRIC, of a run; None if it is not known."""
        stage, _, name = metric.partition(".")
        result = self.results.get((*run, stage))
        if result is None:
            return None
        if name in ("top1", "loss") and (own := getattr(result, name)) is not None:
            return float(own)
        return self.stage(run, stage).metrics.get(name)

    def stage(self, run: Key, stage: str) -> StageDetails:
        """Return the details of a run's stage; empty ones if there are none."""
        details = self.details.get(run)
        return details.stages.get(stage, StageDetails()) if details else StageDetails()


def details_of(path: Path) -> Path:
    """Return the path of the details beside a file of results."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.details.jsonl")


def read(path: Path, sweep: str | None = None) -> Records:
    """Read NAME.jsonl and, if it is there, NAME.details.jsonl.

    sweep: the name that the sweep must have; None takes any, as long as it is one. Raises UserError naming file and
    line: for a line that is damaged or of a different sweep, and for a stage of a run that is there twice.
    """
    records = Records()
    for number, result in _lines(path, Result):
        sweep = sweep or result.sweep
        if result.sweep != sweep:
            fix = "results of one sweep go into one file"
            raise UserError(f"{path}, line {number}: a result of sweep {result.sweep}, not of {sweep}; {fix}")
        if (key := (*result.run, result.stage)) in records.results:
            where = f"{result.variant}, seed {result.seed}, stage {result.stage}"
            raise UserError(f"{path}, line {number}: {where} is there twice; keep one of the two lines")
        records.results[key] = result
    if not records.results:
        raise UserError(f"{path}: holds no results; give a file that a sweep has written")
    if details_of(path).exists():
        for number, details in _lines(details_of(path), Details):
            if (details.variant, details.seed) in records.details:
                where = f"{details.variant}, seed {details.seed}"
                raise UserError(f"{details_of(path)}, line {number}: {where} is there twice; keep one of the two lines")
            if details.sweep == sweep and records.of((details.variant, details.seed)):
                records.details[details.variant, details.seed] = details
    return records


def write(path: Path, records: Records) -> None:
    """Write both files; a reader sees the old or the new content of each. Raises OSError."""
    files.replace(details_of(path), _text(records.details.values()))
    files.replace(path, _text(records.results.values()))


def _text(lines: Iterable[Section]) -> str:
    return "".join(json.dumps(one.model_dump()) + "\n" for one in lines)


def _lines(path: Path, kind: type[S]) -> list[tuple[int, S]]:
    """Return the lines of a file, each with its number and as `kind`. Raises UserError for the first that is none."""
    text = files.read_text(path, "results", "give a file that a sweep has written")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append((number, kind.model_validate(json.loads(line))))
        except ValidationError as error:
            raise UserError(f"{path}, line {number}: {_problem(error, kind)}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line {number}: no JSON object; restore the file, or remove the line") from None
    return found


def _problem(error: ValidationError, kind: type[Section]) -> str:
    """Return the first problem of a line, and the fix."""
    # A key that is misspelt is absent, too, which would be said first.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {did_you_mean(key, kind.model_fields)}"
    return f"{key}: {first['msg']}" if key else first["msg"]
