"""`--check` does without torch's compiler, and estimates the same memory."""

import os
import subprocess
import sys

import pytest

from sparse_mlp_ds.shards.digits import make
from tests.helpers.launcher import REPOSITORY, small_recipe

CODE = """
import contextlib, sys
from sparse_mlp_ds.train import job, memory
from sparse_mlp_ds.train.without_compiler import without_compiler

with without_compiler() if sys.argv[1] == "without" else contextlib.nullcontext():
    planned = job.resolve(sys.argv[2], "moe", sys.argv[3:], None, "never", 1, gpu=True)
    print(memory.estimate(planned))
print("torch._dynamo" in sys.modules)
if sys.argv[1] == "without":  # what comes later finds the real one
    import torch
    assert torch._dynamo.is_compiling() is False
    assert float(torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(()))) == 2
"""


DATA = ("data.train=data/digits/train", "data.val=data/digits/val", "data.classes=10", "stages.pretrain.batch_size=64")


@pytest.mark.parametrize(("recipe", "settings", "needed"), [
    ("digits", (), False),
    ("vit_s_moco_adamw", (*DATA, "model.checkpoint_blocks=true"), True),  # torch asks the compiler for its settings
])  # fmt: skip
def test_the_estimate_is_the_same(tmp_path, recipe, settings, needed):
    make(tmp_path / "data/digits")
    printed = []
    for how in ("with", "without"):
        command = [sys.executable, "-c", CODE, how, recipe, *settings]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append([line for line in done.stdout.splitlines() if line[0] != "["])  # that is DeepSpeed's
    assert printed[0][0] == printed[1][0] and "StageMemory" in printed[0][0]
    assert (printed[0][1], printed[1][1]) == ("True", str(needed))


TRAIN = """
import sys
from sparse_mlp_ds.train import main
code = main.main(sys.argv[1:])
print("compiler", "torch._dynamo" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
sys.exit(code)
"""


def test_a_run_on_a_cpu_does_without_it(tmp_path):
    """torch's optimizers ask for it, and DeepSpeed's ZeRO does by importing an optimizer of its own."""
    small_recipe(tmp_path)
    settings = ("--set", "train.max_steps=2", "--set", "data.workers=0")
    command = [sys.executable, "-c", TRAIN, "--recipe", "small.yaml", "--ds_config", "moe", *settings]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "compiler False False"
