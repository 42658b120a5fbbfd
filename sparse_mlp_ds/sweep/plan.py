"""A sweep as data: its runs, their names and their overrides."""

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from sparse_mlp_ds.config import loading, yaml_file
from sparse_mlp_ds.config.named_files import NamedFiles
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.schema import Section

SWEEPS = NamedFiles("sweep", Path(__file__).parents[1] / "sweeps", ".yaml")
LONGEST = 200
"""Most characters of the name of a run's folder; file systems allow 255, of which a run's own files take some."""
SEED = "{seed}"
"""Stands for the seed of a run in the settings of a sweep."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Sweep(Section):
    """A sweep: every variant is run at every point of the grid with every seed."""

    name: Name
    """Name of the sweep; its folder is runs/NAME unless `--out` gives another one."""
    recipe: str
    """Name of a shipped recipe, or path of a recipe, that all runs start from."""
    ds_config: str = "moe"
    """DeepSpeed JSON of all runs: the name of a shipped one, or the path of a file."""
    ranks: PositiveInt = 1
    """Processes of each run; with GPUs, one GPU for each process."""
    jobs: int | Literal["auto"] = 1
    """Runs at the same time on this machine; each gets its share of the cores and GPUs. `auto` fills the GPUs or, where
    there are none, the cores: as many runs as fit with one GPU or core for each of their processes."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Values of `train.seed`; each setting is run once with each."""
    set: dict[str, Any] = {}
    """Overrides that all runs share: dotted recipe key -> value."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)] = {"run": {}}
    """Name of a variant -> its overrides (dotted recipe key -> value). In texts of these, of `set` and of `grid`,
    `{seed}` stands for the run's seed, so that a run can start from a run of the same seed."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted recipe key -> its values; all combinations are run."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("evaluate.top1",)
    """Columns of the table, as STAGE.METRIC of summary.json; the plot shows the first one."""

    @field_validator("jobs", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"give a number of runs from 1 on, or auto, not {value!r}")
        return value

    @field_validator("seeds")
    @classmethod
    def _no_seed_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice")
        return value

    @model_validator(mode="after")
    def _last_parts_differ(self) -> "Sweep":
        if len({key.rpartition(".")[2] for key in self.grid}) < len(self.grid):
            raise ValueError("grid: two keys have the same last part; put one of them into variants")
        return self

    @model_validator(mode="after")
    def _nothing_is_set_twice(self) -> "Sweep":
        for variant, changes in self.variants.items():
            if both := sorted(changes.keys() & self.grid.keys()):
                raise ValueError(f"variants.{variant}: {both[0]} is in grid too; remove one of the two")
        for changes in (self.set, self.grid, *self.variants.values()):
            for key, instead in (("train.seed", "seeds"), ("name", "the names of variants")):
                if key in changes:
                    raise ValueError(f"{key} is set by {instead}; remove it")
        return self


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a setting with a seed."""

    name: str
    """Name of the run's folder."""
    setting: str
    """Name of the setting, the same for all of its seeds; the table has one row for each setting."""
    seed: int
    """Value of `train.seed`."""
    overrides: tuple[str, ...]
    """The recipe's overrides as KEY=VALUE, for `--set`."""
    recipe: Recipe
    """The recipe with these overrides."""

    @property
    def key(self) -> tuple[str, int]:
        """Setting and seed, by which the run is found among results."""
        return self.setting, self.seed


def load(name_or_path: str) -> Sweep:
    """Read a sweep, given the name of a shipped one or the path of a YAML file.

    Raises UserError with one line per problem.
    """
    path = SWEEPS.path(name_or_path, "sweep")
    tree = yaml_file.read(path, "sweep", "sweep")
    try:
        return Sweep.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, path) for e in error.errors())) from None


def runs(sweep: Sweep) -> list[SweepRun]:
    """Return the runs of a sweep: all settings with the first seed, then all with the second, and so on.

    Raises UserError with one line per problem, also for recipes that `train.py` would refuse.
    """
    planned, problems = [], []
    for seed in sweep.seeds:
        for variant, changes in sweep.variants.items():
            for values in itertools.product(*sweep.grid.values()):
                point = dict(zip(sweep.grid, values, strict=True))
                setting = _setting(variant if len(sweep.variants) > 1 or not point else "", point)
                name = f"{sweep.name}-{setting}"
                shown = {"name": f"{name}_seed-{seed}", "group": name, "tags": [sweep.name]}
                settings = {f"log.wandb.{key}": value for key, value in shown.items()} | sweep.set | changes | point
                settings |= {"train.seed": seed, "name": name}
                overrides = tuple(
                    f"{key}={json.dumps(value).replace(SEED, str(seed))}" for key, value in settings.items()
                )
                try:
                    recipe = loading.load_recipe(sweep.recipe, overrides)
                    if mirror := recipe.checkpoint.mirror:  # a mirror is of one run
                        place = f"{mirror.rstrip('/')}/{setting}_seed-{seed}"
                        overrides = (*overrides, f"checkpoint.mirror={json.dumps(place)}")
                        recipe = loading.load_recipe(sweep.recipe, overrides)
                except UserError as error:
                    problems += [f"{sweep.name}, {setting}: {line}" for line in str(error).splitlines()]
                    continue
                problems += [f"{sweep.name}: {line}" for line in _unknown_metrics(sweep, recipe)]
                planned.append(SweepRun(f"{setting}_seed-{seed}", setting, seed, overrides, recipe))
    twice = [name for name, count in Counter(run.name for run in planned).items() if count > 1]
    problems += [f"{sweep.name}: two runs are named {name}; give such values as variants, or once" for name in twice]
    problems += [
        f"{sweep.name}: '{run.name[:60]}...' is too long for the name of a folder; put the setting into variants"
        for run in planned
        if len(run.name) > LONGEST
    ]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return planned


def _setting(variant: str, point: dict[str, Any]) -> str:
    """Return the name of a setting, such as `sparse_experts-8`, which can name a folder.

    It depends on nothing else in the sweep: a run keeps its folder when variants or values are added.

    Args:
        variant: Name of the variant, "" if the sweep has only one.
        point: Dotted key of the grid -> its value in this setting.
    """
    parts = [variant] if variant else []
    for key, value in point.items():
        parts.append(f"{key.rpartition('.')[2]}-{plain(str(value)).replace('_', '-').strip('-')}")
    return "_".join(parts)


def plain(text: str) -> str:
    """Return a text with `-` for whatever is no ASCII letter or digit, `.` or `_`: part of a folder's name."""
    return re.sub("[^A-Za-z0-9._-]", "-", text)


def _unknown_metrics(sweep: Sweep, recipe: Recipe) -> list[str]:
    stages = [metric.partition(".")[0] for metric in sweep.metrics]
    return [f"metrics: no stage '{s}'; {did_you_mean(s, recipe.stages)}" for s in stages if s not in recipe.stages]


def _explain(error: Any, path: Path) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key; {did_you_mean(key, Sweep.model_fields)}"
    return f"{path}: {key}: {message}" if key else f"{path}: {message}"
