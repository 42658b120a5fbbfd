"""Commands whose output nobody reads, as after `| head -1`: they end in silence, whatever they print with."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers import finished_run
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY
from tests.helpers.tars import picture, sample, write_tar

pytestmark = pytest.mark.timeout(180)

NOBODY_READS = 141


def leaves(parser):
    """Yield the arguments that name each command, without those that only hold sub-commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from ([name, *rest] for rest in leaves(child))
            return
    yield []


COMMANDS = [" ".join(command) for command in leaves(main._parser())]
EXAMPLES = {
    "models": "",
    "recipe list": "",
    "recipe show": "digits",
    "recipe diff": "digits cifar10_tiny",
    "recipe new": "{data} --model sparse_mlp_digits --out {new}/recipe.yaml",
    "recipe schema": "",
    "train": "--help",
    "shards make": "imagefolder {classes} {new}/made --workers 1",
    "shards verify": "{shards} --workers 1",
    "shards index": "{shards}",
    "shards show": "{recipe} --images 4 --out {new}/sheet.png",
    "sweep": "which_moe --list --out {new}/sweep",
    "checkpoint inspect": "{run}",
    "checkpoint verify": "{run}",
    "checkpoint diff": "{run} {run}",
    "checkpoint prune": "{run} --keep 1",
    "checkpoint mirror": "{run} file://{new}/mirror",
    "export": "{run} {new}/model",
    "import": "{cifar10}/model.safetensors {new}/model --model sparse_mlp_t4",
    "predict": "{old_export} {classes}/a/1.png",
    "evaluate": "{old_export} {shards} --workers 0",
    "embed": "{old_export} {classes} --out {new}/features.npy",
    "routes": "{old_export} {shards} --out {new}/routes --workers 0",
    "report": "{finished}",
    "doctor": "",
}
"""Arguments with which each command prints something, in few seconds."""


@pytest.fixture
def places(tmp_path):
    """The folders that the examples name."""
    shards, classes = tmp_path / "shards/train", tmp_path / "classes"
    write_tar(shards / "a-000000.tar", *(part for n in range(8) for part in sample(f"{n:03d}", n % 10)))
    make_index(shards, [str(number) for number in range(10)])
    for name in ("a", "b"):
        (classes / name).mkdir(parents=True)
        for number in range(4):
            (classes / name / f"{number}.png").write_bytes(picture(20 * number + 10))
    recipe = tmp_path / "recipe.yaml"
    data = f"{{train: {shards}, val: {shards}, embedded: null}}"
    stages = "{pretrain: {batch_size: 8}, finetune: {batch_size: 8}}"
    recipe.write_text(f"base: digits\nname: own\ndata: {data}\nstages: {stages}\n")
    shutil.copytree(shards, shards.with_name("val"))
    (tmp_path / "new").mkdir()
    run = old.run_folder(tmp_path)
    return {"shards": shards, "classes": classes, "recipe": recipe, "new": tmp_path / "new", "run": run} | {
        "old_export": old.EXPORT,
        "cifar10": REPOSITORY / "sparse_mlp_ds/pretrained/cifar10",
        "data": shards.parent,
        "finished": finished_run.write(tmp_path / "finished"),
    }


def test_every_command_has_an_example():
    assert sorted(EXAMPLES) == sorted(COMMANDS)


def call_unread(monkeypatch, *arguments):
    """Call the command line while standard output is a pipe that nobody reads; return the exit code."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream, monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "stdout", stream)  # not in a fixture: pytest puts its own there when the test begins
        main.main([str(argument) for argument in arguments])
    return end.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_nobody_reads_ends_in_silence(command, places, capfd, monkeypatch):
    monkeypatch.chdir(places["new"])
    arguments = EXAMPLES[command].format(**places).split()
    code = call_unread(monkeypatch, *command.split(), *arguments)
    errors = capfd.readouterr().err
    assert "Traceback" not in errors and "roken pipe" not in errors and "error" not in errors
    assert code == (0 if command == "train" else NOBODY_READS), errors


@pytest.mark.parametrize(
    "arguments",
    ["--help", "models", "models --help", "train --help", "train --check --ds_config nowhere.json", "--wrong"],
)
def test_nor_does_python_complain_at_its_end(arguments):
    """What is left in a buffer is written when Python ends, after all of our code."""
    command = [str(Path(sys.executable).with_name("sparse-mlp-ds")), *arguments.split()]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert "Traceback" not in done.stderr and "roken pipe" not in done.stderr and "ignored" not in done.stderr
    assert done.returncode == {"models": NOBODY_READS, "--wrong": 2}.get(arguments, 2 if "nowhere" in arguments else 0)


def test_an_exit_code_of_its_own_is_kept(places, monkeypatch):
    assert call_unread(monkeypatch, "checkpoint", "verify", places["new"]) == 2
