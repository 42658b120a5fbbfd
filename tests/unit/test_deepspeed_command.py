"""Finding the user's command among a host's processes."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

ARGUMENTS = ("train.py", "--ds_config", "moe.json", "--set", "a=1 2")
ASK = "from sparse_mlp_ds.distributed import deepspeed_command as c; print(c.nodes(), c.shortfall())"


@contextmanager
def command(folder, *options, program="train.py"):
    """A process that looks like `deepspeed OPTIONS train.py ...`."""
    (folder / "deepspeed").write_text("import time; print(flush=True); time.sleep(60)")
    started = [sys.executable, folder / "deepspeed", *options, program, *ARGUMENTS[1:]]
    process = subprocess.Popen(started, cwd=folder, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def ask(folder, arguments=ARGUMENTS, **env):
    """What a rank started with these arguments finds: `None` or the number, and what it complains of."""
    script, *others = arguments
    code = f"import sys; sys.argv = {[script, '--local_rank=0', *others]!r}; {ASK}"
    env = os.environ | {"PYTHONPATH": os.getcwd()} | env
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("options", [("--num_nodes", "4"), ("--num_nodes=4",), ("-H", "hosts", "--num_nodes", "4")])
def test_the_number_of_hosts_that_was_asked_for(tmp_path, options):
    with command(tmp_path, *options):
        assert ask(tmp_path) == "4 None"
        assert ask(tmp_path, CROSS_SIZE="4") == "4 None"
        assert ask(tmp_path, CROSS_SIZE="3").startswith("4 4 hosts were asked for, 3 were started")


def test_a_rank_that_runs_the_module_finds_the_command_too(tmp_path):
    program = "/anywhere/sparse_mlp_ds/train/__main__.py"  # what `python -m` makes of the module's name
    with command(tmp_path, "--num_nodes", "4", "--module", program="sparse_mlp_ds.train"):
        assert ask(tmp_path, (program, *ARGUMENTS[1:])) == "4 None"
        assert ask(tmp_path, (program, *ARGUMENTS[1:], "--out", "else")) == "None None"


def test_another_run_or_no_number_is_none(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with command(tmp_path, "--num_nodes", "4"):
        assert ask(tmp_path, (*ARGUMENTS, "--out", "else")) == "None None"
        assert ask(other) == "None None"
        assert ask(other, SPARSE_MLP_DS_NODES="2") == "2 None"
    with command(tmp_path):
        assert ask(tmp_path) == "None None"
