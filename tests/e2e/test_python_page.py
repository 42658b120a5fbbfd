"""docs/python.md: its snippets run, one after the other; and `fit` trains as the command does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparse_mlp_ds.checkpoints import compare
from sparse_mlp_ds.checkpoints.manifest import find
from tests.helpers import records
from tests.helpers.launcher import REPOSITORY, small_recipe

pytestmark = pytest.mark.timeout(900)

SNIPPETS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)
SHORTER = """
from functools import partial
sm.fit = partial(sm.fit, **{"train.max_steps": 2, "log.every_steps": 1, "log.report": False})
"""
"""Before the second snippet: every stage ends after two steps, or the page would take half an hour."""
TWICE = """
import os, signal, threading
import sparse_mlp_ds as sm
from sparse_mlp_ds.errors import UserError

def state():
    return dict(os.environ), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

before = state()
for number in (1, 2):
    run = sm.fit("small.yaml", out=f"run-{number}", **{"train.seed": 3})
    assert state() == before and run.metrics.keys() == {"train"}, run
for wrong, said in (({"train.sead": 1}, "train.sead"), ({"data.classes": 7}, "classes"), ({"ds": {"zero": 1}}, "zero")):
    try:
        sm.fit("small.yaml", out="run-3", **wrong)
    except UserError as error:
        assert said in str(error), error
    else:
        raise AssertionError(wrong)
assert state() == before

def in_a_thread():
    try:
        sm.fit("small.yaml", out="run-4")
    except UserError as error:
        print("thread:", error)

based = {"base": "small.yaml", "name": "based"}  # a path is of the working folder, wherever the recipe is written
run = sm.fit(based, **{"train.max_steps": 1})
assert str(run.folder) == "runs/based" and run.records("train")
with open(run.folder / "metrics.jsonl", "a") as file:
    file.write('{"stage": "tr')  # what a run that goes on is writing
assert len(run.records("train")) == len(sm.FittedRun("runs/based").records("train")) > 0

thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
assert not os.path.exists("run-4")
"""
STOPPED = """
import sparse_mlp_ds as sm
from sparse_mlp_ds.errors import StoppedError

try:
    run = sm.fit("small.yaml", out="run", **{"train.seed": 3})
    print("done", len(run.records("train")))
except StoppedError as error:
    print("stopped")
"""
TWO_RANKS = """
import sparse_mlp_ds as sm
from sparse_mlp_ds.errors import UserError

run = sm.fit("small.yaml", out="run", ranks=2, **{"train.max_steps": 3})
print("ranks", __import__("json").loads((run.folder / "summary.json").read_text())["world_size"])
try:
    sm.fit("small.yaml", out="run", ranks=2, **{"train.max_steps": "many"})
except UserError as error:
    print("said", error)
"""


def run(folder: Path, code: str, **environment: str) -> str:
    """Run Python code in a folder and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def equal(first: Path, second: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same bits."""
    found = compare.compare(find(first)[0], find(second)[0])
    return bool(found.equal) and not (found.only_first or found.only_second or found.shapes or found.values)


@pytest.mark.long
def test_every_snippet_of_the_page_runs(tmp_path):
    pytest.importorskip("optuna")
    assert len(SNIPPETS) > 7
    first, *rest = SNIPPETS
    page = "\n".join([first.replace("\n\n", SHORTER, 1), *rest])
    assert SHORTER in page and "n_trials=2" in page
    printed = run(tmp_path, page.replace("n_trials=2", "n_trials=1"))
    assert "torch.Size([2, 10])" in printed and "rate" in printed


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    small_recipe(folder)
    flags = ("--recipe", "small.yaml", "--ds_config", "moe", "--out", "run", "--set", "train.seed=3")
    command = [sys.executable, "-m", "sparse_mlp_ds.train", *flags]
    subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True, timeout=300)
    return folder / "run"


def test_fit_trains_as_the_command_and_twice_in_one_process(tmp_path, by_command):
    small_recipe(tmp_path)
    printed = run(tmp_path, TWICE)
    assert "thread: fit: only the main thread" in printed
    losses = [record["loss"] for record in records.of_steps(by_command)]
    for number in (1, 2):
        assert [record["loss"] for record in records.of_steps(tmp_path / f"run-{number}")] == losses
        assert equal(tmp_path / f"run-{number}", by_command)


def test_interrupted_it_saves_itself_and_goes_on(tmp_path, by_command):
    small_recipe(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    ) as one:
        deadline = time.monotonic() + 240
        while not (tmp_path / "run/metrics.jsonl").exists():
            assert one.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        one.send_signal(signal.SIGINT)
        assert b"stopped" in one.communicate(timeout=240)[0] and one.returncode == 0
    assert not (tmp_path / "run/summary.json").exists()
    assert run(tmp_path, STOPPED).splitlines()[-1].startswith("done")
    assert equal(tmp_path / "run", by_command)


@pytest.mark.long
def test_two_ranks_are_launched(tmp_path):
    small_recipe(tmp_path)
    printed = run(tmp_path, TWO_RANKS)
    assert "ranks 2" in printed and "train 1/3" in printed
    (said,) = [line for line in printed.splitlines() if line.startswith("said")]
    assert "train.max_steps" in said


def test_a_rank_of_a_launcher_does_not_fit(tmp_path):
    code = (
        "import sparse_mlp_ds as sm\nfrom sparse_mlp_ds.errors import UserError\n"
        "try:\n    sm.fit('digits')\nexcept UserError as error:\n    print(error)"
    )
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert "one of several ranks" in run(tmp_path, code, **ranks)
    assert not list(tmp_path.iterdir())
