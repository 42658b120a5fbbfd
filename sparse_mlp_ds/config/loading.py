"""Reading a recipe: the YAML files, the overrides of the command line, and one line for every problem."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sparse_mlp_ds.config import history, overrides, yaml_file
from sparse_mlp_ds.config import stages as sections
from sparse_mlp_ds.config.named_files import NamedFiles
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.presets import PRESETS

RECIPES = NamedFiles("recipe", Path(__file__).parents[1] / "recipes", ".yaml", "config.yaml")
_STAGES: tuple[type[BaseModel], ...] = (*get_args(sections.AnyTrainingStage), sections.Evaluate)
_STAGE_KINDS = {get_args(stage.model_fields["kind"].annotation)[0]: stage for stage in _STAGES}
FREE = (
    "train.max_steps",
    "train.timeout_seconds",
    "train.loss_spike",
    "train.compile",
    "checkpoint",
    "log",
    "data.workers",
    "data.cache",
    "data.bad_limit",
    "data.allow_commands",
    "data.probe",
    "moe.ep_size",
)
"""Keys and sections that may differ between a run and its continuation. None of them changes a weight, except that
`train.loss_spike` may make a run leave out batches, which is what a run that spiked is continued for."""
FREE_IN_STAGES = ("val_every_epochs", "val_every_steps", "keep_best", "stop_after")
"""Keys of stages that may differ because none of them changes a weight."""


def recipe_files(name_or_path: str) -> list[Path]:
    """Return the files that `load_recipe` reads for a recipe: its own file and those of its bases."""
    found = [RECIPES.path(name_or_path, "--recipe")]
    while base := yaml_file.read(found[-1], "--recipe", "recipe").get("base"):
        found.append(RECIPES.path(base, f"{found[-1]}: base", found[-1].parent))
    return found


def load_recipe(name_or_path: str, given: Sequence[str] = ()) -> Recipe:
    """Read a recipe, given by a shipped name or a path, and apply `dotted.key=value` overrides.

    Raises UserError with one line per problem, each naming the file (or the override), the key and the fix.
    """
    path = RECIPES.path(name_or_path, "--recipe")
    tree = _read(path)
    overridden = [overrides.apply(tree, override) for override in given]
    if isinstance(tree.get("stages"), dict):  # null leaves out a stage of the base
        tree["stages"] = {name: stage for name, stage in tree["stages"].items() if stage is not None}
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, tree, path, overridden) for e in error.errors())) from None


def changed_key(before: dict[str, Any], now: dict[str, Any], begun: Collection[str] | None = None) -> str | None:
    """Compare two resolved recipes, as trees: of a run and of its continuation.

    Args:
        before: The recipe that the run had.
        now: The recipe that it would have.
        begun: Names of the stages that have begun; all others may change, come and go, but not to a place before one
            that has begun. None if every stage counts as begun.

    Returns one line on the first difference that could change a weight, `KEY was X and is now Y`; None if there is
    none. A key that the version which wrote either of them did not have counts as what that version did.
    """
    for key, was, is_now in differences(history.completed(before), history.completed(now)):
        section, _, rest = key.partition(".")
        in_stage = section == "stages"
        waits = in_stage and begun is not None and rest.partition(".")[0] not in begun
        if not (waits or key.startswith(FREE) or (in_stage and key.endswith(FREE_IN_STAGES))):
            return f"{key} was {was!r} and is now {is_now!r}"
    return _comes_too_late(list(now.get("stages", {})), begun or ())


def _comes_too_late(stages: Sequence[str], begun: Collection[str]) -> str | None:
    """Return a line on a stage that stands before one that has begun and has not begun itself; None without one."""
    last = max((number for number, name in enumerate(stages) if name in begun), default=0)
    late = [name for name in stages[:last] if name not in begun]
    return f"stages.{late[0]} is new before stages.{stages[last]}, which has begun" if late else None


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in the first, value in the second) where two trees differ; None if a key is missing."""
    a, b = _flat(first), _flat(second)
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a recipe's tree, merged into the tree of its `base`. derived: the recipes that are based on this one."""
    tree = yaml_file.read(path, f"{derived[-1]}: base" if derived else "--recipe", "recipe")
    if (base := tree.pop("base", None)) is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected a shipped recipe's name or a path, not {base!r}")
    below = RECIPES.path(base, f"{path}: base", path.parent)
    if os.path.realpath(below) in map(os.path.realpath, (*derived, path)):
        raise UserError(f"{path}: base: {base} is based on this recipe; remove one of the two")
    merged = _merged(_read(below, (*derived, path)), tree)
    if isinstance(merged.get("stages"), dict) and isinstance(tree.get("stages"), dict):
        merged["stages"] = _in_order(merged["stages"], list(tree["stages"]))
    return merged


def _merged(base: Any, over: Any) -> Any:
    """Merge one tree into another: sections key by key; other values, lists among them, are replaced as a whole."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _in_order(stages: dict[str, Any], listed: Sequence[str]) -> dict[str, Any]:
    """Return stages in the order in which a recipe lists some of them; the others stay behind the one they followed.

    stages: All stages, those of the base first. listed: Names of the recipe's own.
    """
    head: list[str] = []
    followers: dict[str, list[str]] = {name: [name] for name in listed}
    group = head
    for name in stages:
        group = followers.get(name, group)
        if name not in followers:
            group.append(name)
    return {name: stages[name] for name in [*head, *(one for group in followers.values() for one in group)]}


def _explain(error: ErrorDetails, tree: dict[str, Any], path: Path, overridden: Sequence[str]) -> str:
    """Return one line, with the key and the fix, for one of pydantic's errors."""
    # The union of stage kinds adds its tag to the location; the user never wrote it as a key.
    loc = [str(p) for i, p in enumerate(error["loc"]) if not (i == 2 and error["loc"][0] == "stages")]
    key = ".".join(loc)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        where = f" in {'.'.join(loc[:-1])}" if loc[:-1] else ""
        message = f"unknown key{where}; {did_you_mean(loc[-1], _valid_keys(error['loc'][:-1], tree))}"
    elif error["type"] == "missing":
        message = "required, but not given; add it"
    elif error["type"] == "union_tag_invalid":
        message = f"unknown kind '{error['ctx']['tag']}'; {did_you_mean(error['ctx']['tag'], _STAGE_KINDS)}"
    elif error["type"] == "union_tag_not_found":
        message = f"kind is missing; {did_you_mean('', _STAGE_KINDS)}"
    elif error["type"] != "value_error":
        given = repr(error["input"])
        message = f"{message}, not {given if len(given) < 60 else 'what is given'}"
    if any(key == o or o.startswith(key + ".") or key.startswith(o + ".") for o in overridden):
        return f"--set {key}: {message}"
    return f"{path}: {key}: {message}" if key else f"{path}: {message}"


def _valid_keys(loc: Sequence[int | str], tree: dict[str, Any]) -> list[str]:
    """Return the valid keys of the section at `loc`; in `model`, they depend on the model that `tree` names."""
    model: type[BaseModel] = Recipe
    rest = list(loc)
    if loc[:1] == ("model",):
        model, rest = type(PRESETS[tree["model"]["name"]]), rest[1:]
    elif loc[:1] == ("stages",) and len(loc) > 2:  # ("stages", its name, its kind, ...)
        model, rest = _STAGE_KINDS[str(loc[2])], rest[3:]
    for part in rest:
        if part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    return [*model.model_fields, "name"] if loc == ("model",) else list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as `tuple[View, View]` or `Blur | None`."""
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, (list, tuple)) and any(isinstance(item, dict) for item in tree):
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}" if prefix else name).items()}
