"""The commands of docs/upgrade.md, in its order, move a run that version 0.1.0 began, and move it back."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparse_mlp_ds import __version__
from sparse_mlp_ds.checkpoints.manifest import read_manifest
from tests.helpers import records, tiny
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY

BLOCKS = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "docs/upgrade.md").read_text(), re.DOTALL)
SETTINGS, INSTALL, CHECK, STOP, KEEP, GO_ON, GO_BACK, CLEAR = BLOCKS


@pytest.fixture
def shell(tmp_path):
    """Start commands of the page in a folder with the run `run`, one process on this machine; all end with the test."""
    own = str(Path(sys.executable).parent)
    environment = os.environ | {
        "RUN": "run",
        "TRAIN": f"{sys.executable} {REPOSITORY}/train.py",
        "PATH": f"{own}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    started = []

    def start(commands):
        log = (tmp_path / f"log-{len(started)}").open("w+")
        process = subprocess.Popen(
            ["bash", "-euc", commands], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        started.append((process, log))
        return process, Path(log.name)

    yield start
    for process, log in started:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()
        log.close()


def ends(started, code=0):
    """Wait for commands to end with an exit code, and return what they printed."""
    process, log = started
    assert process.wait(240) == code, log.read_text()
    return log.read_text()


def steps(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def test_every_command_of_the_page_is_here():
    """A block that is added needs a place below; the first two name folders and install packages."""
    assert "RUN=" in SETTINGS and "pip install" in INSTALL and "--check" in CHECK and "--resume" in GO_BACK


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_page_moves_a_run_of_version_0_1_0_and_moves_it_back(shell, tmp_path):
    run = old.run_folder(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "stage train: 6 steps" in ends(shell(CHECK))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}  # nothing has changed

    ends(shell(KEEP))
    going_on = shell(GO_ON)
    while "resuming from run/checkpoints/step_3" not in going_on[1].read_text():
        assert going_on[0].poll() is None, going_on[1].read_text()
        time.sleep(0.1)
    ends(shell(STOP))
    ends(going_on, code=85)
    assert steps(run)[0] == 3 and 3 < steps(run)[-1] < 6

    ends(shell(GO_ON))
    assert steps(run)[-1] == 6 and (run / "summary.json").exists()
    assert read_manifest(run / "checkpoints/step_6")["version"] == __version__
    assert [entry["version"] for entry in json.loads((run / "environment.json").read_text())] == [__version__] * 2
    first = tiny.tensors(run / "checkpoints/step_6")

    text = ends(shell(GO_BACK))
    assert "resuming from run/before-upgrade/checkpoint" in text and "later checkpoints to run/previous-1" in text
    assert steps(run)[-1] == 6 and (run / "previous-1/checkpoints/step_6").exists()
    again = tiny.tensors(run / "checkpoints/step_6")
    assert first.keys() == again.keys() and all((first[name] == again[name]).all() for name in first)
    assert [record["step"] for record in records.of_steps(run)][-3:] == [4, 5, 6]
    kept = run / "before-upgrade/checkpoint"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == {
        path.name: path.read_bytes() for path in old.CHECKPOINT.iterdir()
    }
    ends(shell(CLEAR))
    assert not kept.exists()
