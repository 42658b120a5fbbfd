"""Saving on GPUs: no step waits for a copy, and none changes what is still being copied."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.gpu_emulated.runs import DIGITS, OPTIMIZER, REPOSITORY, recipe, train
from tests.helpers import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What the program in saving.py printed, and its folder."""
    folder = tmp_path_factory.mktemp("saved")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.gpu_emulated.saving", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


def test_the_host_waits_for_no_copy(saved):
    found, _ = saved
    assert found["asked"] == [{"copies": 2}] * 2
    assert found["one buffer"]


def test_what_is_held_is_copied_before_it_changes(saved):
    tensors = tiny.tensors(saved[1] / "step_1")
    assert {name: value.tolist() for name, value in tensors.items()} == {
        "param/w": [*range(5)],
        "exp_avg/m": [*range(7)],
        "param/o": [*range(3)],
    }


def test_what_is_not_held_is_copied_as_late_as_a_gpu_may(saved):
    """So that the test below can fail."""
    tensors = tiny.tensors(saved[1] / "step_2")
    assert tensors["param/w"].tolist() == [200.0 + number for number in range(5)]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_stage_saves_what_it_was_whenever_the_copy_is_done(workplace, tmp_path):
    """Saves of every step: copied as late as a GPU may, then at once; both times no step waits for them."""
    made = recipe(DIGITS, "pretrain", "finetune", checkpoint={"every_steps": 1, "keep": 20})
    made["stages"]["finetune"]["optimizer"] = OPTIMIZER | {"name": "lamb"}
    ds = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    slow = train(workplace, made, "--out", "slow", ds=ds, count=(2, 5), copies_take=20)
    assert slow.code == 0, slow.output
    assert [sum(kinds["synchronisations"].values()) for kinds in slow.counts.values()] == [1, 1]
    quick = train(workplace, made, "--out", "quick", ds=ds)
    assert quick.code == 0, quick.output
    for step in range(1, 7):
        late, early = (tiny.tensors(workplace / run / f"checkpoints/step_{step}") for run in ("slow", "quick"))
        assert late.keys() == early.keys()
        assert [name for name, value in early.items() if not torch.equal(late[name], value)] == []
