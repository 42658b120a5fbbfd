"""A real run, started twice: its folder says where it came from, and holds what it printed once."""

import json
import os
import subprocess
import sys

import pytest

from sparse_mlp_ds.shards import digits
from tests.helpers.launcher import MOE, REPOSITORY, small_recipe

pytestmark = pytest.mark.timeout(600)


def test_two_starts(tmp_path):
    digits.make(tmp_path / "data/digits")
    command = [sys.executable, REPOSITORY / "train.py", "--recipe", small_recipe(tmp_path), "--ds_config", MOE]
    command += ["--out", "run", "--set", "data.workers=0", "--set", "log.tensorboard=false", "--set"]
    (tmp_path / "run").mkdir()
    with (tmp_path / "run/train.log").open("ab") as log:  # as a sweep does
        subprocess.run([*command, "train.max_steps=1"], cwd=tmp_path, stdout=log, stderr=log, timeout=300, check=True)
    first = (tmp_path / "run/train.log").read_text()
    assert [first.count(text) for text in ("pre-flight:", "train finished:", "run folder: run")] == [1, 1, 1]
    again = subprocess.run(
        [*command, "train.max_steps=2"], cwd=tmp_path, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=300,
        check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ).stdout  # fmt: skip
    both = (tmp_path / "run/train.log").read_text()
    head, _, rest = both.removeprefix(first).partition("\n")
    assert head.startswith("--- started ") and rest == again and "resuming from" in again

    starts = json.loads((tmp_path / "run/environment.json").read_text())
    assert [(one["step"], one["resumed_from"]) for one in starts] == [(0, None), (1, "run/checkpoints/step_1")]
    assert starts[1]["command"][-1] == "train.max_steps=2" and starts[0]["hosts"][0]["ranks"] == [0]
    manifest = json.loads((tmp_path / "run/checkpoints/step_2/manifest.json").read_text())
    assert manifest["code"] == starts[1]["git"]
