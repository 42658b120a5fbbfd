"""No path is built from a name that a user gives, or a file brings, without a look at it."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.cli import sweep as sweep_command
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.data import index
from sparse_mlp_ds.doctor import hostfile
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import plan

NAMES = (
    "../x",
    "/x",
    "x/y",
    "..",
    ".",
    "",
    "x\ny",
    "x\0y",
    "~",
    "$HOME",
    "x y",
    "-x/..",
    "x\udce9",
    "*",
    "{1..2}",
    "x\\y",
)
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SWEEP = {"name": "s", "recipe": "digits", "metrics": ["evaluate.top1"]}

names = pytest.mark.parametrize("name", NAMES, ids=ascii)


def _yaml(folder: Path, tree) -> str:
    path = folder / "tree.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def _stage(folder, name):
    recipe = yaml.safe_load((loading.RECIPES.folder / "digits.yaml").read_text())
    recipe["stages"] = {name: recipe["stages"]["finetune"]}
    loading.load_recipe(_yaml(folder, recipe))


def _recipe(folder, name):
    recipe = yaml.safe_load((loading.RECIPES.folder / "digits.yaml").read_text())
    loading.load_recipe(_yaml(folder, recipe | {"name": name}))


def _sweep(folder, name):
    plan.load(_yaml(folder, SWEEP | {"name": name}))


def _variant(folder, name):
    plan.load(_yaml(folder, SWEEP | {"variants": {name: {}}}))


def _grid_key(folder, name):
    plan.runs(plan.load(_yaml(folder, SWEEP | {"grid": {name: [1]}})))


def _tar(folder, name):
    index.parse(json.dumps({"format": index.FORMAT, "classes": ["a"], "shards": [{"file": name}]}), str(folder))


def _host(folder, name):
    (folder / "hosts").write_text(f"{name} slots=1\n", errors="surrogateescape")
    hostfile.read(folder / "hosts")


@names
@pytest.mark.parametrize("use", [_stage, _recipe, _sweep, _variant, _grid_key, _tar, _host])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path, use, name):
    if use is _host and name in ("..", "."):  # ssh finds no such host; nothing is made of the name
        return
    with pytest.raises(UserError):
        use(tmp_path, name)


@names
def test_a_value_of_a_grid_becomes_plain_in_a_folders_name(name):
    assert PLAIN.fullmatch(plan._setting("", {"train.seed": name}))


@names
def test_a_recipes_file_becomes_plain_in_a_sweeps_name(name):
    sweep = plan.Sweep.model_validate(SWEEP)
    flags = {"recipe": f"{name}x.yaml", "ds_config": None, "ranks": None, "jobs": None, "mirror": None}
    assert PLAIN.fullmatch(sweep_command._changed(sweep, Namespace(**flags)).name)


@names
def test_a_folders_name_becomes_plain_in_its_tars_names(name):
    made = files.plain_name(name)
    assert made and made.isprintable() and Path(f"{made}-000000.tar").name == f"{made}-000000.tar"
    assert not set(made) & set("{}*?[]/\\") and made[0] != "."


def test_names_of_every_language_stay():
    assert files.plain_name("Größe 1-2_a.b") == "Größe 1-2_a.b"


@pytest.mark.parametrize("values", [[-1, 1], ["a b", "a-b"], ["x", "(x)"]])
def test_settings_that_would_share_a_folder_are_refused(tmp_path, values):
    sweep = plan.load(_yaml(tmp_path, SWEEP | {"grid": {"log.wandb.project": [str(value) for value in values]}}))
    with pytest.raises(UserError, match="two runs are named"):
        plan.runs(sweep)


def test_a_setting_that_is_too_long_for_a_folder_is_refused(tmp_path):
    sweep = plan.load(_yaml(tmp_path, SWEEP | {"grid": {"log.wandb.project": ["x" * 300]}}))
    with pytest.raises(UserError, match="too long for the name of a folder"):
        plan.runs(sweep)
