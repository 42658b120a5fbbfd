"""Reading a recipe: YAML, then dotted overrides, then one line for every problem found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sparse_mlp_ds import stages as sections
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "digits"
_STAGES = (sections.Pretrain, sections.Supervised, sections.Finetune, sections.Probe, sections.Evaluate)
_STAGE_KINDS = {stage.__name__.lower(): stage for stage in _STAGES}
# What may differ between a run and its continuation: none of it changes a weight.
FREE = (
    "train.max_steps",
    "train.timeout_seconds",
    "checkpoint",
    "log",
    "data.workers",
    "data.cache",
    "data.bad_limit",
    "data.allow_commands",
    "moe.ep_size",
)


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name_or_path: str, given: str = "--recipe") -> Path:
    """Return the file of a shipped recipe's name, or the path itself. Raises UserError with the nearest name.

    given: where the name was given, for that error.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    if name_or_path not in shipped():
        raise UserError(f"{given} {name_or_path}: no such recipe; {did_you_mean(name_or_path, shipped())}")
    return RECIPES / f"{name_or_path}.yaml"


def recipe_files(name_or_path: str) -> list[Path]:
    """Return the files of a recipe that `load_recipe` has read: its own, and those of its bases."""
    files = [recipe_path(name_or_path)]
    while base := read_yaml(files[-1], "--recipe", "recipe").get("base"):
        files.append(files[-1].parent / recipe_path(base))
    return files


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any by path, and apply `dotted.key=value` overrides.

    Raises UserError with one line per problem, each naming the file (or the override), the key and the fix.
    """
    path = recipe_path(name_or_path)
    tree = _read(path)
    overridden = [apply(tree, override) for override in overrides]
    if isinstance(tree.get("stages"), dict):  # a stage of the base that is not wanted is set to null
        tree["stages"] = {name: stage for name, stage in tree["stages"].items() if stage is not None}
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, tree, path, overridden) for e in error.errors())) from None


def changed_key(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return `KEY was X and is now Y` for the first key of two resolved recipes that changes a weight, or None."""
    before, now = _flat(before), _flat(now)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(FREE):
            return f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
    return None


def read_yaml(path: Path, given: str, kind: str) -> dict[str, Any]:
    """Return a YAML file's mapping. given: where the path was given; kind: what the file is. Raises UserError."""
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{given} {path}: {error.strerror}; give a {kind}'s path or a shipped name") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML, fix it: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a {kind} is a mapping of sections; start from a copy of a shipped one")
    return tree


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return a recipe's tree, merged into that of its `base`, if it names one. derived: the recipes based on it."""
    tree = read_yaml(path, f"{derived[-1]}: base" if derived else "--recipe", "recipe")
    if (base := tree.pop("base", None)) is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected a shipped recipe's name or a path, not {base!r}")
    below = path.parent / recipe_path(base, f"{path}: base")  # a path is meant from the recipe that names it
    if below in (*derived, path):
        raise UserError(f"{path}: base: {base} is based on this recipe; remove one of the two")
    return _merged(_read(below, (*derived, path)), tree)


def _merged(base: Any, over: Any) -> Any:
    """Lay one tree over another: sections key by key, everything else, lists too, whole."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def apply(tree: dict[str, Any], override: str) -> str:
    """Set one `dotted.key=value` in the tree, list items by number, and return the key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as dotted.key=value, for example --set train.seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML; quote it") from None
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {override}: '{parents[-1]}' holds a value, not a section; remove '.{last}'")
    return key


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise UserError(f"--set {override}: '{part}' is not an item of that list; items are 0 to {len(node) - 1}")
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise UserError(f"--set {override}: the key goes deeper than the recipe; remove '.{part}' and what follows")


def _explain(error: dict[str, Any], tree: dict[str, Any], path: Path, overridden: Sequence[str]) -> str:
    """Return one line for one of pydantic's errors."""
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
    """Return the keys that the section at `loc` may hold; which, for a model, depends on the one that `tree` names."""
    model: type[BaseModel] = Recipe
    rest = list(loc)
    if loc[:1] == ("model",):
        model, rest = type(registry.PRESETS[tree["model"]["name"]]), rest[1:]
    elif loc[:1] == ("stages",) and len(loc) > 2:  # ("stages", its name, its kind, ...)
        model, rest = _STAGE_KINDS[loc[2]], rest[3:]
    for part in rest:
        if part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    return [*model.model_fields, "name"] if loc == ("model",) else list(model.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as `tuple[View, View]` or `Blur | None`."""
    candidates = (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}" if prefix else name).items()}
