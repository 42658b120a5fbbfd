"""The wheel alone, away from the checkout: commands, shipped recipes, sweeps and DeepSpeed JSON files, training.

The wheel is built and installed into a new environment, which sees the packages that this project depends on where
they are installed already, but not the checkout. About a minute; with two ranks another half.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.helpers.launcher import REPOSITORY, small_recipe

pytestmark = pytest.mark.timeout(600)

PACKAGE = REPOSITORY / "sparse_mlp_ds"
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "ds_configs", "sparse_mlp_ds")
SHORT = ("--recipe", "small.yaml", "--ds_config", "moe", "--set", "train.max_steps=2", "--set", "data.workers=0")
NAMES = """
import sparse_mlp_ds
from sparse_mlp_ds.config import deepspeed_json, loading
from sparse_mlp_ds.sweep import plan

recipes, jsons, sweeps = loading.RECIPES.names(), deepspeed_json.DS_CONFIGS.names(), plan.SWEEPS.names()
for name in recipes:
    loading.load_recipe(name)
for name in jsons:
    deepspeed_json.load(name)
for name in sweeps:
    sweep = plan.load(name)
    assert plan.runs(sweep) and deepspeed_json.load(sweep.ds_config)
print(*map(len, (recipes, jsons, sweeps)), sparse_mlp_ds.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A copy of the sources, so that nothing which an earlier build left in the checkout gets into the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sources").mkdir()
    subprocess.run(["cp", "-a", *SOURCES, folder / "sources"], cwd=REPOSITORY, check=True)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "sources")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel, and of the checkout nothing."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    _pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    paths = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text("\n".join(paths))
    return python


def _pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def _run(folder: Path, *command) -> str:
    """Run a command of the environment in a folder and return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, timeout=240,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def _summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_wheel_holds_all_that_is_no_python(wheel):
    """And of Python exactly the package's files."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"sparse_mlp_ds/py.typed"}
    expected |= {f"sparse_mlp_ds/config/ds_configs/{path.name}" for path in (REPOSITORY / "ds_configs").iterdir()}
    for pattern in ("**/*.py", "recipes/*", "sweeps/*", "models/*.json", "pretrained/*/*"):
        found = [path for path in PACKAGE.glob(pattern) if path.is_file()]
        assert found
        expected |= {str(path.relative_to(REPOSITORY)) for path in found}
    assert names == expected


def test_everything_that_is_shipped_is_found_by_name(python, tmp_path):
    *counts, file = _run(tmp_path, python, "-c", NAMES).split()[-4:]
    assert Path(file).is_relative_to(python.parents[1])
    assert min(map(int, counts)) > 2, counts


def test_shards_training_and_a_sweep(python, tmp_path):
    small_recipe(tmp_path)
    command = python.with_name("sparse-mlp-ds")
    _run(tmp_path, command, "shards", "make", "digits", "data/digits")
    assert "stage pretrain" in _run(tmp_path, python, "-m", "sparse_mlp_ds.train", "--ds_config", "moe", "--check")
    _run(tmp_path, command, "train", *SHORT, "--out", "run")
    settings = {"train.max_steps": 2, "data.workers": 0}
    sweep = {"name": "little", "recipe": "small.yaml", "metrics": ["train.top1"], "set": settings}
    (tmp_path / "little.yaml").write_text(yaml.safe_dump(sweep))
    assert "run_seed-0: finished" in _run(tmp_path, command, "sweep", "little.yaml")
    (run,) = (tmp_path / "runs/little").glob("*/summary.json")
    assert _summary(run.parent)["stages"][0]["metrics"] == _summary(tmp_path / "run")["stages"][0]["metrics"]


@pytest.mark.long
def test_two_ranks_started_by_deepspeed(python, tmp_path):
    small_recipe(tmp_path)
    launcher = (python, "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29615")
    output = _run(tmp_path, *launcher, "--module", "sparse_mlp_ds.train", *SHORT, "--out", "run")
    assert _summary(tmp_path / "run")["world_size"] == 2, output
