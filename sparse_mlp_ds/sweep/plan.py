"""A sweep as data: which runs it has, under which names, with which overrides."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from sparse_mlp_ds import config
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.recipe import Recipe
from sparse_mlp_ds.section import Section

SWEEPS = Path(config.RECIPES).with_name("sweeps")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Sweep(Section):
    """Every variant at every point of the grid with every seed."""

    name: Name
    """Names the default folder, runs/<name>."""
    recipe: str
    """A shipped recipe's name, or the path of one."""
    ds_config: str = "ds_configs/moe.json"
    ranks: PositiveInt = 1
    """Processes, or GPUs, of each run."""
    jobs: PositiveInt = 1
    """Runs at once on this machine; each gets its share of the cores and GPUs."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    set: dict[str, Any] = {}
    """Overrides of every run, by dotted key."""
    variants: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)] = {"run": {}}
    """Named sets of overrides."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Dotted key -> values; all combinations are run."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("evaluate.top1",)
    """Columns of the table, STAGE.METRIC as in summary.json; the first is drawn."""

    @field_validator("seeds")
    @classmethod
    def _once_each(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice")
        return value

    @model_validator(mode="after")
    def _labels(self):
        if len({key.rpartition(".")[2] for key in self.grid}) < len(self.grid):
            raise ValueError("grid: two keys end alike; put one of them into variants")
        return self


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    setting: str
    """What its seeds have in common, as the table names it."""
    seed: int
    overrides: tuple[str, ...]
    """As `--set` takes them."""
    recipe: Recipe


def load(name_or_path: str) -> Sweep:
    """Read a shipped sweep by name, or any by path. Raises UserError with one line per problem."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        shipped = [p.stem for p in SWEEPS.glob("*.yaml")]
        if name_or_path not in shipped:
            raise UserError(f"sweep {name_or_path}: no such sweep; {did_you_mean(name_or_path, shipped)}")
        path = SWEEPS / f"{name_or_path}.yaml"
    tree = config.read_yaml(path, "sweep", "sweep")
    try:
        return Sweep.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, path) for e in error.errors())) from None


def runs(sweep: Sweep) -> list[Run]:
    """Return a sweep's runs, one seed after the other. Raises UserError for whatever `train.py` would refuse."""
    found, problems = [], []
    for seed in sweep.seeds:
        for variant, changes in sweep.variants.items():
            for values in itertools.product(*sweep.grid.values()):
                point = dict(zip(sweep.grid, values, strict=True))
                setting = _setting(variant if len(sweep.variants) > 1 or not point else "", point)
                settings = sweep.set | changes | point | {"train.seed": seed, "name": f"{sweep.name}-{setting}"}
                overrides = tuple(f"{key}={json.dumps(value)}" for key, value in settings.items())
                try:
                    recipe = config.load_recipe(sweep.recipe, overrides)
                except UserError as error:
                    problems += [f"{sweep.name}, {setting}: {line}" for line in str(error).splitlines()]
                    continue
                problems += [f"{sweep.name}: {line}" for line in _unknown_metrics(sweep, recipe)]
                found.append(Run(f"{setting}_seed-{seed}", setting, seed, overrides, recipe))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return found


def _setting(variant: str, point: dict[str, Any]) -> str:
    """Return `sparse_experts-8`: fit for a folder's name, and the same whatever else the sweep comes to hold."""
    parts = [variant] if variant else []
    for key, value in point.items():
        text = "".join(c if c.isalnum() or c in ".-" else "-" for c in str(value)).strip("-")
        parts.append(f"{key.rpartition('.')[2]}-{text}")
    return "_".join(parts)


def _unknown_metrics(sweep: Sweep, recipe: Recipe) -> list[str]:
    stages = [metric.partition(".")[0] for metric in sweep.metrics]
    return [f"metrics: no stage '{s}'; {did_you_mean(s, recipe.stages)}" for s in stages if s not in recipe.stages]


def _explain(error: Any, path: Path) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key; {did_you_mean(key, Sweep.model_fields)}"
    return f"{path}: {key}: {message}" if key else f"{path}: {message}"
